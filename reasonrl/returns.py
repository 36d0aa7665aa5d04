"""How good each step of a sampled completion is, as a number and as a label.

A step's return is what comes of it, between 0 and 1. The run's reward says who judges (paper, the
RCRL section; which has the first two, and the last as a precursor):

- ``sparse``: the policy itself: the share of completions that go on from the step and are right;
- ``orm``, ``sorm``: the reward model: P(right) after the step;
- ``dense``: the reference solution: 1 if nothing in the step is wrong by it, else 0;
- any of them with ``returns=solution``: the completion's score, the same for all of its steps.

A completion's last step is judged by its answer, whoever judges the others.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from reasonrl.config import DenseConfig, LearnedConfig, RCRLConfig
from reasonrl.continuations import read_steps
from reasonrl.job import Job
from reasonrl.rewards.dense import wrong_places
from reasonrl.sampling.steps import closing_tokens, step_tokens
from reasonrl.types import Problem, Rollout

TENTHS = 10


def label_texts(config: RCRLConfig) -> list[str]:
    """The labels, from the worst to the best."""
    return config.labels or [f"[{tenth / TENTHS:.1f}]" for tenth in range(TENTHS + 1)]


def label_number(config: RCRLConfig, value: float) -> int:
    """Of ``label_texts``, the one that a return between 0 and 1 is given."""
    if config.labels is None:
        return round(TENTHS * value)
    return bisect_right(config.thresholds, value)


def step_returns(job: Job, rollouts: Sequence[Rollout]) -> list[list[float]]:
    """The return of each step (``step_tokens``) of each rollout of a training question."""
    config, reward = job.config.algorithm, job.config.reward
    assert isinstance(config, RCRLConfig)
    problem_of = {problem.id: problem for problem in job.train}
    problems = [problem_of[rollout.prompt.problem_id] for rollout in rollouts]
    completions = [rollout.completion for rollout in rollouts]
    closing = [step_tokens(job.tokenizer, completion) for completion in completions]
    if config.returns == "solution":
        scores = map(sum, job.reward()(completions, problems))
        return [
            [min(max(score / reward.best, 0.0), 1.0)] * len(tokens)
            for score, tokens in zip(scores, closing, strict=True)
        ]
    if isinstance(reward, LearnedConfig):
        model = job.load_reward_model()
        assert model is not None
        with job.progress.task("judging steps", len(rollouts)) as advance:
            probabilities = model.token_probabilities(completions, problems, advance)
        values = [p[tokens].tolist() for p, tokens in zip(probabilities, closing, strict=True)]
    elif isinstance(reward, DenseConfig):
        values = [
            _by_reference(job, rollout, problem, tokens)
            for rollout, problem, tokens in zip(rollouts, problems, closing, strict=True)
        ]
    else:
        values = [
            [(step.correct or 0) / config.num_continuations for step in steps]
            for steps in read_steps(job, rollouts)
        ]
    return [
        [*of_rollout[:-1], float(rollout.correct)] if of_rollout else []
        for rollout, of_rollout in zip(rollouts, values, strict=True)
    ]


def _by_reference(
    job: Job, rollout: Rollout, problem: Problem, closing: Sequence[int]
) -> list[float]:
    completion = rollout.completion
    places = wrong_places(completion.text, problem)
    wrong = closing_tokens(job.tokenizer, completion.token_ids, places)
    steps = {bisect_left(closing, token) for token in wrong}
    return [float(number not in steps) for number in range(len(closing))]


def keep_ratio(
    positive: Sequence[bool] | np.ndarray, ratio: float | None, rng: np.random.Generator
) -> np.ndarray:
    """Which to keep for ``ratio`` positive ones to each negative one, as bool of their length.

    As many as there can be; those that are too many go at random. None: all are kept; inf: the
    positive ones alone.
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
    """Forgiving what rounding took off: 0.7 * 90 is 62.99999999999999."""
    return int(x + 1e-9)
