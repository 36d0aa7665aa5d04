"""Rewards, by the name of the option: from completions to a score each, paid on their tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reasonrl.config import reward as declared
from reasonrl.config.base import check_listed
from reasonrl.rewards import dense, function, learned, sparse
from reasonrl.rewards.base import Materials, Reward, TokenRewards

__all__ = ["REWARDS", "Materials", "Reward", "TokenRewards"]

REWARDS: dict[str, Callable[[Any, Materials], Reward]] = {
    "sparse": sparse.build,
    "dense": dense.build,
    "orm": learned.build,
    "sorm": learned.build,
    "function": function.build,
}
check_listed("reward", declared.REWARDS, REWARDS)
