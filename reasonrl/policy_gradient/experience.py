"""What PPO learns from: completions with what was known of each token when it was sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.learning.functional import (
    entropy,
    explained_variance,
    masked_mean,
    padded,
    token_logprobs,
)
from reasonrl.learning.packed import PromptGroup, completion_logits
from reasonrl.learning.supervised import micro_batches
from reasonrl.policy_gradient.actor_critic import ActorCritic
from reasonrl.sampling.rollouts import completions_statistics
from reasonrl.types import Rollout


@dataclass(frozen=True, slots=True)
class TokenData:
    """Numbers for each token of one completion, or of several one after another; each (T,)."""

    old_logprobs: Tensor  # of the policy that sampled it
    ref_logprobs: Tensor  # of the reference policy
    old_values: Tensor  # of the state before it, when it was sampled
    advantages: Tensor  # whitened
    returns: Tensor  # what the values should be


@dataclass(frozen=True, slots=True)
class Experience:
    """A question's completions to learn from, and the numbers of their tokens in the same order."""

    group: PromptGroup
    tokens: TokenData

    @property
    def num_tokens(self) -> int:
        """Of the completions."""
        return len(self.tokens.returns)

    def __len__(self) -> int:
        return len(self.group)


def token_data(batch: Sequence[Experience]) -> dict[str, Tensor]:
    """The fields of TokenData for all tokens of the batch, one completion after another."""
    names = TokenData.__slots__
    return {name: torch.cat([getattr(one.tokens, name) for one in batch]) for name in names}


def experiences(rollouts: Sequence[Rollout], tokens: Mapping[str, Tensor]) -> list[Experience]:
    """The inverse of ``token_data``: each field's tensor, of all rollouts, cut into questions."""
    groups = by_question(rollouts)
    lengths = [sum(map(len, group.completion_ids)) for group in groups]
    cut = {name: values.split(lengths) for name, values in tokens.items()}
    return [
        Experience(group, TokenData(**{name: x[i] for name, x in cut.items()}))
        for i, group in enumerate(groups)
    ]


def by_question(rollouts: Sequence[Rollout]) -> list[PromptGroup]:
    """The prompts with their completions; rollouts of a question stand one after another."""
    groups = [list(group) for _, group in groupby(rollouts, key=lambda r: r.prompt)]
    return [
        PromptGroup(group[0].prompt.token_ids, tuple(r.completion.token_ids for r in group))
        for group in groups
    ]


def trainable(rollouts: Sequence[Rollout], *, mask_truncated: bool) -> list[Rollout]:
    """Those with tokens to learn from; with ``mask_truncated`` none that were cut off."""
    return [
        rollout
        for rollout in rollouts
        if rollout.completion.token_ids
        and not (mask_truncated and rollout.completion.finish_reason == "length")
    ]


@dataclass
class Moments:
    """Running mean and variance (Welford 1962; batches merged as in Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # Σ (x − mean)²

    def update(self, values: Tensor) -> None:
        """values: (n,), n > 0."""
        n, mean = values.numel(), values.double().mean().item()
        squares = (values.double() - mean).square().sum().item()
        total, delta = self.count + n, mean - self.mean
        self.squares += squares + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    @property
    def std(self) -> float:
        """Population standard deviation; 1 where nothing has varied yet."""
        return math.sqrt(self.squares / self.count) if self.squares > 0 else 1.0


def shaped_rewards(rollouts: Sequence[Rollout], config: PPOConfig, scores: Moments) -> Tensor:
    """The rewards of each token, (B, T), 0 at padding, as the settings change them.

    truncation_penalty is taken off the last token of completions that were cut off. Then, with
    scale_scores, all is divided by the standard deviation of the scores so far, which ``scores``
    keeps; then the rewards of a completion whose score is beyond ± score_clip are multiplied by
    what brings it there.
    """
    rewards = padded(r.rewards for r in rollouts)
    for row, rollout in enumerate(rollouts):
        if rollout.completion.finish_reason == "length":
            rewards[row, len(rollout.rewards) - 1] -= config.truncation_penalty
    scores.update(rewards.sum(dim=1))
    if config.scale_scores:
        rewards = rewards / scores.std
    if config.score_clip is not None:
        size = rewards.sum(dim=1, keepdim=True).abs()
        rewards = rewards * (config.score_clip / size).clamp(max=1.0)  # x / 0 = inf: as it is
    return rewards


@dataclass(frozen=True, slots=True)
class Annotations:
    """What policy, reference and value function say of B completions: (B, T), 0 at padding."""

    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    entropy: Tensor  # of the policy's distribution before each token, in nats
    loss_mask: Tensor  # bool, True at real tokens


@torch.no_grad()
def annotate(
    model: ActorCritic,
    reference: PreTrainedModel,
    rollouts: Sequence[Rollout],
    temperature: float,
    max_tokens: int,
    compute_dtype: torch.dtype,
) -> Annotations:
    """Logprobs and entropy are at ``temperature``, the reference's too.

    max_tokens: of a micro-batch, as in ``supervised.micro_batches``.
    """
    groups = [
        _Numbered(a.prompt_ids, a.completion_ids, i) for i, a in enumerate(by_question(rollouts))
    ]
    found: dict[int, list[Tensor]] = {}  # of each question: of each completion
    for batch in micro_batches(groups, max_tokens):
        outputs = model(batch, compute_dtype)
        ref_logits = completion_logits(reference, batch, compute_dtype)
        columns = torch.stack(
            [
                token_logprobs(outputs.logits, outputs.token_ids, temperature),
                token_logprobs(ref_logits, outputs.token_ids, temperature),
                outputs.values,
                entropy(outputs.logits, temperature),
                torch.ones_like(outputs.values),
            ],
            dim=1,
        ).cpu()
        for group in batch:
            lengths = [len(ids) for ids in group.completion_ids]
            mine, columns = columns.split([sum(lengths), len(columns) - sum(lengths)])
            found[group.number] = [*mine.split(lengths)]
    completions = [x for i in range(len(groups)) for x in found[i]]
    logprobs, ref_logprobs, values, entropies, real = pad_sequence(
        completions, batch_first=True
    ).unbind(dim=2)
    return Annotations(logprobs, ref_logprobs, values, entropies, real.bool())


@dataclass(frozen=True, slots=True)
class _Numbered(PromptGroup):
    number: int


def experience_statistics(
    rollouts: Sequence[Rollout],
    num_samples_per_prompt: int,
    annotations: Annotations,
    advantages: Tensor,
    returns: Tensor,
    prefix: str,
) -> dict[str, float]:
    """What to log of an iteration's rollouts and tokens; see the glossary of metrics.

    rollouts: grouped by question. advantages, returns: (B, T), not whitened, of those annotated.
    prefix: of the names of what isn't about the rollouts alone.
    """
    mask = annotations.loss_mask
    scores = torch.tensor([r.score for r in rollouts]).view(-1, num_samples_per_prompt)
    return {
        **{f"rollout/{name}": x for name, x in completions_statistics(rollouts).items()},
        f"{prefix}/score_std": scores.std(correction=0).item(),
        f"{prefix}/unequal_questions": (scores.amax(1) > scores.amin(1)).float().mean().item(),
        f"{prefix}/entropy": masked_mean(annotations.entropy, mask).item(),
        f"{prefix}/value_mean": masked_mean(annotations.values, mask).item(),
        f"{prefix}/return_mean": masked_mean(returns, mask).item(),
        f"{prefix}/advantage_mean": masked_mean(advantages, mask).item(),
        f"{prefix}/advantage_std": advantages[mask].std(correction=0).item(),
        f"{prefix}/explained_variance": explained_variance(annotations.values, returns, mask),
    }
