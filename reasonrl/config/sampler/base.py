"""The settings that every sampling engine has."""

from __future__ import annotations

from dataclasses import dataclass, field

from reasonrl.config.base import IMMATERIAL, require


@dataclass(frozen=True)
class SamplerConfig:
    """The base of all sampling engines' settings."""

    name: str
    batch_size: int = field(metadata=IMMATERIAL)  # completions in flight

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        require(
            self.batch_size >= 1, f"sampler.batch_size must be 1 or more; got {self.batch_size}."
        )
