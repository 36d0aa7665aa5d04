"""The settings of a reward of one's own: see ``reasonrl.rewards.function``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reasonrl.config.base import IMMATERIAL, require
from reasonrl.config.reward.base import RewardConfig

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig

CODE = re.compile(r".*\.py:[A-Za-z_]\w*")


@dataclass(frozen=True)
class FunctionConfig(RewardConfig):
    """The right final answer, and what a function of the user's own says of the completion."""

    path: str | None = field(metadata=IMMATERIAL)  # FILE.py:FUNCTION; what it holds counts
    outcome_weight: float  # for the right final answer
    function_weight: float  # times what the function returns

    judges_steps_by = "continuations"

    @property
    def code(self) -> str | None:
        return self.path

    def check(self) -> None:
        super().check()
        require(
            CODE.fullmatch(str(self.path)) is not None,
            f"reward.path must be FILE.py:FUNCTION with reward={self.name}; got reward.path="
            f"{'null' if self.path is None else self.path}. See docs/own-rewards.md.",
        )

    def needs(self, run: TrainConfig) -> dict[str, TrainConfig]:
        return {}

    def finished_run(self) -> str | None:
        return None
