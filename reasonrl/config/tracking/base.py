"""The settings of where a run is shown while it is made, beside its own folder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrackingConfig:
    """The base of all trackers' settings."""

    name: str

    def grouped(self, sweep: str) -> TrackingConfig:
        """The settings for a run of the sweep whose name is ``sweep``."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        raise NotImplementedError
