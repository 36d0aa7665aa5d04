"""The settings of prompts that are a text: see ``reasonrl.problems.prompts.plain``."""

from __future__ import annotations

from dataclasses import dataclass

from reasonrl.config.prompt.base import PromptConfig


@dataclass(frozen=True)
class PlainConfig(PromptConfig):
    """A text that the completion continues."""
