"""The settings of the generated word problems: see ``reasonrl.problems.stories``."""

from __future__ import annotations

from dataclasses import dataclass

from reasonrl.config.base import require
from reasonrl.config.dataset.base import DatasetConfig


@dataclass(frozen=True)
class StoriesConfig(DatasetConfig):
    """Generated word problems; ``ood`` has other wordings and longer chains."""

    min_steps: int  # the fewest calculations of a problem
    max_steps: int  # the most calculations of a problem

    splits = ("train", "validation", "test", "ood")
    grader = "strict"

    @property
    def local(self) -> bool:
        return True

    def check(self) -> None:
        super().check()
        require(
            self.path is None,
            f"dataset.path={self.path} must be null with dataset=stories, which are generated. "
            "Pass dataset=gsm8k or dataset=svamp, whose files a folder may hold.",
        )
        require(
            1 <= self.min_steps <= self.max_steps,
            f"dataset.min_steps={self.min_steps} must be between 1 and dataset.max_steps; got "
            f"dataset.max_steps={self.max_steps}.",
        )
        require(
            None not in (self.train_size, self.validation_size, self.test_size),
            "dataset.train_size, validation_size and test_size must be numbers; got null with "
            "dataset=stories, whose splits have no end.",
        )
