"""The settings of the forms of a prompt, by the name of the option."""

from __future__ import annotations

from reasonrl.config.prompt.base import PromptConfig
from reasonrl.config.prompt.chat import ChatConfig
from reasonrl.config.prompt.plain import PlainConfig

PROMPTS: dict[str, type[PromptConfig]] = {"plain": PlainConfig, "chat": ChatConfig}
