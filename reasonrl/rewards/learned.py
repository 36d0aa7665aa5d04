"""A reward model's verdict as a reward: at the end, or at each step (paper, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reasonrl.rewards.base import TokenRewards
from reasonrl.rewards.reward_model import RewardModel
from reasonrl.sampling.steps import step_tokens
from reasonrl.types import Completion, Problem


@dataclass(frozen=True)
class Learned:
    """``weight`` times the probability of a right answer, paid as ``at`` says.

    end: p(a) on the last token (the paper's sparse ORM).
    steps: p(a_1..i) / n on the last token of each of the n steps (dense ORM). The paper doesn't say
        how its steps are weighted; divided by n, no completion gains by having more of them.
    differences: p(a_1..i) − p(a_1..i−1) there, with p = 0 before the first: the sum is p(a).

    So a completion's score is between 0 and ``weight``.
    """

    model: RewardModel
    weight: float
    at: str

    def __call__(
        self, completions: Sequence[Completion], problems: Sequence[Problem]
    ) -> list[TokenRewards]:
        probabilities = self.model.token_probabilities(completions, problems)
        return [self._pay(c, p) for c, p in zip(completions, probabilities, strict=True)]

    def _pay(self, completion: Completion, probabilities: np.ndarray) -> TokenRewards:
        rewards = np.zeros(len(completion.token_ids))
        if self.at == "end":
            rewards[-1:] = probabilities[-1:]
        else:
            closing = step_tokens(self.model.tokenizer, completion)
            at_steps = probabilities[closing]
            rewards[closing] = (
                at_steps / len(closing) if self.at == "steps" else np.diff(at_steps, prepend=0.0)
            )
        return tuple((self.weight * rewards).tolist())
