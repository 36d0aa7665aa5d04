"""Datasets as lists of Problems: ``load_problems(config.dataset, split)``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple
from typing import Any

from reasonrl.config import dataset as declared
from reasonrl.config.base import check_listed
from reasonrl.config.dataset.base import DatasetConfig
from reasonrl.problems import gsm8k, jsonl, math, stories, svamp
from reasonrl.types import Problem
from reasonrl.util.digest import content_of_values
from reasonrl.util.errors import UserError

# The readers of datasets, by the name of the option. Each takes the dataset's settings, a split and
# how many problems are wanted of it (None: all), and returns that many or more.
PROBLEMS: dict[str, Callable[[Any, str, int | None], list[Problem]]] = {
    "stories": stories.read,
    "gsm8k": gsm8k.read,
    "svamp": svamp.read,
    "math": math.read,
    "jsonl": jsonl.read,
}
check_listed("dataset", declared.DATASETS, PROBLEMS)


def load_problems(dataset: DatasetConfig, split: str) -> list[Problem]:
    """The problems of one split, at most ``dataset.<split>_size`` of them, in a fixed order.

    split: one of ``dataset.splits``; where it has no size of its own, test_size is its size.
    Raises UserError for a split that the dataset doesn't have, for a missing or malformed file
    (with its line) and for an empty split.
    """
    if split not in dataset.splits:
        raise UserError(
            f"split={split} must be one of {', '.join(dataset.splits)}; got dataset={dataset.name}."
        )
    size = dataset.size_of(split)
    problems = PROBLEMS[dataset.name](dataset, split, size)[:size]
    if not problems:
        raise UserError(f"dataset={dataset.name} must have problems in its split {split}; got 0.")
    return problems


def content_of(problems: Iterable[Problem]) -> str:
    """The hash of problems with all that they are, in their order."""
    return content_of_values([astuple(problem) for problem in problems])
