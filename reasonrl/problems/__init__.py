"""Datasets as lists of Problems: ``load_problems(config.dataset, split)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reasonrl.config import dataset as declared
from reasonrl.config.base import check_listed
from reasonrl.config.dataset.base import DatasetConfig
from reasonrl.problems import gsm8k, stories, svamp
from reasonrl.types import Problem
from reasonrl.util.errors import UserError

# The readers of datasets, by the name of the option. Each takes the dataset's settings, a split and
# how many problems are wanted of it (None: all), and returns that many or more.
PROBLEMS: dict[str, Callable[[Any, str, int | None], list[Problem]]] = {
    "stories": stories.read,
    "gsm8k": gsm8k.read,
    "svamp": svamp.read,
}
check_listed("dataset", declared.DATASETS, PROBLEMS)


def load_problems(dataset: DatasetConfig, split: str) -> list[Problem]:
    """The problems of one split, at most ``dataset.<split>_size`` of them, in a fixed order.

    split: one of ``dataset.splits``; where it has no size of its own, test_size is its size.
    Raises UserError for a missing or malformed file (with its line) and for an empty split.
    """
    size = dataset.size_of(split)
    problems = PROBLEMS[dataset.name](dataset, split, size)[:size]
    if not problems:
        raise UserError(f"dataset={dataset.name} must have problems in its split {split}; got 0.")
    return problems
