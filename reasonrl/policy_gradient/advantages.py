"""How much better each token is than what was to be expected: baselines and scales.

    critic              generalised advantages under the value function, token by token
    none                Â = the completion's score
    group_mean          Â = score − the mean of the question's completions
    leave_one_out       Â = score − the mean of the question's other completions
    greedy              Â = score − that of the question's greedy completion
    step_continuations  Â = V(after the step) − V(before it), V by continuations

With all but the first and the last a completion is one action: its score is the sum of its rewards,
and all of its tokens have the same advantage. Then Â is divided

    none                by nothing
    group_std           by the standard deviation of the question's scores, plus 10⁻⁶; where that
                        deviation is 0, Â = 0
    group_mean          by their mean; where that isn't positive, Â = 0
    batch_std           by that of all tokens, whose mean is taken off before

The names of the options are keys of ``BASELINES`` and ``SCALES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.learning.functional import (
    generalized_advantages,
    group_means,
    group_stds,
    means_of_the_others,
    step_advantages,
    whiten,
)

STD_EPSILON = 1e-6  # as in verl's GRPO; TRL has 1e-4


@dataclass(frozen=True, slots=True)
class Steps:
    """What continuations say of one completion."""

    starts: tuple[int, ...]  # the first token of each step
    values: tuple[float, ...]  # the mean score of what continues from there


@dataclass(frozen=True, slots=True)
class Scored:
    """B completions with their rewards, and what a baseline may be taken from."""

    rewards: Tensor  # (B, T), 0 at padding
    loss_mask: Tensor  # (B, T)
    values: Tensor  # (B, T), by the value function
    groups: Tensor  # (B,), the number of each one's question
    greedy: Tensor | None = None  # (B,), the score of the question's greedy completion
    steps: Sequence[Steps] | None = None  # of each completion

    @property
    def scores(self) -> Tensor:
        """(B,), the sum of each completion's rewards, whatever tokens they are paid at."""
        return self.rewards.sum(dim=1, dtype=torch.float64).to(self.rewards.dtype)

    def of_tokens(self, values: Tensor) -> Tensor:
        """A number of each completion as that of each of its tokens: (B,) -> (B, T)."""
        return values[:, None] * self.loss_mask


# Gives the advantages and the returns of all tokens, (B, T) each.
Baseline = Callable[[Scored, PPOConfig], tuple[Tensor, Tensor]]


def _critic(scored: Scored, config: PPOConfig) -> tuple[Tensor, Tensor]:
    assert config.gae_lambda is not None
    return generalized_advantages(
        scored.rewards, scored.values, scored.loss_mask, config.gamma, config.gae_lambda
    )


def _steps(scored: Scored, config: PPOConfig) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    assert scored.steps is not None
    values, starts = [s.values for s in scored.steps], [s.starts for s in scored.steps]
    length = scored.rewards.shape[1]
    advantages = step_advantages(values, starts, scored.scores, length)
    return advantages.masked_fill(~scored.loss_mask, 0.0), scored.of_tokens(scored.scores)


def _one_action(baseline: Callable[[Scored], Tensor]) -> Baseline:
    """The advantages of completions that are one action each; ``baseline`` gives (B,)."""

    def of_scores(scored: Scored, config: PPOConfig) -> tuple[Tensor, Tensor]:  # noqa: ARG001
        scores = scored.scores
        return scored.of_tokens(scores - baseline(scored)), scored.of_tokens(scores)

    return of_scores


def _greedy(scored: Scored) -> Tensor:
    assert scored.greedy is not None
    return scored.greedy


BASELINES: Mapping[str, Baseline] = {
    "critic": _critic,
    "none": _one_action(lambda scored: torch.zeros_like(scored.scores)),
    "group_mean": _one_action(lambda scored: group_means(scored.scores, scored.groups)),
    "leave_one_out": _one_action(lambda scored: means_of_the_others(scored.scores, scored.groups)),
    "greedy": _one_action(_greedy),
    "step_continuations": _steps,
}


def _by_group_std(advantages: Tensor, scored: Scored, config: PPOConfig) -> Tensor:  # noqa: ARG001
    stds = group_stds(scored.scores, scored.groups)[:, None]
    return torch.where(stds > 0, advantages / (stds + STD_EPSILON), 0.0)


def _by_group_mean(advantages: Tensor, scored: Scored, config: PPOConfig) -> Tensor:  # noqa: ARG001
    means = group_means(scored.scores, scored.groups)[:, None]
    return torch.where(means > 0, advantages / means, 0.0)


def _by_batch_std(advantages: Tensor, scored: Scored, config: PPOConfig) -> Tensor:
    mask = scored.loss_mask
    return whiten(advantages, torch.ones_like(mask) if config.compat.unmasked_whitening else mask)


SCALES: Mapping[str, Callable[[Tensor, Scored, PPOConfig], Tensor]] = {
    "none": lambda advantages, scored, config: advantages,  # noqa: ARG005
    "group_std": _by_group_std,
    "group_mean": _by_group_mean,
    "batch_std": _by_batch_std,
}
