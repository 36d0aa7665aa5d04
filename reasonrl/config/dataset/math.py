"""The settings of MATH: see ``reasonrl.problems.math``."""

from __future__ import annotations

from dataclasses import dataclass

from reasonrl.config.dataset.base import DatasetConfig


@dataclass(frozen=True)
class MATHConfig(DatasetConfig):
    """Competition problems with answers in LaTeX (Hendrycks et al., 2021), and those of AIME."""

    hub: str  # the dataset's id on the Hugging Face hub

    splits = ("train", "validation", "test", "math500", "aime24", "aime25")
    grader = "boxed"

    @property
    def local(self) -> bool:
        return self.path is not None
