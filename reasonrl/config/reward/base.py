"""What every reward declares of itself, so that no other file has to know it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from reasonrl.config.base import CONTENT, require, undeclared

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig

LARGEST = (2 - 2**-23) * 2.0**127  # of float32, in which rewards are computed with
JudgesStepsBy = Literal["continuations", "reward model", "reference solution"]


@dataclass(frozen=True)
class RewardConfig:
    """The base of all rewards' settings. Keys that end in ``_weight`` weigh the parts of a score.

    Every concrete subclass declares what ``DECLARATIONS`` names; a missing declaration raises
    TypeError when the subclass is defined. ``abstract=True`` exempts a class that only others
    derive from.
    """

    name: str
    threshold: float  # a completion that scores at least this is good: Expert Iteration keeps it
    # The hash of the reward model of ``finished_run``, or of ``code``, which a plan finds out.
    content: str | None = field(default=None, kw_only=True, metadata=CONTENT)

    judges_steps_by: ClassVar[JudgesStepsBy]  # what says how good a step of a completion is

    def __init_subclass__(cls, *, abstract: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        missing = [] if abstract else undeclared(cls, RewardConfig, DECLARATIONS)
        if missing:
            raise TypeError(f"reward {cls.__name__} must declare {', '.join(missing)}")

    def needs(self, run: TrainConfig) -> dict[str, TrainConfig]:
        """The runs that must be done before ``run`` can use this reward, by what they give."""
        raise NotImplementedError

    def finished_run(self) -> str | None:
        """The folder of the finished run whose reward model this reward uses, if it names one."""
        raise NotImplementedError

    @property
    def code(self) -> str | None:
        """The function of the user's own that this reward asks, as FILE.py:FUNCTION, if any."""
        return None

    @property
    def best(self) -> float:
        """The highest score that a completion can have."""
        weights = self._weights().values()
        return sum(weights) if weights else 1.0

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        weights = self._weights()
        for name, weight in weights.items():
            require(0 <= weight < math.inf, f"reward.{name} must be 0 or more; got {weight}.")
        require(
            self.best <= LARGEST,
            f"reward={self.name} must have weights whose sum float32 holds, {LARGEST:.1e} at most; "
            f"got {' '.join(_listed(weights))}.",
        )
        require(
            0 < self.threshold <= self.best,
            f"reward.threshold={self.threshold} must be above 0, which failures reach too, and at "
            f"most {self.best:g}, the best score there is; got "
            + " ".join([f"reward={self.name}", *_listed(weights)])
            + ".",
        )

    def _weights(self) -> dict[str, float]:
        names = [f.name for f in fields(self) if f.name.endswith("_weight")]
        return {name: getattr(self, name) for name in names}


def _listed(weights: dict[str, float]) -> list[str]:
    return [f"reward.{name}={weight:g}" for name, weight in weights.items()]


DECLARATIONS = ("judges_steps_by", "needs", "finished_run")
