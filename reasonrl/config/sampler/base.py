"""The settings that every sampling engine has."""

from __future__ import annotations

from dataclasses import dataclass, field

from reasonrl.config.base import IMMATERIAL, require

MOST_ROWS = 1024  # completions in flight; more gain little


@dataclass(frozen=True)
class SamplerConfig:
    """The base of all sampling engines' settings."""

    name: str
    # Completions in flight, or auto: as many as the planned GPU has room for
    # (``pipeline.memory.with_batch_size``).
    batch_size: int | str = field(metadata=IMMATERIAL)

    @property
    def num_rows(self) -> int:
        """The completions in flight, as a number; MOST_ROWS where no plan has set one for auto."""
        return self.batch_size if isinstance(self.batch_size, int) else MOST_ROWS

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        size = self.batch_size
        require(
            size == "auto" or (isinstance(size, int) and size >= 1),
            f"sampler.batch_size must be auto or 1 or more; got {size}.",
        )
