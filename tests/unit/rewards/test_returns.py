"""How good the steps of a completion are: who judges, and how many are kept.

Of the problem asked, 2+3=5 and then 5*4=20, RIGHT has steps that end with tokens 6, 13 and 18 (EOS)
and SLIP steps that end with 6, 12 and 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerBase

from reasonrl.config.schema import TrainConfig
from reasonrl.rewards import REWARDS, Materials
from reasonrl.rewards.returns import keep_ratio, solution_returns, step_returns
from reasonrl.rewards.steps import STEPS
from reasonrl.types import Rollout
from tests.helpers.grading import STRICT
from tests.helpers.jobs import TRAIN, sampled
from tests.helpers.tokenizers import byte_level

T0, T1, _ = TRAIN
RIGHT = " 2+3=5\n5*4=20\n#### 20"
SLIP = " 2+3=5\n5+4=9\n#### 9"
PROBLEMS = {problem.id: problem for problem in TRAIN}
WHOLE = "algorithm.returns=solution"

# --- how many are kept


@pytest.mark.parametrize(
    ("given", "ratio", "kept"),  # numbers of positive and negative ones
    [
        ((2, 2), 1.0, (2, 2)),
        ((6, 2), 1.0, (2, 2)),
        ((2, 6), 1.0, (2, 2)),
        ((6, 2), 3.0, (6, 2)),
        ((9, 2), 3.0, (6, 2)),
        ((3, 5), 3.0, (3, 1)),
        ((2, 8), 0.25, (2, 8)),
        ((5, 8), 0.25, (2, 8)),
        ((2, 9), 0.25, (2, 8)),
        # Not to be met exactly: 10 for 3, 10 being below 3 x 5; then none for 1.
        ((10, 5), 3.0, (10, 3)),
        ((1, 1), 2.0, (1, 0)),
        ((3, 5), inf, (3, 0)),
        ((99, 90), 0.7, (63, 90)),  # 0.7 * 90 is 62.99999999999999
        ((0, 5), inf, (0, 0)),
        ((4, 0), inf, (4, 0)),
        ((3, 5), None, (3, 5)),
        ((4, 0), None, (4, 0)),
        # One of nothing: as many as there are of the other kind, none.
        ((4, 0), 1.0, (0, 0)),
        ((0, 4), 1.0, (0, 0)),
        ((0, 0), 1.0, (0, 0)),
        ((0, 0), None, (0, 0)),
    ],
)
def test_as_many_as_there_can_be_are_kept(
    given: tuple[int, int], ratio: float | None, kept: tuple[int, int]
) -> None:
    positive = np.random.default_rng(0).permutation([True] * given[0] + [False] * given[1])
    chosen = keep_ratio(positive.astype(bool), ratio, np.random.default_rng(1))
    assert chosen.dtype == bool
    assert len(chosen) == sum(given)
    flags = list(zip(positive, chosen, strict=True))
    assert (flags.count((True, True)), flags.count((False, True))) == kept


def test_those_that_are_too_many_go_at_random() -> None:
    positive = [True, False, True, True]
    draws = [keep_ratio(positive, 1.0, np.random.default_rng(seed)).tolist() for seed in range(30)]
    assert draws == [
        keep_ratio(positive, 1.0, np.random.default_rng(seed)).tolist() for seed in range(30)
    ]
    assert {tuple(draw) for draw in draws} == {
        (True, True, False, False),
        (False, True, True, False),
        (False, True, False, True),
    }
    # Of the other kind too.
    draws = [keep_ratio([False] * 3 + [True], 1.0, np.random.default_rng(s)) for s in range(30)]
    assert {draw.tobytes() for draw in draws} == {
        bytes([1, 0, 0, 1]), bytes([0, 1, 0, 1]), bytes([0, 0, 1, 1])
    }  # fmt: skip


# --- who judges


class Judge:
    """A reward model that finds 0.3 but after the tokens it is told; keeps whom it was asked of."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *at: dict[int, float]) -> None:
        self.tokenizer, self.at = tokenizer, at
        self.asked: list[str] = []

    def token_probabilities(
        self, completions: Sequence[Any], problems: Sequence[Any], *_: object
    ) -> list[np.ndarray]:
        self.asked = [problem.id for problem in problems]
        found = [np.full(len(completion.token_ids), 0.3) for completion in completions]
        for probabilities, at in zip(found, self.at, strict=True):
            for token, probability in at.items():
                probabilities[token] = probability
        return found


@pytest.fixture
def returns(
    configure: Callable[..., TrainConfig], tokenizer: PreTrainedTokenizerBase
) -> Callable[..., list[list[float]]]:
    """What the run's reward finds of the steps; with WHOLE, of the solutions."""
    own = tokenizer

    def judged(
        rollouts: Sequence[Rollout],
        *overrides: str,
        steps: Path | None = None,
        model: Any = None,
        tokenizer: PreTrainedTokenizerBase = own,
    ) -> list[list[float]]:
        config = configure("algorithm=rcrl", *overrides)
        settings: Any = config.algorithm
        materials = Materials(tokenizer, STRICT, model, steps, settings.num_continuations)
        reward = REWARDS[config.reward.name](config.reward, materials)
        problems = [PROBLEMS[rollout.prompt.problem_id] for rollout in rollouts]
        if WHOLE in overrides:
            return solution_returns(
                reward, config.reward.best, rollouts, problems, tokenizer, STRICT
            )
        return step_returns(reward, rollouts, problems)

    return judged


def test_the_share_of_continuations_that_are_right(
    returns: Callable, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [
        # Of 4 continuations; how many verify the step, and whether it is good, doesn't count.
        ("t0", 0, 0, 6, 3, 0, False),
        ("t0", 0, 1, 13, 4, 0, False),
        ("t0", 0, 2, 18, None, None, True),
        ("t1", 0, 0, 6, 0, 0, True),  # another problem's, with the same index
        ("t1", 0, 1, 11, None, None, False),
        ("t0", 2, 0, 6, 2, 2, True),
        ("t0", 2, 1, 12, 0, 0, True),
        ("t0", 2, 2, 16, None, None, True),
        ("t0", 1, 0, 4, None, None, True),  # of one step, and not asked about
    ]
    columns = dict(zip(STEPS.names, zip(*rows, strict=True), strict=True))
    pq.write_table(pa.table(columns, schema=STEPS), tmp_path / "steps.parquet")
    right, _, slip, blank = sampled(tokenizer, T0, [RIGHT, "#### 20", SLIP, "\n"])
    other = sampled(tokenizer, T1, [" 2+3=5\n#### 5"])
    found = returns(
        [slip, *other, blank, right],
        "algorithm.num_continuations=4",
        steps=tmp_path / "steps.parquet",
    )
    # 2/4, 0/4 and a wrong answer; 0/4 and one; no step; 3/4, 4/4 and a right answer.
    assert found == [[0.5, 0.0, 0.0], [0.0, 0.0], [], [0.75, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RIGHT, [1, 1, 1]),
        ("\n" + RIGHT + "\n", [1, 1, 1]),
        (" 2+3=5\n5*4=20\n#### 9", [1, 1, 0]),
        (" 2+3=6\n6*4=24\n#### 24", [0, 0, 0]),
        (" 2+3=6\n2+3=5\n5*4=20\n#### 20", [0, 1, 1, 1]),
        (SLIP, [1, 0, 0]),
        (" 2+3=5, 2*3=6\n5*4=20\n#### 20", [0, 1, 1]),  # one thing that is wrong is enough
        ("2*3=6, 2+3=5\n5*4=20\n#### 20", [0, 1, 1]),
        ("So.\n2+3=5\n2+3=5\n5*4=20\n#### 20", [1, 1, 1, 1, 1]),  # neither prose nor repeating is
        ("#### 9\n2+3=5\n#### 20", [0, 1, 0]),  # two answers: none
        # The last step is judged by the answer alone.
        (" 2+3=5\n5*4=20", [1, 0]),
        (" 2+3=6\n#### 20", [0, 1]),
        ("#### 20\n1+1=3", [1, 1]),
        ("#### 9", [0]),
        ("", []),
        ("\n", []),
        ("Q: 1", []),
    ],
)
def test_what_is_wrong_by_the_reference(
    text: str, expected: list[float], returns: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert returns(sampled(tokenizer, T0, [text]), "reward=dense") == [expected]


@pytest.mark.parametrize(("text", "expected"), [("2+3=6", [0, 1, 1]), ("5*4=20", [1, 1, 1])])
def test_a_token_that_closes_two_steps_closes_what_is_wrong_in_either(
    text: str, expected: list[float], returns: Callable
) -> None:
    # The last digit of the first line and all of the second are one token: two lines, one step.
    merges = [("Ċ", "S"), ("ĊS", "o"), ("ĊSo", "."), ("ĊSo.", "Ċ"), ("6", "ĊSo.Ċ"), ("0", "ĊSo.Ċ")]
    tokenizer = byte_level(*merges)
    rollouts = sampled(tokenizer, T0, [f"{text}\nSo.\n2+3=5\n#### 20"])
    assert returns(rollouts, "reward=dense", tokenizer=tokenizer) == [expected]


@pytest.mark.parametrize("kind", ["orm", "sorm"])
def test_what_a_reward_model_finds_after_the_step(
    kind: str, returns: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = Judge(
        tokenizer,
        {5: 0.1, 6: 0.75, 13: 0.25, 18: 0.125},
        {6: 0.5, 12: 0.875, 16: 0.75},
        {},
        {6: 0.625},
    )
    rollouts = sampled(tokenizer, T0, [RIGHT, SLIP, ""])
    rollouts += sampled(tokenizer, T1, [" 4+4=8\n#### 16"], "stop")
    found = returns(rollouts, f"reward={kind}", model=model)
    assert found == [[0.75, 0.25, 1.0], [0.5, 0.875, 0.0], [], [0.625, 1.0]]
    assert model.asked == ["t0", "t0", "t0", "t1"]


@pytest.mark.parametrize(
    ("overrides", "right", "slip", "short"),
    [
        (["reward=sparse"], 1.0, 0.0, 1.0),
        # Of 1.5: 1 + 0.5, 0.25 for one of two results, 1 for the answer.
        (["reward=dense"], 1.0, 0.25 / 1.5, 1 / 1.5),
        (["reward=dense", "reward.step_weight=0", "reward.threshold=1"], 1.0, 0.0, 1.0),
        (["reward=orm"], 0.5 + 0.5 * 0.125, 0.5 * 0.75, 0.5 + 0.5 * 0.25),
        # The mean of its three steps, of its three, of its one.
        (["reward=sorm"], 0.5 + 0.5 * 0.375, 0.5 * 0.75, 0.5 + 0.5 * 0.25),
        (["reward=orm", "reward.outcome_weight=0", "reward.threshold=0.25"], 0.125, 0.75, 0.25),
    ],
)
def test_a_solution_s_score_at_all_of_its_steps(
    overrides: list[str],
    right: float,
    slip: float,
    short: float,
    returns: Callable,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = Judge(
        tokenizer,
        {6: 0.75, 13: 0.25, 18: 0.125},
        {6: 0.5, 12: 1.0, 16: 0.75},
        {4: 0.25},
        {},
    )
    rollouts = sampled(tokenizer, T0, [RIGHT, SLIP, "#### 20", "\n"])
    found = returns(rollouts, *overrides, WHOLE, model=model)
    assert [len(values) for values in found] == [3, 3, 1, 0]
    assert found[0] == pytest.approx([right] * 3)
    assert found[1] == pytest.approx([slip] * 3)
    assert found[2] == pytest.approx([short])


def test_a_solution_s_return_is_between_0_and_1(tokenizer: PreTrainedTokenizerBase) -> None:
    def reward(*_: object) -> list[tuple[float, ...]]:
        return [(0.5, 0.0), (-0.5, 0.25), (1.0, 2.0)]

    rollouts = sampled(tokenizer, T0, ["#### 20", SLIP, RIGHT])
    returns = solution_returns(reward, 1.0, rollouts, [T0] * 3, tokenizer, STRICT)  # type: ignore[arg-type]
    assert returns == [[0.5], [0.0] * 3, [1.0] * 3]
