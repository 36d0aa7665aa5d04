"""What PPO learns from: completions with what was known of each token when it was sampled."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.learning.functional import padded
from reasonrl.learning.packed import PromptGroup
from reasonrl.learning.supervised import shares
from reasonrl.policy_gradient.actor_critic import ActorCritic, ReadReference
from reasonrl.runs.process import ALONE, Process
from reasonrl.types import Rollout


@dataclass(frozen=True, slots=True)
class TokenData:
    """The numbers of all tokens of one or several completions, in order; each tensor is (T,)."""

    old_logprobs: Tensor  # of the policy that sampled the token
    ref_logprobs: Tensor  # of the reference policy
    old_values: Tensor  # of the state before the token, when the token was sampled
    advantages: Tensor  # whitened
    returns: Tensor  # the targets of the value function


FIELDS = TokenData.__slots__


@dataclass(frozen=True, slots=True)
class Experience:
    """A question's completions to learn from, and the numbers of their tokens in the same order."""

    group: PromptGroup
    tokens: TokenData

    @property
    def num_tokens(self) -> int:
        """The number of the completions' tokens."""
        return len(self.tokens.returns)

    def __len__(self) -> int:
        return len(self.group)

    def apart(self) -> list[Experience]:
        """Each completion's part."""
        groups = self.group.apart()
        return _experiences(groups, {name: getattr(self.tokens, name) for name in FIELDS})


def token_data(batch: Sequence[Experience]) -> dict[str, Tensor]:
    """The fields of TokenData for all tokens of the batch, one completion after another."""
    return {name: torch.cat([getattr(one.tokens, name) for one in batch]) for name in FIELDS}


def experiences(rollouts: Sequence[Rollout], tokens: Mapping[str, Tensor]) -> list[Experience]:
    """The inverse of ``token_data``: cuts the tensor of each field into the rollouts' questions."""
    return _experiences(by_question(rollouts), tokens)


def _experiences(groups: Sequence[PromptGroup], tokens: Mapping[str, Tensor]) -> list[Experience]:
    lengths = [sum(map(len, group.completion_ids)) for group in groups]
    cut = {name: values.split(lengths) for name, values in tokens.items()}
    return [
        Experience(group, TokenData(**{name: x[i] for name, x in cut.items()}))
        for i, group in enumerate(groups)
    ]


def by_question(rollouts: Sequence[Rollout]) -> list[PromptGroup]:
    """The prompts with their completions.

    The rollouts of a question have to stand one after another.
    """
    groups = [list(group) for _, group in groupby(rollouts, key=lambda r: r.prompt)]
    return [
        PromptGroup(group[0].prompt.token_ids, tuple(tuple(r.completion.token_ids) for r in group))
        for group in groups
    ]


def trainable(rollouts: Sequence[Rollout], *, mask_truncated: bool) -> list[Rollout]:
    """The rollouts with tokens to learn from; with ``mask_truncated`` none that was cut off."""
    return [
        rollout
        for rollout in rollouts
        if rollout.completion.token_ids
        and not (mask_truncated and rollout.completion.finish_reason == "length")
    ]


def questions(rollouts: Sequence[Rollout], which: str, count: int) -> list[Rollout]:
    """The rollouts of the questions to learn from, of the first ``count`` of them at most.

    which: ``all`` questions, or ``mixed`` ones alone, whose completions differ in score: the others
        have no advantage in a group's mean (DAPO, Yu et al. 2025, section 3.2).
    """
    groups = [list(group) for _, group in groupby(rollouts, key=lambda r: r.prompt)]
    if which == "mixed":
        groups = [group for group in groups if len({r.score for r in group}) > 1]
    return list(chain.from_iterable(groups[:count]))


def numbered(names: Iterable[str]) -> list[int]:
    """The number of each name among the names that differ, from 0, in order."""
    number: dict[str, int] = {}
    return [number.setdefault(name, len(number)) for name in names]


@dataclass
class Moments:
    """A running mean and variance (Welford 1962; batches are merged as in Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # Σ (x − mean)²

    def update(self, values: Tensor) -> None:
        """Adds values (n,), n > 0."""
        n, mean = values.numel(), values.double().mean().item()
        squares = (values.double() - mean).square().sum().item()
        total, delta = self.count + n, mean - self.mean
        self.squares += squares + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    @property
    def std(self) -> float:
        """The population standard deviation; 1 as long as nothing has varied."""
        return math.sqrt(self.squares / self.count) if self.squares > 0 else 1.0


def shaped_rewards(rollouts: Sequence[Rollout], config: PPOConfig, scores: Moments) -> Tensor:
    """The rewards of each token (B, T), as the settings change them; they are 0 at padding.

    1. truncation_penalty is taken off the last token of each completion that was cut off.
    2. With scale_scores all rewards are divided by the standard deviation of the scores so far,
       which ``scores`` keeps.
    3. If a completion's score is beyond ± score_clip, its rewards are scaled to bring it there.
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
        rewards = rewards * (config.score_clip / size).clamp(max=1.0)  # x / 0 = inf becomes 1
    return rewards


@dataclass(frozen=True, slots=True)
class Annotations:
    """What policy, reference and value function say of B completions.

    Each tensor is (B, T), and 0 at padding.
    """

    logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    entropy: Tensor  # of the policy's distribution before each token, in nats
    loss_mask: Tensor  # bool, True at real tokens


@torch.no_grad()
def annotate(
    model: ActorCritic,
    reference: ReadReference,
    rollouts: Sequence[Rollout],
    temperature: float,
    max_tokens: int,
    compute_dtype: torch.dtype,
    process: Process = ALONE,
) -> Annotations:
    """Reads the rollouts with the model and with the reference.

    temperature: that of logprobs and entropy, also of the reference's.
    max_tokens: the most tokens of a micro-batch, see ``supervised.micro_batches``.
    process: one of the processes that each read a share, and then all have the same annotations.
    """
    groups = model.layout.rows(by_question(rollouts))
    numbered = [_Numbered(a.prompt_ids, a.completion_ids, i) for i, a in enumerate(groups)]
    mine: list[tuple[list[int], Tensor]] = []  # questions by number, and columns of their tokens
    for batch, weight in shares(numbered, max_tokens, process):
        outputs = model(batch, compute_dtype, temperature, with_entropy=True)
        columns = torch.stack(
            [
                outputs.logprobs,
                reference(batch, compute_dtype, temperature),
                outputs.values,
                outputs.entropy,
                torch.ones_like(outputs.values),
            ],
            dim=1,
        ).cpu()
        if weight:
            mine.append(([question.number for question in batch], columns))
    found: dict[int, list[Tensor]] = {}  # by question, the columns of each of its completions
    for numbers, columns in chain.from_iterable(process.gather(mine)):
        for number in numbers:
            lengths = [len(ids) for ids in groups[number].completion_ids]
            its, columns = columns.split([sum(lengths), len(columns) - sum(lengths)])
            found[number] = [*its.split(lengths)]
    completions = [x for i in range(len(groups)) for x in found[i]]
    logprobs, ref_logprobs, values, entropies, real = pad_sequence(
        completions, batch_first=True
    ).unbind(dim=2)
    return Annotations(logprobs, ref_logprobs, values, entropies, real.bool())


@dataclass(frozen=True, slots=True)
class _Numbered(PromptGroup):
    number: int
