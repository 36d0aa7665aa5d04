"""From prompts to completions: ``make_sampler(config.sampler, policy).sample(prompts, params)``."""

from __future__ import annotations

from reasonrl.config.sampler.base import SamplerConfig
from reasonrl.policy.policy import Policy
from reasonrl.sampling.base import Sampler, SamplingParams
from reasonrl.sampling.transformers_engine import TransformersSampler

__all__ = ["Sampler", "SamplingParams", "TransformersSampler", "make_sampler"]

SAMPLERS = {"transformers": TransformersSampler}


def make_sampler(config: SamplerConfig, policy: Policy) -> Sampler:
    """The engine that ``config`` names, for a policy."""
    engine = SAMPLERS[config.name]
    return engine(policy.model, policy.tokenizer, batch_size=config.batch_size)
