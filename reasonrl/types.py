"""The nouns of the project: each thing has one name everywhere.

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
    """A question with its gold answer."""

    id: str  # unique within a dataset, stable across machines, e.g. ``gsm8k-train-17``
    question: str
    answer: str  # the gold answer, as the dataset's grader writes answers
    solution: str  # the reference solution, in the form that the dataset's grader reads


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the policy reads before it answers: the token ids of one problem's prompt."""

    problem_id: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer."""

    problem_id: str
    sample_index: int
    # Exactly the sampled ids. They end with the EOS id if finish_reason is ``eos``. Where a stop
    # string ended the completion, they are only the tokens that lie wholly before the stop string.
    token_ids: tuple[int, ...]
    # One for each token, at the sampling temperature T: log_softmax(logits / T), or
    # log_softmax(logits) where decoding is greedy.
    logprobs: tuple[float, ...]
    finish_reason: FinishReason  # what ended it: EOS, a stop string, or ``length``: it was cut off
    text: str  # ``token_ids`` decoded without special tokens, for graders and people only


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt, a completion and its verdict."""

    prompt: Prompt
    completion: Completion
    answer: str | None  # read from the completion, in canonical form; None if it can't be parsed
    correct: bool  # whether ``answer`` is the gold answer, whatever the reward
    rewards: tuple[float, ...]  # one for each token of the completion

    @property
    def score(self) -> float:
        """The sum of the rewards: under the sparse reward 1.0 for a right answer, else 0.0."""
        return math.fsum(self.rewards)


@dataclass(frozen=True)
class SavedPolicy:
    """Where a policy is, and how it is asked."""

    path: str  # a folder or hub id
    few_shot: bool  # whether it is asked with exemplars
    # The token ids of each return label, from the worst label to the best. The policy is asked with
    # the best label before each step; where there are no labels, it is asked without one.
    labels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def step_label(self) -> tuple[int, ...]:
        """The token ids of the best label; () without labels."""
        return tuple(list(self.labels.values())[-1]) if self.labels else ()

    def under_the_worst(self) -> SavedPolicy:
        """The same policy, asked with the worst label instead of the best."""
        return replace(self, labels=dict(list(self.labels.items())[:1]))
