"""What baselines sample beside an iteration's rollouts: greedy completions, and continuations.

The names of the baselines that sample are keys of ``SAMPLED``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.grading.steps import step_starts
from reasonrl.grading.stops import decode
from reasonrl.job import Job
from reasonrl.policy_gradient.advantages import Steps
from reasonrl.rewards import Reward
from reasonrl.sampling import Sampler
from reasonrl.types import Completion, Prompt, Rollout
from reasonrl.util.seeding import derive_seed

Prefix = tuple[Prompt, tuple[int, ...]]  # a question and the beginning of an answer

# Takes the rollouts that are learnt from and the iteration; gives a field of ``Scored``.
Sampled = Callable[[Job, Reward, Sampler, Sequence[Rollout], int, PPOConfig], dict[str, Any]]


def greedy_scores(
    job: Job,
    reward: Reward,
    sampler: Sampler,
    rollouts: Sequence[Rollout],
    iteration: int,
    config: PPOConfig,  # noqa: ARG001
) -> dict[str, Any]:
    """The score of the greedy completion of each one's question (ReMax, Li et al. 2023)."""
    prompts = list(dict.fromkeys(rollout.prompt for rollout in rollouts))
    problem_of = {problem.id: problem for problem in job.train}
    greedy = job.collect(
        sampler,
        [problem_of[prompt.problem_id] for prompt in prompts],
        prompts,
        job.params(1, 0.0),
        seed=0,  # greedy decoding draws nothing
        file=_file(job, iteration),
        description=f"iteration {iteration}: greedy completions",
        reward=reward,
    )
    score = {one.prompt.problem_id: one.score for one in greedy}
    return {"greedy": torch.tensor([score[r.prompt.problem_id] for r in rollouts])}


def step_values(
    job: Job,
    reward: Reward,
    sampler: Sampler,
    rollouts: Sequence[Rollout],
    iteration: int,
    config: PPOConfig,
) -> dict[str, Any]:
    """The value of the state before each step: the mean score of K completions that go on from it.

    The same beginning is continued once, however many completions have it. Source: VinePPO
    (Kazemnejad et al. 2024), eq. 5.
    """
    starts = [_starts(job, rollout) for rollout in rollouts]
    prefixes = [
        [(rollout.prompt, tuple(rollout.completion.token_ids[:start])) for start in own]
        for rollout, own in zip(rollouts, starts, strict=True)
    ]
    keys = list(dict.fromkeys(prefix for own in prefixes for prefix in own))
    values = _values(job, reward, sampler, keys, iteration, config)
    return {
        "steps": [
            Steps(tuple(first), tuple(values[prefix] for prefix in own))
            for first, own in zip(starts, prefixes, strict=True)
        ]
    }


def _starts(job: Job, rollout: Rollout) -> list[int]:
    """The first token of each step; a completion without a step is one."""
    found = step_starts(job.tokenizer, rollout.completion, job.grader)
    return [start for start, _ in found] or [0]


def _values(
    job: Job,
    reward: Reward,
    sampler: Sampler,
    prefixes: Sequence[Prefix],
    iteration: int,
    config: PPOConfig,
) -> dict[Prefix, float]:
    """The mean score of the completions that begin with each prefix."""
    assert config.num_continuations is not None
    problem_of = {problem.id: problem for problem in job.train}
    problems = [problem_of[prompt.problem_id] for prompt, _ in prefixes]
    continued = job.collect(
        sampler,
        problems,
        [
            Prompt(f"{prompt.problem_id}/{i}", prompt.token_ids + token_ids)
            for i, (prompt, token_ids) in enumerate(prefixes)
        ],
        job.params(config.num_continuations, config.temperature),
        seed=derive_seed(job.config.seed, "ppo", iteration, "continue"),
        file=_file(job, iteration),
        description=f"iteration {iteration}: continuing steps",
    )
    each = [i for i in range(len(prefixes)) for _ in range(config.num_continuations)]
    whole = [
        _whole(job, prefixes[i][1], one.completion) for i, one in zip(each, continued, strict=True)
    ]
    scores = [sum(rewards) for rewards in reward(whole, [problems[i] for i in each])]
    count = config.num_continuations
    return {prefix: fmean(scores[i * count : (i + 1) * count]) for i, prefix in enumerate(prefixes)}


def _whole(job: Job, prefix: tuple[int, ...], continuation: Completion) -> Completion:
    """Beginning and continuation as one completion, cut where a completion would have been."""
    most = job.config.dataset.max_new_tokens
    token_ids = (*prefix, *continuation.token_ids)
    reason = "length" if len(token_ids) > most else continuation.finish_reason
    token_ids = token_ids[:most]
    return Completion(
        continuation.problem_id,
        continuation.sample_index,
        token_ids,
        (0.0,) * len(token_ids),
        reason,
        decode(job.tokenizer, token_ids),
    )


def _file(job: Job, iteration: int) -> Any:
    return job.run.rollouts / "baselines" / f"iteration-{iteration:05d}.parquet"


SAMPLED: Mapping[str, Sampled] = {
    "greedy": greedy_scores,
    "step_continuations": step_values,
}
