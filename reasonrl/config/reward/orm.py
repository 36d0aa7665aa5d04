"""The settings of the reward by an outcome reward model: see ``reasonrl.rewards.learned``."""

from __future__ import annotations

from dataclasses import dataclass, field

from reasonrl.config.algorithm.orm import ORMConfig
from reasonrl.config.base import unless
from reasonrl.config.reward.learned import LearnedConfig


@dataclass(frozen=True)
class ORMRewardConfig(LearnedConfig):
    """The verdict of an outcome reward model."""

    model: ORMConfig = field(metadata=unless("run"))

    @property
    def reward_model(self) -> ORMConfig:
        return self.model
