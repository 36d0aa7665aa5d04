"""The loss of each token, and how much it weighs: ratios, clipping, aggregation.

The names of the options ``ratio`` and ``aggregation`` are keys of ``RATIOS`` and ``AGGREGATIONS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.learning.functional import (
    detached_policy_loss,
    kl_k3,
    policy_loss,
    sequence_means,
    value_loss,
)
from reasonrl.policy_gradient.actor_critic import TokenOutputs
from reasonrl.policy_gradient.experience import Experience

# Takes the log-ratios of n tokens and the lengths that cut them into completions.
RATIOS: Mapping[str, Callable[[Tensor, Sequence[int]], Tensor]] = {
    "token": lambda log_ratio, lengths: log_ratio,  # noqa: ARG005
    "sequence": sequence_means,
}


@dataclass(frozen=True, slots=True)
class Minibatch:
    """The sizes of an optimizer step's minibatch, of which a batch is a part."""

    num_tokens: int
    num_completions: int
    max_new_tokens: int  # the most tokens of a completion

    @classmethod
    def of(cls, experience: Sequence[Experience], max_new_tokens: int) -> Minibatch:
        """The sizes of what an optimizer step learns from."""
        return cls(
            sum(one.num_tokens for one in experience),
            sum(len(one.group.completion_ids) for one in experience),
            max_new_tokens,
        )

    def token(self, lengths: Sequence[int]) -> Tensor:  # noqa: ARG002
        """All tokens weigh the same."""
        return torch.ones(())

    def sequence(self, lengths: Sequence[int]) -> Tensor:
        """All completions weigh the same."""
        sizes = torch.tensor(lengths, dtype=torch.float32)
        weights = self.num_tokens / (self.num_completions * sizes)
        return weights.repeat_interleave(torch.tensor(lengths))

    def constant(self, lengths: Sequence[int]) -> Tensor:  # noqa: ARG002
        """All tokens weigh what one of the longest possible completions does."""
        return torch.tensor(self.num_tokens / (self.num_completions * self.max_new_tokens))


# Gives the weights of a batch's tokens in the mean over the minibatch's, from their lengths.
AGGREGATIONS: Mapping[str, Callable[[Minibatch, Sequence[int]], Tensor]] = {
    "token": Minibatch.token,
    "sequence": Minibatch.sequence,
    "constant": Minibatch.constant,
}


def token_losses(
    new: TokenOutputs,
    old: Mapping[str, Tensor],
    lengths: Sequence[int],
    config: PPOConfig,
    kl_coef: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss (n,) of each token, and the metrics (n,) of each.

    old: the fields of ``TokenData`` for the same tokens.
    lengths: those of the completions.
    """
    low = config.clip_range
    high = low if config.clip_range_high is None else config.clip_range_high
    log_ratio = RATIOS[config.ratio](new.logprobs - old["old_logprobs"], lengths)
    if config.clip_detached:
        loss = detached_policy_loss(new.logprobs, log_ratio, old["advantages"], low, high)
    else:
        loss = policy_loss(log_ratio, old["advantages"], low, high)
    metrics = {"policy_loss": loss}
    if config.value_coef is not None:
        of_value = value_loss(
            new.values, old["old_values"], old["returns"], config.value_clip_range
        )
        loss = loss + config.value_coef * of_value
        metrics |= {"value_loss": of_value}
    with torch.no_grad():
        ratio = log_ratio.exp()
        metrics |= {
            "ratio": ratio,
            "approx_kl": kl_k3(old["old_logprobs"], new.logprobs),
            "clip_fraction": (ratio - 1 > high) | (1 - ratio > low),
        }
        if config.value_coef is not None:
            moved = (new.values - old["old_values"]).abs()
            metrics |= {"value_clip_fraction": moved > (config.value_clip_range or torch.inf)}
    if config.entropy_coef:
        loss = loss - config.entropy_coef * new.entropy
    if config.kl_penalty == "loss":
        loss = loss + kl_coef * kl_k3(new.logprobs, old["ref_logprobs"])
    return loss, {name: x.detach().cpu() for name, x in metrics.items()}
