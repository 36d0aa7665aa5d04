"""The settings of the reward by a stepwise reward model: see ``reasonrl.rewards.learned``."""

from __future__ import annotations

from dataclasses import dataclass, field

from reasonrl.config.algorithm.sorm import SORMConfig
from reasonrl.config.base import unless
from reasonrl.config.reward.learned import LearnedConfig


@dataclass(frozen=True)
class SORMRewardConfig(LearnedConfig):
    """The verdict of a stepwise outcome reward model."""

    model: SORMConfig = field(metadata=unless("run"))

    @property
    def reward_model(self) -> SORMConfig:
        return self.model
