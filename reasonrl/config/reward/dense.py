"""The settings of the dense reward: see ``reasonrl.rewards.dense``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasonrl.config.reward.base import RewardConfig

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig


@dataclass(frozen=True)
class DenseConfig(RewardConfig):
    """The right final answer, and a share for each intermediate result of the reference."""

    outcome_weight: float  # for the right final answer
    step_weight: float  # for all intermediate results of the reference solution together
    ordered: bool  # whether these count only in the reference's order

    judges_steps_by = "reference solution"

    def needs(self, run: TrainConfig) -> dict[str, TrainConfig]:
        return {}

    def finished_run(self) -> str | None:
        return None
