"""The stepwise reward model: which steps it learns from, and from whose completions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from reasonrl.algorithms import sorm, steps
from reasonrl.config.schema import TrainConfig
from reasonrl.rewards.steps import STEPS_FILE, Step
from reasonrl.sampling import ENGINES
from reasonrl.sampling.rollouts import write_rollouts
from tests.helpers.jobs import TRAIN, job_of, refuse, sampled, write_samples
from tests.helpers.scripted import opening


def step(number: int, good: bool, token: int = 0) -> Step:
    return Step(number, token, None, None, good)


# Good and bad at number 0: 3 and 1; at 1: 1 and 2; at 2: 0 and 1.
STEPS = [
    [step(0, True, 1), step(1, True, 2)],
    [step(0, True, 3), step(1, False, 4), step(2, False, 5)],
    [],
    [step(0, True, 6), step(1, False, 7)],
    [step(0, False, 8)],
]


def test_as_many_good_as_bad_steps_at_each_number() -> None:
    draws = set()
    for seed in range(30):
        balanced = sorm.balance(STEPS, seed)
        counts = Counter((s.number, s.good) for steps in balanced for s in steps)
        assert counts == {(0, True): 1, (0, False): 1, (1, True): 1, (1, False): 1}
        assert all(set(kept) <= set(steps) for kept, steps in zip(balanced, STEPS, strict=True))
        assert sorm.balance(STEPS, seed) == balanced
        draws.add(tuple(sorted(s.token for steps in balanced for s in steps)))
    # One of the three good ones at 0, with one of the two bad ones at 1: each is drawn some time.
    pairs = {(1, 4), (1, 7), (3, 4), (3, 7), (6, 4), (6, 7)}
    assert draws == {tuple(sorted((2, 8, *pair))) for pair in pairs}


def test_steps_that_are_balanced_all_stay() -> None:
    even = [[step(0, True), step(1, False)], [step(0, False), step(1, True)]]
    assert sorm.balance(even, 0) == even
    assert sorm.balance([[step(0, True)], []], 0) == [[], []]
    assert sorm.balance([], 0) == []


def test_targets_are_at_the_last_tokens_of_the_steps(tokenizer: PreTrainedTokenizerBase) -> None:
    (rollout,) = sampled(tokenizer, TRAIN[0], ["5\n#### 20"])  # "5", newline, "####", " ", 2, 0
    both = [step(0, True, 1), step(1, False, 6)]
    assert sorm.step_targets(rollout, both) == (None, 1.0, None, None, None, None, 0.0)
    assert sorm.step_targets(rollout, both[1:]) == (None,) * 6 + (0.0,)
    assert sorm.step_targets(rollout, []) == (None,) * 7


ALL = ("algorithm.sample.num_samples_per_prompt=4", "algorithm.num_solutions_per_prompt=4")


@pytest.fixture
def steps_of(
    configure: Callable[..., TrainConfig],
    random_policy: str,
    tmp_path: Path,
    scripted: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Path], Path]:
    """What becomes of the steps of a folder's completions: all that go on from one are lost.

    Whoever reads it samples nothing.
    """

    def make(rollouts: Path) -> Path:
        config = configure("algorithm=steps", *ALL, "algorithm.num_continuations=1")
        sampler = scripted(lambda *_: ["#### 1"])
        monkeypatch.setitem(ENGINES, "transformers", sampler)
        with job_of(config, random_policy, tmp_path / "steps", rollouts) as job:
            steps.run(job, job.config.algorithm)
        monkeypatch.setitem(ENGINES, "transformers", opening(refuse))
        return job.run.rollouts / STEPS_FILE

    return make


@pytest.fixture
def given(
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    random_policy: str,
    steps_of: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[list, list]]:
    """What sorm.run gives to learn_reward_model.

    Of each of three problems: two right, a wrong one and a blank one. All have two steps but the
    blank one, which has none.
    """
    received: list[Any] = []
    monkeypatch.setattr(
        sorm, "learn_reward_model", lambda _job, _settings, *both: received.append(both)
    )
    texts = [" 2+2=4\n#### {0}", " 1+1=2\n#### {0}", " 3+3=6\n#### 6", "\n"]
    rollouts = [
        r for p in TRAIN for r in sampled(tokenizer, p, [t.format(p.answer) for t in texts])
    ]
    write_rollouts(tmp_path / "train.parquet", rollouts)
    file = steps_of(tmp_path)

    def run(*overrides: str) -> tuple[list, list]:
        config = configure("algorithm=sorm", *ALL, *overrides)
        with job_of(config, random_policy, tmp_path / "run", tmp_path, steps=file) as job:
            sorm.run(job, job.config.algorithm)
        return received[-1]

    return run


def labels(targets: Any) -> list[float]:
    return [target for target in targets if target is not None]


def test_steps_are_learnt_from_or_held_out_by_their_question(given: Callable) -> None:
    learnt, held_out = given("algorithm.balanced=false")
    # One question of three is held out, with its blank completion; blank ones teach nothing.
    assert sorted(labels(one.targets) for one in learnt) == [[0.0, 0.0]] * 2 + [[1.0, 1.0]] * 4
    assert [labels(targets) for _, targets in held_out] == [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], []]
    (aside,) = {r.prompt.token_ids for r, _ in held_out}
    assert aside not in {one.prompt_ids for one in learnt}


def test_only_what_is_learnt_from_is_balanced(given: Callable) -> None:
    learnt, held_out = given("algorithm.balanced=true")
    # Two bad steps at each of two numbers, and so two good ones.
    assert Counter(label for one in learnt for label in labels(one.targets)) == {1.0: 4, 0.0: 4}
    assert [len(labels(targets)) for _, targets in held_out] == [2, 2, 2, 0]


def test_so_many_completions_of_each_question_are_learnt_from(given: Callable) -> None:
    learnt, held_out = given("algorithm.num_solutions_per_prompt=1", "algorithm.balanced=false")
    assert [r.completion.sample_index for r, _ in held_out] == [0]
    assert len(learnt) == 2  # one of each question that isn't held out


def test_a_reward_model_comes_of_it(
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    random_policy: str,
    steps_of: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    kinds = (lambda p: f" 2+2=4\n#### {p.answer}", lambda _: " 2+2=4\n#### 1")
    rollouts = write_samples(tmp_path / "rollouts", tokenizer, *kinds)
    file, config = steps_of(rollouts), configure("algorithm=sorm", *ALL)
    with job_of(config, random_policy, tmp_path / "run", rollouts, steps=file) as job:
        sorm.run(job, job.config.algorithm)
        assert (job.run.reward_model / "head.safetensors").exists()
        assert (job.run.evaluation / "validation" / "metrics.json").exists()
