"""The settings of sampling engines, by the name of the option."""

from __future__ import annotations

from reasonrl.config.sampler.base import SamplerConfig
from reasonrl.config.sampler.transformers import TransformersConfig
from reasonrl.config.sampler.vllm import VLLMConfig

SAMPLERS: dict[str, type[SamplerConfig]] = {"transformers": TransformersConfig, "vllm": VLLMConfig}
