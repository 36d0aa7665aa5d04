"""The settings of Weights & Biases: see ``reasonrl.report.wandb_mirror``."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from reasonrl.config.base import require, require_one_of
from reasonrl.config.tracking.base import TrackingConfig

MODES = ("auto", "online", "offline", "disabled")


@dataclass(frozen=True)
class WandbConfig(TrackingConfig):
    """Weights & Biases shows what the run's folder records."""

    mode: str
    project: str
    entity: str | None
    group: str | None  # None: the sweep's name
    tags: list[str]
    timeout_seconds: float  # how long a run waits for the network at its start and at its end

    def grouped(self, sweep: str) -> WandbConfig:
        return self if self.group is not None else replace(self, group=sweep)

    def check(self) -> None:
        require_one_of("tracking.mode", self.mode, MODES)
        forbidden = sorted({*self.project} & {*"/\\#?%:"})
        require(
            1 <= len(self.project) <= 128 and not forbidden,
            f"tracking.project must have 1 to 128 characters, none of them /\\#?%:, as W&B asks; "
            f"got tracking.project={self.project}.",
        )
        require(
            all(1 <= len(tag) <= 64 for tag in self.tags),
            f"tracking.tags must have 1 to 64 characters each, as W&B asks; got {self.tags}.",
        )
        require(
            0 < self.timeout_seconds < math.inf,
            f"tracking.timeout_seconds must be above 0; got {self.timeout_seconds}.",
        )
