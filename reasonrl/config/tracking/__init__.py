"""The settings of trackers, by the name of the option."""

from __future__ import annotations

from reasonrl.config.tracking.base import TrackingConfig
from reasonrl.config.tracking.none import NoTrackingConfig
from reasonrl.config.tracking.wandb import WandbConfig

TRACKERS: dict[str, type[TrackingConfig]] = {"none": NoTrackingConfig, "wandb": WandbConfig}
