"""A reward of one's own: what its function is given, how it is paid, and what it may not return.

The completion in most tests is `` 2+3=5\\n5*4=20\\n#### 20`` and EOS: 19 tokens, whose steps end
with tokens 6, 13 and 18.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from reasonrl.config.schema import TrainConfig
from reasonrl.rewards import REWARDS, Materials, Reward
from reasonrl.rewards.function import Function, Written
from reasonrl.types import Completion, FinishReason, Problem
from reasonrl.util.errors import UserError
from reasonrl.util.own_code import load_function
from tests.helpers.configs import ROOT
from tests.helpers.grading import STRICT

PROBLEM = Problem("p", "Ana has 2 and 3 of 4 each.", "20", "2+3=5\n5*4=20\n#### 20")
RIGHT = " 2+3=5\n5*4=20\n#### 20"
SIZES = "times reward.function_weight=1, are 3.4e+38 together at most, which float32 holds"
PAGE = (ROOT / "docs" / "own-rewards.md").read_text(encoding="utf-8")


def completion(
    tokenizer: PreTrainedTokenizerBase, text: str, reason: FinishReason = "eos"
) -> Completion:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
    ids += [tokenizer.eos_token_id] if reason == "eos" else []
    return Completion("p", 0, tuple(ids), (0.0,) * len(ids), reason, text)


@pytest.fixture
def rewarded(tokenizer: PreTrainedTokenizerBase) -> Callable[..., list[float]]:
    """The rewards of a completion's tokens by a function alone, of weight 1."""

    def rewarded(
        function: Callable[..., Any], text: str = RIGHT, reason: FinishReason = "eos"
    ) -> list[float]:
        reward = Function(function, "mine.py:score", 1.0, tokenizer, STRICT)
        (rewards,) = reward([completion(tokenizer, text, reason)], [PROBLEM])
        return list(rewards)

    return rewarded


def paid(length: int, **at: float) -> list[float]:
    return [at.get(f"t{token}", 0.0) for token in range(length)]


def test_what_a_function_is_given(rewarded: Callable[..., list[float]]) -> None:
    given: list[Any] = []

    def score(problem: Problem, completion: Written, answer: str | None) -> float:
        given.extend([problem, completion, answer])
        return 0.0

    rewarded(score)
    steps = (" 2+3=5\n", "5*4=20\n", "#### 20")
    assert given == [PROBLEM, Written(RIGHT, steps, 19, "eos"), "20"]
    given.clear()
    rewarded(score, "#### 20", "length")  # which may have been going to be 200
    assert given == [PROBLEM, Written("#### 20", ("#### 20",), 4, "length"), None]


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (0.5, paid(19, t18=0.5)),
        (True, paid(19, t18=1.0)),
        (-3, paid(19, t18=-3.0)),
        (np.float32(0.5), paid(19, t18=0.5)),
        (torch.tensor(0.5), paid(19, t18=0.5)),
        ([0.25, -0.5, 1], paid(19, t6=0.25, t13=-0.5, t18=1.0)),
        ((0, False, 0.5), paid(19, t18=0.5)),
        (np.array([0.25, 0.5, 0.0]), paid(19, t6=0.25, t13=0.5)),
    ],
)
def test_how_it_is_paid(
    rewarded: Callable[..., list[float]], returned: Any, expected: list[float]
) -> None:
    assert rewarded(lambda *_: returned) == expected


def test_a_completion_without_steps_or_tokens(rewarded: Callable[..., list[float]]) -> None:
    assert rewarded(lambda *_: [], "", "eos") == [0.0]
    assert rewarded(lambda *_: 0.5, "", "eos") == [0.5]
    assert rewarded(lambda *_: 0.5, "", "stop") == []
    assert rewarded(lambda *_: [], "", "stop") == []


def test_two_steps_that_end_with_one_token_are_both_paid_there(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reasonrl.rewards.function.last_tokens", lambda *_: [6, 6, 18])
    reward = Function(lambda *_: [0.25, 0.5, 0.125], "mine.py:score", 2.0, tokenizer, STRICT)
    (rewards,) = reward([completion(tokenizer, RIGHT)], [PROBLEM])
    assert list(rewards) == paid(19, t6=1.5, t18=0.25)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "return a number, or a list of one for each step; got None"),
        ("0.5", "return a number, or a list of one for each step; got '0.5'"),
        (["a", 0, 0], "return a number, or a list of one for each step; got ['a', 0, 0]"),
        ({"score": 1}, "return a number, or a list of one for each step; got {'score': 1}"),
        (float("nan"), "return finite numbers; got nan"),
        ([0.0, float("inf"), 0.0], "return finite numbers; got [0.0, inf, 0.0]"),
        (-1e300, f"return numbers whose sizes, {SIZES}; got -1e+300"),
        (-(10**39), f"return numbers whose sizes, {SIZES}; got -1{'0' * 39}"),
        ([0.0, -4e38, 0.0], f"return numbers whose sizes, {SIZES}; got [0.0, -4e+38, 0.0]"),
        ([-2e38, -2e38, 0.0], f"return numbers whose sizes, {SIZES}; got [-2e+38, -2e+38, 0.0]"),
        ([0.5, 0.5], "return one number for each step, of which there are 3; got [0.5, 0.5]"),
        (
            [0.5, 0.5, 0.5],
            "return at most 1, all steps together: raise reward.function_weight instead; got "
            "[0.5, 0.5, 0.5]",
        ),
    ],
)
def test_what_it_may_not_return(
    rewarded: Callable[..., list[float]], returned: Any, said: str
) -> None:
    with pytest.raises(UserError) as refused:
        rewarded(lambda *_: returned)
    assert str(refused.value) == f"reward.path=mine.py:score must {said}, for p."


def test_what_it_returns_must_be_in_float32_after_its_weight_too(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """2e38 is, four times as much isn't: the score would be -inf, and every advantage with it."""
    of = completion(tokenizer, RIGHT)
    one = Function(lambda *_: -2e38, "mine.py:score", 1.5, tokenizer, STRICT)
    assert one([of], [PROBLEM])[0][-1] == pytest.approx(-3e38)
    with pytest.raises(UserError) as refused:
        Function(lambda *_: -2e38, "mine.py:score", 4.0, tokenizer, STRICT)([of], [PROBLEM])
    assert str(refused.value) == (
        "reward.path=mine.py:score must return numbers whose sizes, times "
        "reward.function_weight=4, are 3.4e+38 together at most, which float32 holds; got "
        "-2e+38, for p."
    )


def test_an_integer_that_no_float_holds_is_refused(rewarded: Callable[..., list[float]]) -> None:
    for returned in (-(10**400), [0.0, -(10**400), 0]):
        with pytest.raises(UserError, match="return numbers whose sizes, times"):
            rewarded(lambda *_, it=returned: it)


@pytest.fixture
def build(
    tmp_path: Path, configure: Callable[..., TrainConfig], tokenizer: PreTrainedTokenizerBase
) -> Callable[..., Reward]:
    """The reward of a file that holds these lines, or that is there."""

    def build(lines: str | Path, name: str = "score", *overrides: str) -> Reward:
        file = lines if isinstance(lines, Path) else tmp_path / "mine.py"
        if isinstance(lines, str):
            file.write_text(lines)
        config = configure("reward=function", f"reward.path={file}:{name}", *overrides)
        return REWARDS["function"](config.reward, Materials(tokenizer, STRICT, None, None, 0))

    return build


def test_it_is_paid_beside_the_outcome(
    build: Callable[..., Reward], tokenizer: PreTrainedTokenizerBase
) -> None:
    lines = "def score(problem, completion, answer):\n    return [0.5, 0.25, 0.25]\n"
    weights = ("reward.outcome_weight=0.8", "reward.function_weight=0.2")
    (rewards,) = build(lines, "score", *weights)([completion(tokenizer, RIGHT)], [PROBLEM])
    assert rewards == pytest.approx(paid(19, t6=0.1, t13=0.05, t18=0.85))


def test_an_exception_names_the_problem_and_the_line(
    build: Callable[..., Reward], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    lines = "def score(problem, completion, answer):\n    n = 0\n    return 1 / n\n"
    with pytest.raises(UserError) as refused:
        build(lines)([completion(tokenizer, RIGHT)], [PROBLEM])
    file = tmp_path / "mine.py"
    assert str(refused.value) == (
        f"reward.path={file}:score must score every completion; got ZeroDivisionError: division by "
        f"zero, in line 3 of {file}, for p."
    )


def test_an_exit_names_the_problem_and_the_line(
    build: Callable[..., Reward], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    lines = "import sys\ndef score(problem, completion, answer):\n    sys.exit(3)\n"
    with pytest.raises(UserError) as refused:
        build(lines)([completion(tokenizer, RIGHT)], [PROBLEM])
    file = tmp_path / "mine.py"
    assert str(refused.value) == (
        f"reward.path={file}:score must score every completion; got SystemExit: 3, in line 3 of "
        f"{file}, for p."
    )


def test_an_interrupt_ends_the_command(rewarded: Callable[..., list[float]]) -> None:
    def score(*_: object) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewarded(score)


@pytest.mark.parametrize(
    ("lines", "name", "said"),
    [
        (
            "def reward():\n    pass\nx = 1\n",
            "score",
            "must name a function of FILE; it has reward.",
        ),
        ("score = 1\n", "score", "must name a function of FILE; it has none."),
        (
            "def score(text):\n    return 0\n",
            "score",
            "must take problem, completion, answer; got score(text).",
        ),
        (
            "def score(problem, completion, answer, extra):\n    return 0\n",
            "score",
            "must take problem, completion, answer; got score(problem, completion, answer, extra).",
        ),
        (
            "import nothing_of_the_kind\n",
            "score",
            "must be Python that runs; got ModuleNotFoundError: No module named "
            "'nothing_of_the_kind', in line 1 of FILE.",
        ),
        ("exit(3)\n", "score", "must be Python that runs; got SystemExit: 3, in line 1 of FILE."),
        (
            "def score(:\n",
            "score",
            "must be Python that runs; got SyntaxError: invalid syntax (mine.py, line 1).",
        ),
    ],
)
def test_a_file_that_cannot_be_used(
    build: Callable[..., Reward], tmp_path: Path, lines: str, name: str, said: str
) -> None:
    with pytest.raises(UserError) as refused:
        build(lines, name)
    file = str(tmp_path / "mine.py")
    assert str(refused.value) == f"reward.path={file}:{name} {said.replace('FILE', file)}"


def test_a_file_may_hold_what_a_module_may(
    build: Callable[..., Reward], tokenizer: PreTrainedTokenizerBase
) -> None:
    lines = (
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Scorer:\n"
        "    bonus: float\n"
        "    def __call__(self, *args) -> float:\n"
        "        return self.bonus\n"
        "score = Scorer(0.5)\n"
    )
    (rewards,) = build(lines)([completion(tokenizer, RIGHT)], [PROBLEM])
    assert rewards[-1] == 1.25  # 1 for the answer, and half of 0.5


def test_a_file_that_is_not_called_python(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("")
    with pytest.raises(UserError) as refused:
        load_function(f"{file}:score", "reward.path", ("problem",))
    assert str(refused.value) == f"reward.path={file}:score must name a Python file, FILE.py."


def test_a_missing_file(build: Callable[..., Reward], tmp_path: Path) -> None:
    file = tmp_path / "none.py"
    with pytest.raises(UserError) as refused:
        build(file)
    assert str(refused.value) == f"reward.path={file}:score must name a file; there is no {file}."


@pytest.mark.parametrize("path", ["null", "mine.py", "mine:score", "mine.py:2"])
def test_the_path_has_a_form(configure: Callable[..., TrainConfig], path: str) -> None:
    with pytest.raises(UserError) as refused:
        configure("reward=function", f"reward.path={path}")
    assert str(refused.value) == (
        f"reward.path must be FILE.py:FUNCTION with reward=function; got reward.path={path}. See "
        "docs/own-rewards.md."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RIGHT, paid(19, t18=pytest.approx(45 / 64))),  # 19 of 64 tokens
        (" 2+3=5\n5*4=22\n#### 22", paid(19)),
    ],
)
def test_the_example_for_length(
    rewarded: Callable[..., list[float]], text: str, expected: list[float]
) -> None:
    assert rewarded(example("length"), text) == expected


def test_the_example_for_form(rewarded: Callable[..., list[float]]) -> None:
    third = pytest.approx(1 / 3)
    assert rewarded(example("format")) == paid(19, t6=third, t13=third, t18=third)
    # The first line has no numbers, and the last no answer: " ", "a", ...
    assert [r for r in rewarded(example("format"), " Ana\n5*4=20\n20") if r] == [third]
    assert rewarded(example("format"), "", "stop") == []


def example(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = runpy.run_path(str(ROOT / "examples/rewards" / f"{name}.py"))[
        "score"
    ]
    return function


def test_the_function_of_the_page(
    build: Callable[..., Reward], tokenizer: PreTrainedTokenizerBase
) -> None:
    (code,) = re.findall(r"^```python title=my_reward.py\n(.+?)^```", PAGE, re.DOTALL | re.M)
    (right,) = build(code)([completion(tokenizer, RIGHT)], [PROBLEM])
    assert sum(right) == 1.5
    (short,) = build(code)([completion(tokenizer, "#### 21")], [PROBLEM])
    assert sum(short) == 0.25  # 2 is a number of the question, and in 21
