"""Rewards: from completions to scores."""

from __future__ import annotations

from collections.abc import Callable

from reasonrl.rewards import sparse
from reasonrl.types import Completion, Problem

REWARDS: dict[str, Callable[[Completion, Problem], float]] = {"sparse": sparse.score}
