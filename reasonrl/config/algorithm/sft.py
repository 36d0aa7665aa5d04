"""The settings of supervised fine-tuning: see ``reasonrl.algorithms.sft``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasonrl.config.algorithm.base import (
    Algorithm,
    Footprint,
    Line,
    Panels,
    Sizes,
    Work,
    learning_panel,
    shorter_by,
)
from reasonrl.config.base import counted
from reasonrl.config.learner import FineTuningConfig

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig


@dataclass(frozen=True)
class SFTConfig(FineTuningConfig, Algorithm):
    """Supervised fine-tuning on the reference solutions."""

    name: str

    makes = "policy"
    reads_reward = "nothing"
    questions = "train_size"
    keeps = ()
    panels = Panels(None, (learning_panel("sft"),), Line.of_epochs("sft"))

    def check(self, key: str) -> None:
        FineTuningConfig.check(self, key)

    def needs(self, run: TrainConfig) -> dict[str, TrainConfig]:
        return {}

    def shorter(self) -> Iterator[Algorithm]:
        return shorter_by(self, "epochs")

    def outline(self, run: TrainConfig) -> str:
        return f"fine-tuning: {counted(self.epochs, 'epoch')} on the reference solutions"

    def work(self, sizes: Sizes) -> Work:
        return Work(examples=self.epochs * sizes.references)

    def footprint(self) -> Footprint:
        return Footprint.of_fine_tuning(self)

    def layers(self) -> dict[str, int]:
        return {}

    def longest(self, max_new_tokens: int, count_tokens: Callable[[list[str]], list[int]]) -> int:
        return max_new_tokens
