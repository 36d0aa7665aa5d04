"""The settings that every form of a prompt has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptConfig:
    """The base of all forms' settings. The template itself is the dataset's."""

    name: str

    def check(self) -> None:
        """Raises UserError for a value out of range."""
