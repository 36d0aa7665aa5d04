"""Completions with their verdicts: how they are graded, and what they look like together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np

from reasonrl.grading.base import Grader
from reasonrl.rewards.base import Reward
from reasonrl.rewards.sparse import read_answer
from reasonrl.types import Completion, FinishReason, Problem, Prompt, Rollout

FINISH_REASONS: tuple[FinishReason, ...] = get_args(FinishReason)


def grade(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    problems: Sequence[Problem],
    reward: Reward,
    grader: Grader,
) -> list[Rollout]:
    """Completions, each with its prompt and its problem, as rollouts."""
    answers = [read_answer(completion, grader) for completion in completions]
    correct = grader.equal_each(answers, [problem.answer for problem in problems])
    rewards = reward(completions, problems)
    return [
        Rollout(prompt, completion, answer, right is True, paid, undecided=right is None)
        for prompt, completion, answer, right, paid in zip(
            prompts, completions, answers, correct, rewards, strict=True
        )
    ]


def completions_statistics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """What completions look like.

    The statistics are the fraction right, the mean score, the fractions unparsed and undecided, the
    mean length in tokens, and the fraction that ended in each way.
    """
    completions = [r.completion for r in rollouts]
    endings = [c.finish_reason for c in completions]
    return {
        "correct": float(np.mean([r.correct for r in rollouts])),
        "score": float(np.mean([r.score for r in rollouts])),
        "unparsed": float(np.mean([r.answer is None for r in rollouts])),
        "undecided": float(np.mean([r.undecided for r in rollouts])),
        "mean_length": float(np.mean([len(c.token_ids) for c in completions])),
        **{f"finish_{ending}": endings.count(ending) / len(endings) for ending in FINISH_REASONS},
    }
