"""A reward model's verdict as a reward: at the end, or at each step (paper, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reasonrl.config.reward.learned import LearnedConfig
from reasonrl.grading.base import Grader
from reasonrl.grading.steps import step_tokens
from reasonrl.rewards.base import Materials, Reward, Sum, TokenRewards
from reasonrl.rewards.sparse import Outcome
from reasonrl.runs.process import ALONE, Process
from reasonrl.types import Completion, Problem, Rollout

if TYPE_CHECKING:
    from reasonrl.reward_models.model import RewardModel


@dataclass(frozen=True)
class Learned:
    """``weight`` times the probability of a right answer, paid as ``at`` says.

    A completion's score is between 0 and ``weight``.
    """

    model: RewardModel
    weight: float
    # end: p(a) on the last token (the paper's sparse ORM).
    # steps: p(a_1..i) / n on the last token of each of the n steps (dense ORM). The paper doesn't
    #     say how its steps are weighted; divided by n, no completion gains by having more steps.
    # differences: p(a_1..i) − p(a_1..i−1) on the same tokens, with p = 0 before the first step; the
    #     sum is p(a).
    at: str
    grader: Grader
    process: Process = ALONE  # one of those that judge steps together; each pays its own rollouts

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
            closing = step_tokens(self.model.tokenizer, completion, self.grader)
            at_steps = probabilities[closing]
            rewards[closing] = (
                at_steps / len(closing) if self.at == "steps" else np.diff(at_steps, prepend=0.0)
            )
        return tuple((self.weight * rewards).tolist())

    def judge_steps(
        self,
        rollouts: Sequence[Rollout],
        problems: Sequence[Problem],
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[float]]:
        """P(right) after each step, by the reward model."""
        completions = [rollout.completion for rollout in rollouts]
        probabilities = self.model.token_probabilities(
            completions, problems, on_progress, self.process
        )
        return [
            p[step_tokens(self.model.tokenizer, completion, self.grader)].tolist()
            for p, completion in zip(probabilities, completions, strict=True)
        ]


def build(settings: LearnedConfig, materials: Materials) -> Reward:
    """The reward that these settings describe. Raises ValueError without a reward model."""
    if materials.reward_model is None:
        raise ValueError("a learned reward needs its reward model")
    grader = materials.grader
    learned = Learned(
        materials.reward_model, settings.model_weight, settings.at, grader, materials.process
    )
    return Sum((Outcome(grader, settings.outcome_weight), learned))
