"""From prompts to completions: ``open_engine(policy.path, config, device).sample(prompts, …)``."""

from __future__ import annotations

import torch

from reasonrl.config import sampler as declared
from reasonrl.config.base import check_listed
from reasonrl.config.schema import EvaluateConfig
from reasonrl.policy.policy import Policy
from reasonrl.policy.speed import warn_where_slow
from reasonrl.sampling.base import Engine, Sampler, SamplingParams
from reasonrl.sampling.transformers import TransformersEngine
from reasonrl.sampling.vllm import VLLMEngine

__all__ = ["ENGINES", "Engine", "Sampler", "SamplingParams", "TransformersEngine", "open_engine"]

ENGINES: dict[str, type[Engine]] = {  # by the option's name
    "transformers": TransformersEngine,
    "vllm": VLLMEngine,
}
check_listed("engine", declared.SAMPLERS, ENGINES)


def open_engine(source: str | Policy, config: EvaluateConfig, device: torch.device) -> Engine:
    """The engine that ``config.sampler`` names, of a policy: see ``Engine.open``.

    It warns of a dtype that is slow here, see ``warn_where_slow``.
    """
    config.sampler.check_installed()
    warn_where_slow(config.model.compute_dtype, device)
    engine = ENGINES[config.sampler.name]
    return engine.open(source, config.sampler, dtype=config.model.compute_dtype, device=device)
