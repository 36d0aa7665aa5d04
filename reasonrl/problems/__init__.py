"""Datasets as lists of Problems: ``load_problems(config.dataset, split)``."""

from __future__ import annotations

from typing import Any

from reasonrl.config import DatasetConfig, GSM8KConfig, StoriesConfig, SVAMPConfig
from reasonrl.errors import UserError
from reasonrl.problems import gsm8k, stories, svamp
from reasonrl.types import Problem

STORIES_SEED = 0  # the splits of the default dataset are fixed: a run's seed doesn't change them


def load_problems(dataset: DatasetConfig, split: str) -> list[Problem]:
    """The problems of one split, at most ``dataset.<split>_size`` of them, in a fixed order.

    split: train, validation or test; stories also has ood (as many as test_size).
    Raises UserError for a missing or malformed file (with its line) and for an empty split.
    """
    size: Any = dataset.test_size if split == "ood" else getattr(dataset, f"{split}_size")
    match dataset:
        case StoriesConfig():
            problems = stories.load(
                split,
                size,
                seed=STORIES_SEED,
                min_steps=dataset.min_steps,
                max_steps=dataset.max_steps,
            )
        case GSM8KConfig():
            problems = gsm8k.load(
                split, path=dataset.path, hub=dataset.hub, annotations=dataset.annotations
            )[:size]
        case SVAMPConfig():
            problems = svamp.load(split, path=dataset.path, hub=dataset.hub)[:size]
        case _:
            raise TypeError(f"no loader for {type(dataset).__name__}")
    if not problems:
        raise UserError(f"dataset={dataset.name} must have problems in its split {split}; got 0.")
    return problems
