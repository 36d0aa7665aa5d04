"""The settings of prompts that are a chat: see ``reasonrl.problems.prompts.chat``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reasonrl.config.base import require
from reasonrl.config.prompt.base import PromptConfig

OURS = ("messages", "add_generation_prompt")  # variables of every template, which a run sets


@dataclass(frozen=True)
class ChatConfig(PromptConfig):
    """Turns, which the chat template of the model's tokenizer makes a text of."""

    system: str | None  # the system message; None: what the template says without one
    template_args: dict[str, Any] | None  # other variables of the template, by name

    def check(self) -> None:
        for name in OURS:
            require(
                name not in (self.template_args or {}),
                f"prompt.template_args must hold the template's other variables; got {name}, "
                "which the run sets. Remove it.",
            )
