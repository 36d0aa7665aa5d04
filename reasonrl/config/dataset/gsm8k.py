"""The settings of GSM8K: see ``reasonrl.problems.gsm8k``."""

from __future__ import annotations

from dataclasses import dataclass

from reasonrl.config.dataset.base import DatasetConfig


@dataclass(frozen=True)
class GSM8KConfig(DatasetConfig):
    """Grade-school word problems (Cobbe et al., 2021)."""

    annotations: bool  # whether the reference solutions keep <<48/2=24>>
    hub: str  # the dataset's id on the Hugging Face hub

    splits = (
        "train",
        "validation",
        "test",
        "platinum",
        "plus",
        "symbolic",
        "symbolic_p1",
        "symbolic_p2",
    )
    grader = "strict"

    @property
    def local(self) -> bool:
        return self.path is not None
