"""What the log says of an iteration, and of an optimizer step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.learning.functional import explained_variance, masked_mean
from reasonrl.policy_gradient.experience import Annotations
from reasonrl.rewards.verdicts import completions_statistics
from reasonrl.types import Rollout


def rollouts_record(rollouts: Sequence[Rollout], config: PPOConfig) -> dict[str, float]:
    """The metrics of all rollouts of an iteration, grouped by question."""
    scores = torch.tensor([r.score for r in rollouts]).view(-1, config.num_samples_per_prompt)
    return {
        **{f"rollout/{name}": x for name, x in completions_statistics(rollouts).items()},
        "pg/score_std": scores.std(correction=0).item(),
        "pg/unequal_questions": (scores.amax(1) > scores.amin(1)).float().mean().item(),
    }


def tokens_record(
    config: PPOConfig,
    annotations: Annotations,
    sampled: Tensor,
    advantages: Tensor,
    scaled: Tensor,
    returns: Tensor,
    weights: Tensor,
) -> dict[str, float]:
    """The metrics of the tokens that an iteration learns from; each tensor is (B, T).

    sampled: the log-probabilities that the sampler gave them.
    advantages, scaled: before scale, and after it.
    weights: what corrects for the sampler.
    """
    mask = annotations.loss_mask

    def mean(values: Tensor) -> float:
        return masked_mean(values, mask).item()

    record = {
        "pg/entropy": mean(annotations.entropy),
        "pg/sampler_logprob_gap": mean((sampled - annotations.logprobs).abs()),
        "pg/return_mean": mean(returns),
        "pg/advantage_mean": mean(advantages),
        "pg/advantage_std": advantages[mask].std(correction=0).item(),
        "pg/nonzero_advantages": mean((scaled != 0).float()),
    }
    if config.baseline == "critic":
        values = annotations.values
        record["pg/value_mean"] = mean(values)
        record["pg/explained_variance"] = explained_variance(values, returns, mask)
    if config.off_policy_correction != "none":
        record["pg/off_policy_weight"] = mean(weights)
    return record


def step_record(parts: Iterable[Sequence[Mapping[str, Tensor]]]) -> dict[str, float]:
    """The means of an optimizer step's metrics over its tokens, and the ratios' extremes.

    parts: by process, the metrics of the tokens of each of its batches.
    """
    found = list(chain.from_iterable(parts))
    tokens = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    ratio = tokens.pop("ratio")
    return {
        "pg/ratio_min": ratio.min().item(),
        "pg/ratio_max": ratio.max().item(),
        **{f"pg/{name}": x.float().mean().item() for name, x in tokens.items()},
    }
