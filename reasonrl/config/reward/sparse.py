"""The settings of the sparse reward: see ``reasonrl.rewards.sparse``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasonrl.config.reward.base import RewardConfig

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig


@dataclass(frozen=True)
class SparseConfig(RewardConfig):
    """1 for the right final answer, 0 for any other."""

    judges_steps_by = "continuations"

    def needs(self, run: TrainConfig) -> dict[str, TrainConfig]:
        return {}

    def finished_run(self) -> str | None:
        return None


SPARSE = SparseConfig(name="sparse", threshold=1.0)  # the reward of runs that others need first
