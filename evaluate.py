"""Evaluates a run, a model, or completions from elsewhere: `python evaluate.py --help`."""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from reasonrl.util.entry_point import one_line_errors, run_app


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
def main(config: DictConfig) -> None:
    with one_line_errors():
        # --help needs none of it.
        if config.predictions is not None:
            from reasonrl.cli.predictions import grade_and_show

            grade_and_show(config)
            return
        from reasonrl.cli.evaluate import evaluate_and_show

        evaluate_and_show(config, HydraConfig.get().overrides.task)


if __name__ == "__main__":
    run_app(main)
