r"""MATH and AIME, from local files and from the hub's places."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from reasonrl.config.resolve import resolve
from reasonrl.grading import grader_of
from reasonrl.problems import load_problems
from reasonrl.problems import math as math_module
from reasonrl.problems.math import SUBJECTS
from reasonrl.problems.sources import Row
from reasonrl.types import Problem
from reasonrl.util.errors import UserError
from tests.helpers.configs import ROOT


@pytest.fixture(scope="module")
def hub() -> Any:
    """The dataset as conf/ has it."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("train", ["dataset=math"])).dataset


@pytest.fixture
def local(hub: Any, tmp_path: Path) -> Any:
    return replace(hub, path=str(tmp_path))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    def write(name: str, *rows: dict[str, Any]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    return write


def solved(number: int, subject: str = "Algebra") -> dict[str, Any]:
    return {
        "problem": f"What is $\\frac{{{number}}}{{7}}$ of {subject}?",
        "level": "Level 1",
        "type": subject,
        "solution": f"It is\n\n$\\boxed{{\\frac{{{number}}}{{7}}}}$.",
    }


def test_a_problem(local: Any, write: Callable[..., None]) -> None:
    write("test.jsonl", solved(3))
    assert load_problems(local, "test") == [
        Problem(
            id="math-test-0",
            question=r"What is $\frac{3}{7}$ of Algebra?",
            answer=r"\frac{3}{7}",
            solution="It is\n\n$\\boxed{\\frac{3}{7}}$.",
        )
    ]


@pytest.mark.parametrize(
    ("solution", "answer", "read"),
    [
        (r"\boxed{1} and then $\boxed{2}$.", "2", r"\boxed{1} and then $\boxed{2}$."),
        (r"So it is $\fbox{12}$.", "12", r"So it is $\boxed{12}$."),
        (r"So it is $\boxed 5$.", "5", r"So it is $\boxed{5}$."),
        (r"\boxed{1,\!800}", "1800", r"\boxed{1,\!800}"),
    ],
)
def test_the_answer_is_the_last_box(
    local: Any, write: Callable[..., None], solution: str, answer: str, read: str
) -> None:
    write("test.jsonl", solved(1) | {"solution": solution})
    (problem,) = load_problems(local, "test")
    assert (problem.answer, problem.solution) == (answer, read)
    assert grader_of(local).answer(f" {problem.solution}") == answer


def test_a_solution_without_an_answer_is_left_out(
    local: Any, write: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    write("test.jsonl", solved(1), solved(2) | {"solution": "It is 2."})
    with caplog.at_level(logging.INFO):
        assert [p.id for p in load_problems(local, "test")] == ["math-test-0"]
    assert caplog.messages == ["1 of 2 problems of MATH have no readable answer and are left out"]


def test_validation_is_500_of_the_training_problems_whatever_their_order(
    local: Any, write: Callable[..., None]
) -> None:
    rows = [solved(i) for i in range(503)]
    write("train.jsonl", *rows)
    train, validation = (load_problems(local, split) for split in ("train", "validation"))
    assert [p.answer for p in train] == [r"\frac{419}{7}", r"\frac{212}{7}", r"\frac{30}{7}"]
    assert len({p.id for p in validation} | {p.id for p in train}) == 503
    write("train.jsonl", *reversed(rows))
    assert [p.question for p in load_problems(local, "train")] == [p.question for p in train]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str | None]]:
    """What the hub is asked for; it answers with a problem each time."""
    asked: list[tuple[str, str, str | None]] = []

    def from_the_hub(hub: str, split: str, config: str | None = None) -> list[Row]:
        asked.append((hub, split, config))
        return [Row(solved(len(asked), str(config)) | {"answer": 25}, "row")]

    monkeypatch.setattr(math_module, "hub_rows", from_the_hub)
    return asked


def test_the_subjects_are_read_one_after_another_and_mixed(hub: Any, asked: list[Any]) -> None:
    read = load_problems(hub, "test")
    assert asked == [("EleutherAI/hendrycks_math", "test", subject) for subject in SUBJECTS]
    assert sorted(p.id for p in read) == [f"math-test-{i}" for i in range(7)]
    assert [p.id for p in read] != [f"math-test-{i}" for i in range(7)]


@pytest.mark.parametrize(
    ("split", "place"),
    [
        ("math500", ("HuggingFaceH4/MATH-500", "test", None)),
        ("aime24", ("HuggingFaceH4/aime_2024", "train", None)),
        ("aime25", ("MathArena/aime_2025", "train", None)),
    ],
)
def test_splits_that_are_evaluated_only(
    hub: Any, asked: list[Any], split: str, place: tuple[str, str, None]
) -> None:
    (problem,) = load_problems(hub, split)
    assert asked == [place]
    assert (problem.id, problem.answer) == (f"math-{split}-0", "25")


@pytest.mark.parametrize(
    ("row", "answer", "solution"),
    [
        ({"answer": r"\frac{1}{7}"}, r"\frac{1}{7}", "It is\n\n$\\boxed{\\frac{1}{7}}$."),
        ({"answer": "025", "solution": "It is 25."}, "25", "It is 25.\n\\boxed{25}"),
        ({"answer": 25, "solution": None}, "25", r"\boxed{25}"),
        ({"answer": r"p - q"}, "p - q", "It is\n\n$\\boxed{\\frac{1}{7}}$.\n\\boxed{p - q}"),
    ],
)
def test_an_answer_stands_in_its_field(
    local: Any, write: Callable[..., None], row: dict[str, Any], answer: str, solution: str
) -> None:
    write("aime25.jsonl", solved(1) | row)
    (problem,) = load_problems(local, "aime25")
    assert (problem.answer, problem.solution) == (answer, solution)
    assert grader_of(local).answer(f" {solution}") == answer


def test_a_missing_field_is_named(local: Any, write: Callable[..., None], tmp_path: Path) -> None:
    write("math500.jsonl", solved(1))
    with pytest.raises(UserError) as refused:
        load_problems(local, "math500")
    assert str(refused.value) == f"{tmp_path}/math500.jsonl:1: answer must be there and not empty."


def test_a_prompt_asks_for_a_box(hub: Any) -> None:
    asked = hub.prompt.replace("{question}", "1 + 1?")
    assert asked == "Q: 1 + 1?\nPut the final answer in \\boxed{}.\nA:"
    assert grader_of(hub).answer(" \\boxed{2}\nQ: 1 + 2?\nA: \\boxed{3}") == "2"
