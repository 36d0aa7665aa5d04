"""The settings that every sampling engine has."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import ClassVar

from reasonrl.config.base import IMMATERIAL, require
from reasonrl.util.errors import UserError

MOST_ROWS = 1024  # completions in flight; more gain little


@dataclass(frozen=True)
class SamplerConfig:
    """The base of all sampling engines' settings."""

    name: str
    # Completions in flight, or auto: as many as the planned GPU has room for
    # (``pipeline.memory.with_batch_size``).
    batch_size: int | str = field(metadata=IMMATERIAL)

    package: ClassVar[str | None] = None  # what it needs beside requirements.txt
    # Whether the plan tries how it decodes the model: see ``sampling.agreement``.
    is_tried: ClassVar[bool] = False

    @property
    def num_rows(self) -> int:
        """The completions in flight, as a number; MOST_ROWS where no plan has set one for auto."""
        return self.batch_size if isinstance(self.batch_size, int) else MOST_ROWS

    def check_installed(self) -> None:
        """Raises UserError where the package that it needs isn't installed."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            raise UserError(
                f"sampler={self.name} must find the package {self.package}, which isn't installed. "
                f"Make an environment that has it (docs/{self.name}.md), or pass "
                "sampler=transformers."
            )

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        size = self.batch_size
        require(
            size == "auto" or (isinstance(size, int) and size >= 1),
            f"sampler.batch_size must be auto or 1 or more; got {size}.",
        )
