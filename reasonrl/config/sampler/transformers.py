"""The settings of the engine on transformers' models: see ``sampling.transformers``."""

from __future__ import annotations

from dataclasses import dataclass

from reasonrl.config.sampler.base import SamplerConfig


@dataclass(frozen=True)
class TransformersConfig(SamplerConfig):
    """A decoding loop that shares each prompt between its samples."""

    is_tried = True
