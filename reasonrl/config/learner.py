"""The settings that every algorithm with an optimizer has."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from reasonrl.config.base import IMMATERIAL, LATER, require, require_one_of

TRAINABLE = ("all", "lora")


@dataclass(frozen=True)
class LearnerConfig:
    """The optimizer and its schedule: see ``reasonrl.learning.optimization``."""

    epochs: int  # passes over the examples
    batch_size: int  # completions per optimizer step
    learning_rate: float  # at its peak, after the warm-up
    final_learning_rate: float  # at the end
    warmup_fraction: float  # share of all optimizer steps
    weight_decay: float
    max_grad_norm: float  # the norm to which larger gradients are clipped
    # Tokens read at a time; their gradients are summed until batch_size completions are read.
    micro_batch_tokens: int = field(metadata=IMMATERIAL)
    # Whether layers are computed anew in the backward pass, which takes a third more time and far
    # less memory; None: where a model of 1e9 parameters or more is trained on a GPU.
    checkpoint_layers: bool | None = field(default=None, kw_only=True, metadata=IMMATERIAL)

    def check(self, key: str) -> None:
        """Raises UserError for a value out of range; ``key`` is where the settings stand."""
        for name in ("epochs", "batch_size", "micro_batch_tokens"):
            value = getattr(self, name)
            require(value >= 1, f"{key}.{name} must be 1 or more; got {value}.")
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            require(
                math.isfinite(value) and value > 0, f"{key}.{name} must be above 0; got {value}."
            )
        require(
            0 <= self.final_learning_rate <= self.learning_rate,
            f"{key}.final_learning_rate={self.final_learning_rate} must be between 0 and the peak; "
            f"got {key}.learning_rate={self.learning_rate}. Lower the first or raise the second.",
        )
        require(
            0 <= self.warmup_fraction < 1,
            f"{key}.warmup_fraction must be at least 0 and below 1; got {self.warmup_fraction}.",
        )
        require(
            0 <= self.weight_decay < math.inf,
            f"{key}.weight_decay must be 0 or more; got {self.weight_decay}.",
        )


@dataclass(frozen=True)
class FineTuningConfig(LearnerConfig):
    """A learner of a policy's weights, or of adapters that are merged into them at the end."""

    trainable: str = field(default="all", kw_only=True, metadata=LATER)
    lora_rank: int = field(default=16, kw_only=True, metadata=LATER)  # with trainable=lora

    def check(self, key: str) -> None:
        super().check(key)
        require_one_of(f"{key}.trainable", self.trainable, TRAINABLE)
        require(self.lora_rank >= 1, f"{key}.lora_rank must be 1 or more; got {self.lora_rank}.")


def learners(settings: Any, key: str = "") -> Iterator[tuple[str, LearnerConfig]]:
    """All learners within a settings object, itself included, each with the key where it stands."""
    if isinstance(settings, LearnerConfig):
        yield key, settings
    for part in dataclasses.fields(settings):
        value = getattr(settings, part.name)
        if dataclasses.is_dataclass(value):
            yield from learners(value, f"{key}.{part.name}" if key else part.name)
