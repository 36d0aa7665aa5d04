"""Configurations of runs that take seconds."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir

from reasonrl.config.resolve import resolve
from reasonrl.config.schema import TrainConfig

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models" / "tiny"

# A run of seconds: a dozen problems of every split, one step of learning or a few.
SMALL = [
    "tracking=none",
    "runtime.threads=1",
    "dataset.train_size=12",
    "dataset.reward_train_size=12",
    "dataset.validation_size=8",
    "dataset.test_size=10",
    "dataset.num_references=8",
    "dataset.max_steps=2",
    "dataset.max_new_tokens=48",
    "evaluation.num_samples_per_prompt=4",
]


def small_config(outputs: Path, *overrides: str) -> TrainConfig:
    """conf/train.yaml with SMALL and the given overrides."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("train", [f"runtime.outputs={outputs}", *SMALL, *overrides]))
