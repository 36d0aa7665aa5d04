"""The settings of SVAMP: see ``reasonrl.problems.svamp``."""

from __future__ import annotations

from dataclasses import dataclass

from reasonrl.config.dataset.base import DatasetConfig


@dataclass(frozen=True)
class SVAMPConfig(DatasetConfig):
    """Short word problems (Patel et al., 2021)."""

    hub: str  # the dataset's id on the Hugging Face hub

    splits = ("train", "validation", "test", "platinum")
    grader = "strict"

    @property
    def local(self) -> bool:
        return self.path is not None
