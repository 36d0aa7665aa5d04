"""The settings of rewards, by the name of the option."""

from __future__ import annotations

from reasonrl.config.reward.base import RewardConfig
from reasonrl.config.reward.dense import DenseConfig
from reasonrl.config.reward.function import FunctionConfig
from reasonrl.config.reward.orm import ORMRewardConfig
from reasonrl.config.reward.sorm import SORMRewardConfig
from reasonrl.config.reward.sparse import SparseConfig

REWARDS: dict[str, type[RewardConfig]] = {
    "sparse": SparseConfig,
    "dense": DenseConfig,
    "orm": ORMRewardConfig,
    "sorm": SORMRewardConfig,
    "function": FunctionConfig,
}
