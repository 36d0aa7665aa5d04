"""The settings of outcome reward models: see ``reasonrl.algorithms.orm``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasonrl.config.algorithm.base import Line, Panels, Sizes, Work, learning_panel
from reasonrl.config.algorithm.reward_model import RewardModelConfig
from reasonrl.config.base import counted, require_one_of

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig

TARGETS = ("tokens", "final")


@dataclass(frozen=True)
class ORMConfig(RewardModelConfig):
    """An outcome reward model: its labels are those of whole completions."""

    targets: str  # final: only the last token of a completion has the label; tokens: every one

    panels = Panels(None, (learning_panel("orm"),), Line.of_epochs("orm"))

    def check(self, key: str) -> None:
        super().check(key)
        require_one_of(f"{key}.targets", self.targets, TARGETS)

    def outline(self, run: TrainConfig) -> str:
        return (
            f"outcome reward model: {counted(self.epochs, 'epoch')} on right and wrong completions"
        )

    def work(self, sizes: Sizes) -> Work:
        return Work(examples=self.epochs * sizes.train * self.sample.num_samples_per_prompt)
