"""What is sampled beside rollouts, and which questions are asked anew, with models/tiny."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from reasonrl.algorithms.ppo import PPO
from reasonrl.job import Job
from reasonrl.policy_gradient.advantages import BASELINES, Scored
from reasonrl.rewards.base import TokenRewards
from reasonrl.rewards.sparse import at_end
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.types import Completion, Problem
from tests.helpers.configs import TINY, small_config
from tests.helpers.jobs import job_of

SMALL = (
    "init=pretrained",
    "algorithm.iterations=1",
    "algorithm.rollouts_per_iteration=8",
    "algorithm.num_samples_per_prompt=4",
    "algorithm.batch_size=8",
)


def by_parity(completions: Sequence[Completion], _: Sequence[Problem]) -> list[TokenRewards]:
    """1 for an even number of tokens, or 0: an arbitrary score that a beginning counts in."""
    return [at_end(one, 1.0 - len(one.token_ids) % 2) for one in completions]


def alike(completions: Sequence[Completion], _: Sequence[Problem]) -> list[TokenRewards]:
    return [at_end(one, 0.5) for one in completions]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., PPO]]:
    with ExitStack() as opened:

        def made(*overrides: str, reward: Any = by_parity) -> PPO:
            monkeypatch.setattr(Job, "reward", lambda _: reward)
            config: Any = small_config(tmp_path / "outputs", *SMALL, *overrides)
            job = opened.enter_context(job_of(config, str(TINY), tmp_path))
            return PPO(job, config.algorithm)

        yield made


def asked(ppo: PPO) -> list[str]:
    return sorted(file.name for file in ppo.job.run.rollouts.glob("*.parquet"))


def test_no_question_is_asked_anew_where_enough_differ(make: Callable[..., PPO]) -> None:
    ppo = make("algorithm=dapo", "algorithm.temperature=1", "algorithm.mask_truncated=false")
    explored = ppo.explore(1)
    rollouts, beside = explored.rollouts, explored.beside
    assert len({r.score for r in rollouts}) == 2
    kept = explored.learnt
    number = 0  # of files that it takes until both questions' completions differ
    while len(ppo.exploration.explored(rollouts[: 8 * (number + 1)]).learnt) < 8 and number < 2:
        number += 1
    assert len(asked(ppo)) == number + 1 == len(rollouts) // 8
    assert beside == {}
    assert all(
        len({r.score for r in kept[i : i + 4]}) == 2 for i in range(0, len(kept), 4)
    )  # each question's completions differ


def test_others_are_asked_where_all_score_the_same(
    make: Callable[..., PPO], caplog: pytest.LogCaptureFixture
) -> None:
    ppo = make("algorithm=dapo", reward=alike)
    explored = ppo.explore(1)
    assert asked(ppo) == [
        "iteration-00001-again-1.parquet",
        "iteration-00001-again-2.parquet",
        "iteration-00001.parquet",
    ]
    assert len(explored.rollouts) == 3 * 8
    assert ppo.compute_advantages(explored) == []
    assert "no completion to learn from" in caplog.text
    (record,) = read_metrics(ppo.job.run.metrics)  # what was sampled for nothing counts
    assert record["pg/iteration"] == ppo.trainer.state.iteration
    assert record["rollout/mean_length"] > 0
    assert record["pg/unequal_questions"] == 0


def test_the_greedy_completion_s_score_is_each_one_s_baseline(make: Callable[..., PPO]) -> None:
    ppo = make("algorithm=reinforce", "algorithm.baseline=greedy", "algorithm.scale=none")
    explored = ppo.explore(1)
    rollouts, beside = explored.rollouts, explored.beside
    prompts = list(dict.fromkeys(r.prompt for r in rollouts))
    with ppo.trainer.sampler() as sampler:
        greedy = sampler.sample(prompts, ppo.job.params(1, 0.0), seed=0)
    score = {c.problem_id: 1.0 - len(c.token_ids) % 2 for c in greedy}
    assert beside["greedy"].tolist() == [score[r.prompt.problem_id] for r in rollouts]


def test_a_state_s_value_is_what_goes_on_from_it_scores(make: Callable[..., PPO]) -> None:
    ppo = make("algorithm=vineppo", "algorithm.num_continuations=3", "algorithm.temperature=0.7")
    explored = ppo.explore(1)
    rollouts, beside = explored.rollouts, explored.beside
    steps = beside["steps"]
    assert len(steps) == len(rollouts) == 8
    assert max(len(one.starts) for one in steps) > 1
    assert {one.starts[0] for one in steps} == {0}
    # the beginning of a question is continued once, so all its completions have one value of it
    for i in (0, 4):
        assert len({one.values[0] for one in steps[i : i + 4]}) == 1
    assert {round(3 * v) for one in steps for v in one.values} <= {0, 1, 2, 3}
    # advantages of steps add up to the score less the first value
    rewards = torch.zeros(8, 64)
    mask = torch.zeros(8, 64, dtype=torch.bool)
    for row, one in enumerate(rollouts):
        length = len(one.completion.token_ids)
        rewards[row, length - 1], mask[row, :length] = one.score, True
    scored = Scored(rewards, mask, torch.zeros(8, 64), torch.zeros(8, dtype=torch.long), **beside)
    found, _ = BASELINES["step_continuations"](scored, ppo.config)
    for row, one in enumerate(steps):
        total = sum(found[row, start].item() for start in one.starts)
        assert total == pytest.approx(rollouts[row].score - one.values[0], abs=1e-6)
