"""The settings of showing a run nowhere but in its own folder: there are none."""

from __future__ import annotations

from dataclasses import dataclass

from reasonrl.config.tracking.base import TrackingConfig


@dataclass(frozen=True)
class NoTrackingConfig(TrackingConfig):
    """A run is shown nowhere but in its own folder."""

    def grouped(self, sweep: str) -> NoTrackingConfig:
        return self

    def check(self) -> None:
        """Nothing here can be wrong."""
