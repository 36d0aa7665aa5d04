"""How good each step of a sampled completion is, as a number between 0 and 1.

The return of a step is what comes of the step. The run's reward decides what judges the step:

- ``sparse``: the policy itself, by the share of completions that continue from the step and are
  right;
- ``orm`` and ``sorm``: the reward model, by P(right) after the step;
- ``dense``: the reference solution, 1 if nothing in the step is wrong by it, else 0;
- any of them with ``returns=solution``: the completion's score, the same for all of its steps.

The paper's section on RCRL has the first two; a precursor of its method has the last. With the
first three, a completion's last step is judged by the completion's answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reasonrl.grading.base import Grader
from reasonrl.grading.steps import step_tokens
from reasonrl.rewards.base import Reward
from reasonrl.types import Problem, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def step_returns(
    reward: Reward,
    rollouts: Sequence[Rollout],
    problems: Sequence[Problem],
    on_progress: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """The return of each step (``step_tokens``) of each rollout, by the reward's judgement."""
    values = reward.judge_steps(rollouts, problems, on_progress)
    return [
        [*of_rollout[:-1], float(rollout.correct)] if of_rollout else []
        for rollout, of_rollout in zip(rollouts, values, strict=True)
    ]


def solution_returns(
    reward: Reward,
    best: float,
    rollouts: Sequence[Rollout],
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    grader: Grader,
) -> list[list[float]]:
    """The completion's score as a share of the ``best`` there is, at each of its steps."""
    completions = [rollout.completion for rollout in rollouts]
    scores = map(sum, reward(completions, problems))
    return [
        [min(max(score / best, 0.0), 1.0)] * len(step_tokens(tokenizer, completion, grader))
        for score, completion in zip(scores, completions, strict=True)
    ]


def keep_ratio(
    positive: Sequence[bool] | np.ndarray, ratio: float | None, rng: np.random.Generator
) -> np.ndarray:
    """Which entries to keep for ``ratio`` positive ones to each negative one, as an array of bool.

    As many entries are kept as the ratio allows; those that are too many are dropped at random.
    With ``ratio`` None all are kept, with inf the positive ones alone.
    """
    flags = np.array(positive, dtype=bool)
    if ratio is None:
        return np.ones(len(flags), dtype=bool)
    num_positive, num_negative = int(flags.sum()), int((~flags).sum())
    most_positive = num_positive if np.isinf(ratio) else _floor(ratio * num_negative)
    most_negative = _floor(num_positive / ratio)
    kept = np.zeros(len(flags), dtype=bool)
    for members, most in ((flags, most_positive), (~flags, most_negative)):
        kept[rng.permutation(np.flatnonzero(members))[:most]] = True
    return kept


def _floor(x: float) -> int:
    """The floor of x, which forgives what rounding took off: 0.7 * 90 is 62.99999999999999."""
    return int(x + 1e-9)
