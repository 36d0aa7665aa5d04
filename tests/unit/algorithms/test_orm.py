"""The outcome reward model: its labels, their weights, and whose completions it learns from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from reasonrl.algorithms import orm
from reasonrl.config.schema import TrainConfig
from reasonrl.reward_models import learning as reward_learning
from reasonrl.sampling.rollouts import write_rollouts
from reasonrl.types import Rollout
from reasonrl.util.errors import UserError
from tests.helpers.jobs import (
    TRAIN,
    VALIDATION,
    job_of,
    problem,
    refuse,
    right,
    sampled,
    write_samples,
    wrong,
)

MANY = [problem(f"m{i}", 2, 3 + i, 2) for i in range(10)]


def of(tokenizer: PreTrainedTokenizerBase, *texts: str) -> list[Rollout]:
    return sampled(tokenizer, TRAIN[0], texts)


@pytest.mark.parametrize(
    ("text", "targets", "expected"),
    [
        ("#### 20", "tokens", (1.0, 1.0, 1.0, 1.0, 1.0)),  # "####", " ", "2", "0", EOS
        ("#### 21", "tokens", (0.0, 0.0, 0.0, 0.0, 0.0)),
        ("#### 20", "final", (None, None, None, None, 1.0)),
        ("#### 21", "final", (None, None, None, None, 0.0)),
        ("", "tokens", (0.0,)),
        ("", "final", (0.0,)),
    ],
)
def test_targets(
    text: str, targets: str, expected: Any, tokenizer: PreTrainedTokenizerBase
) -> None:
    (rollout,) = of(tokenizer, text)
    assert orm.outcome_targets(rollout, targets) == expected


@pytest.mark.parametrize(
    ("num_right", "num_wrong", "weights"),
    [
        (1, 3, {True: 2.0, False: 2 / 3}),  # 4 / 2 and 4 / 6: 1 x 2 = 3 x 2/3
        (2, 2, {True: 1.0, False: 1.0}),
        (2, 0, {True: 0.5, False: 1.0}),
    ],
)
def test_weights_of_the_classes(
    num_right: int, num_wrong: int, weights: dict[bool, float], tokenizer: PreTrainedTokenizerBase
) -> None:
    rollouts = of(tokenizer, *["#### 20"] * num_right, *["#### 21"] * num_wrong)
    assert orm.class_weights(rollouts) == pytest.approx(weights)


@pytest.fixture
def given(
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    random_policy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[list, list]]:
    """What orm.run gives to learn_reward_model: of each of ten problems one right, two wrong."""
    received: list[Any] = []
    monkeypatch.setattr(
        orm, "learn_reward_model", lambda _job, _settings, *both: received.append(both)
    )
    rollouts = [
        r for p in MANY for r in sampled(tokenizer, p, [right(p), wrong(p), f" {p.answer}"])
    ]
    write_rollouts(tmp_path / "train.parquet", rollouts)

    def run(*overrides: str) -> tuple[list, list]:
        config = configure("algorithm=orm", *overrides)
        with job_of(config, random_policy, tmp_path / "run", tmp_path, train=MANY) as job:
            orm.run(job, job.config.algorithm)
        return received[-1]

    return run


def test_questions_are_learnt_from_or_held_out(
    given: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    learnt, held_out = given("algorithm.held_out=0.3", "algorithm.targets=tokens")
    assert (len(learnt), len(held_out)) == (21, 9)  # three of each of 7 and 3 questions
    aside = {r.prompt.token_ids for r, _ in held_out}
    assert len(aside) == 3
    assert aside.isdisjoint(one.prompt_ids for one in learnt)
    # Held-out completions are judged by their last token, whatever is learnt.
    for rollout, targets in held_out:
        assert targets[-1] == float(rollout.correct)
        assert set(targets[:-1]) <= {None}
    assert sorted({one.targets[0] for one in learnt}) == [0.0, 1.0]
    assert all(set(one.targets) == {one.targets[-1]} for one in learnt)
    assert {one.weight for one in learnt} == {1.0}
    asked = tokenizer("Q: Ana has 2 apples.")["input_ids"]
    assert all(list(one.prompt_ids[: len(asked)]) == asked for one in learnt)

    assert given("algorithm.held_out=0.3", "algorithm.targets=tokens")[1] == held_out
    others = [given("algorithm.held_out=0.3", f"seed={seed}")[1] for seed in (1, 2)]
    assert any({r.prompt.token_ids for r, _ in other} != aside for other in others)


def test_balanced_classes_weigh_the_same(given: Callable) -> None:
    learnt, _ = given("algorithm.balanced=true", "algorithm.held_out=0.1")
    weights = {one.targets[-1]: one.weight for one in learnt}
    assert weights == pytest.approx({1.0: 1.5, 0.0: 0.75})  # 27 / 18 and 27 / 36


@pytest.mark.parametrize(("kind", "counts"), [(right, "6 good and 0"), (wrong, "0 good and 6")])
def test_outcomes_of_one_kind_are_refused_before_anything_is_learnt(
    kind: Callable,
    counts: str,
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    random_policy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rollouts = write_samples(tmp_path / "rollouts", tokenizer, kind, kind, kind)
    monkeypatch.setattr(reward_learning, "build", refuse)
    config = configure("algorithm=orm", "algorithm.held_out=0.1")
    with job_of(config, random_policy, tmp_path / "run", rollouts) as job:
        # Three of each of the two questions that aren't held out.
        with pytest.raises(UserError, match=f"algorithm=orm must have good .* got {counts} bad"):
            orm.run(job, job.config.algorithm)
        assert not job.run.reward_model.exists()


def test_a_reward_model_comes_of_it(
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    random_policy: str,
    tmp_path: Path,
) -> None:
    rollouts = write_samples(tmp_path / "rollouts", tokenizer, right, wrong)
    config = configure("algorithm=orm", "algorithm.batch_size=2")
    with job_of(config, random_policy, tmp_path / "run", rollouts) as job:
        orm.run(job, job.config.algorithm)
        assert (job.run.reward_model / "head.safetensors").exists()
        assert (job.run.evaluation / "validation" / "metrics.json").exists()
    assert len(VALIDATION) == 2
