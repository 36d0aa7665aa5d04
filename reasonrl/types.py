"""The nouns of the project. One word for one thing, everywhere.

A *problem* is asked as a *prompt*, answered by *completions*; a completion with its score is a
*rollout*. Token ids travel unchanged from the sampler to the learner; text is for graders and
people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its gold answer.

    id: unique within a dataset, stable across machines, e.g. ``gsm8k-train-17``.
    answer: the gold answer in canonical form (see ``answers.canonical_number``).
    solution: the reference solution in GSM8K's format, its last line ``#### <answer>``.
    """

    id: str
    question: str
    answer: str
    solution: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy reads before it answers: the token ids of one problem's prompt."""

    problem_id: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    token_ids: exactly the sampled ids. Ends with the EOS id if finish_reason is ``eos``. Where a
        stop string ended it, holds only the tokens that lie wholly before the stop string.
    logprobs: of each token in ``token_ids``, at the sampling temperature: log_softmax(logits / T)
        (greedy: log_softmax(logits)).
    finish_reason: ``eos`` or ``stop`` (a stop string) ended it, or ``length``: it was cut off.
    text: ``token_ids`` decoded without special tokens, for graders and people only.
    """

    problem_id: str
    sample_index: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    text: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt, a completion and its verdict.

    answer: the answer read from the completion, in canonical form; None if it could not be parsed.
    correct: whether that is the gold answer, whatever the reward.
    rewards: one per token of the completion; their sum is its score.
    """

    prompt: Prompt
    completion: Completion
    answer: str | None
    correct: bool
    rewards: tuple[float, ...]

    @property
    def score(self) -> float:
        """One number per completion; under the sparse reward 1.0 for a right answer, else 0.0."""
        return math.fsum(self.rewards)


@dataclass(frozen=True)
class SavedPolicy:
    """Where a policy is, and how it is asked."""

    path: str  # a folder or hub id
    few_shot: bool  # whether it is asked with exemplars
    # It is asked with one of these before each step: the ids of each, from the worst to the best.
    # Where there are none, it is asked without.
    labels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def step_label(self) -> tuple[int, ...]:
        """The ids of the best label; () without labels."""
        return tuple(list(self.labels.values())[-1]) if self.labels else ()

    def under_the_worst(self) -> SavedPolicy:
        """Asked with the worst label instead."""
        return replace(self, labels=dict(list(self.labels.items())[:1]))
