"""Runs one algorithm on one policy, or a sweep of them: `python train.py --help`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from reasonrl.util.entry_point import one_line_errors, run_app


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(config: DictConfig) -> None:
    with one_line_errors():
        from reasonrl.cli.train import train  # --help needs none of it

        train(config)


if __name__ == "__main__":
    run_app(main)
