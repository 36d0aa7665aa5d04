"""The nouns of the project: each thing has one name everywhere.

A *problem* is asked as a *prompt*, answered by *completions*; a completion with its score is a
*rollout*. Token ids travel unchanged from the sampler to the learner; text is for graders and
people.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

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
class SparseNumbers(Sequence[float]):
    """A sequence that is 0 but for few numbers, in the space of these few."""

    length: int
    places: tuple[int, ...]  # where it isn't 0, ascending
    values: tuple[float, ...]  # what is there

    @classmethod
    def of(cls, numbers: Sequence[float]) -> SparseNumbers:
        """The sequence of these numbers."""
        if isinstance(numbers, SparseNumbers):
            return numbers
        places = tuple(place for place, number in enumerate(numbers) if number)
        return cls(len(numbers), places, tuple(float(numbers[place]) for place in places))

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[float]:
        numbers = [0.0] * self.length
        for place, value in zip(self.places, self.values, strict=True):
            numbers[place] = value
        return iter(numbers)

    def __getitem__(self, index: Any) -> Any:
        return [*self][index]


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer.

    Its numbers may be given as any sequence; they are kept as arrays (``array.array``), in a tenth
    of the space of tuples, since a run has a million completions.
    """

    problem_id: str
    sample_index: int
    # Exactly the sampled ids. They end with the EOS id if finish_reason is ``eos``. Where a stop
    # string ended the completion, they are only the tokens that lie wholly before the stop string.
    token_ids: Sequence[int]  # int32
    # One for each token, at the sampling temperature T: log_softmax(logits / T), or
    # log_softmax(logits) where decoding is greedy.
    logprobs: Sequence[float]  # float32
    finish_reason: FinishReason  # what ended it: EOS, a stop string, or ``length``: it was cut off
    text: str  # ``token_ids`` decoded without special tokens, for graders and people only

    def __post_init__(self) -> None:
        for name, typecode in (("token_ids", "i"), ("logprobs", "f")):
            numbers = getattr(self, name)
            if not isinstance(numbers, array):
                object.__setattr__(self, name, array(typecode, numbers))


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt, a completion and its verdict.

    Rewards may be given as any sequence; they are kept as ``SparseNumbers``.
    """

    prompt: Prompt
    completion: Completion
    answer: str | None  # read from the completion, in canonical form; None if it can't be parsed
    correct: bool  # whether ``answer`` is the gold answer, whatever the reward
    rewards: Sequence[float]  # one for each token of the completion
    # Whether it couldn't be decided in time if ``answer`` is the gold one: it then counts as wrong.
    undecided: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rewards", SparseNumbers.of(self.rewards))

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
