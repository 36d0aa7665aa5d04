"""What holds for any completion: no exception, never more than the reference is worth."""

import math
import os
import random
import time
from pathlib import Path

import pytest

from reasonrl.problems import gsm8k, stories, svamp
from reasonrl.rewards.dense import first_wrong_step, step_fractions
from reasonrl.types import Problem
from tests.helpers.grading import STRICT

DATA = Path(os.environ.get("REASONRL_DATA", Path(__file__).parents[2].parent / "shared" / "data"))

ANNOTATED = Problem(
    id="clips",
    question="Natalia sold clips to 48 friends in April, and half as many in May. How many in all?",
    answer="72",
    solution="In May 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72.\n#### 72",
)
PROBLEMS = [ANNOTATED, *stories.load("train", 99, seed=0, min_steps=2, max_steps=3)]
JUNK = [
    *"01=/*x().,-−$%×²１ \n\r\x00<>😀\ufffd",
    "####",
    "#### 7",
    "<<",
    ">>",
    "Q:",
    "1/0",
    "9" * 400,
]
NUMBER_OF_COMPLETIONS = 20_000


def mutated(rng: random.Random, text: str) -> str:
    """A line dropped, doubled or moved, or a few characters lost, changed or put in."""
    if rng.random() < 0.4:
        lines = text.split("\n")
        lines[rng.randrange(len(lines))] = rng.choice(["", *lines])
        if rng.random() < 0.5:
            rng.shuffle(lines)
        return "\n".join(lines)
    for _ in range(rng.randint(1, 4)):
        start = rng.randint(0, len(text))
        text = text[:start] + rng.choice(JUNK) + text[start + rng.randint(0, 2) :]
    return text


def completions() -> list[tuple[Problem, str]]:
    """Of ten, eight are mutated reference solutions, one is another problem's, one is junk."""
    rng = random.Random(0)
    drawn = []
    for i in range(NUMBER_OF_COMPLETIONS):
        problem = rng.choice(PROBLEMS)
        if i % 10 == 0:
            text = "".join(rng.choices(JUNK, k=rng.randint(0, 12)))
        elif i % 10 == 1:
            text = rng.choice(PROBLEMS).solution
        else:
            text = mutated(rng, problem.solution)
        drawn.append((problem, text))
    return sorted(drawn, key=lambda pair: pair[0].id)


@pytest.mark.slow
def test_20_000_completions_neither_raise_nor_win_more_than_the_reference():
    sums = {False: 0.0, True: 0.0}
    for problem, text in completions():
        answer, ends = STRICT.answer(text), STRICT.step_ends(text)
        assert ends == sorted({*ends})
        assert not ends or 0 < ends[0] <= ends[-1] <= len(text)
        wrong = first_wrong_step(text, problem, STRICT)
        assert wrong is None or 0 <= wrong < max(len(ends), 1)
        assert wrong is not None or answer == problem.answer
        for ordered in sums:
            paid = step_fractions(text, problem, STRICT, ordered=ordered)
            total = sum(fraction for _, fraction in paid)
            assert math.isfinite(total)
            assert 0 <= total <= 1 + 1e-9
            assert [end for end, _ in paid] == sorted(end for end, _ in paid)
            assert all(0 < end <= len(text) for end, _ in paid)
            sums[ordered] += total
    # The mutations leave much of most references, so that the above says something.
    assert 0.3 * NUMBER_OF_COMPLETIONS < sums[True] < sums[False] < 0.9 * NUMBER_OF_COMPLETIONS


def reference_problems(name: str) -> list[Problem]:
    if name == "stories":
        return [
            *stories.load("train", 1000, seed=1, min_steps=2, max_steps=5),
            *stories.load("ood", 500, seed=1, min_steps=2, max_steps=5),
        ]
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: set REASONRL_DATA to a folder that holds {name}/")
    splits = ("train", "validation", "test")
    if name == "svamp":
        return [p for s in splits for p in svamp.load(s, path=str(folder), hub="")]
    return [p for s in splits for p in gsm8k.load(s, path=str(folder), hub="", annotations=True)]


# Measured: of GSM8K's 8,792 solutions 134 calculate nothing that can be read, of SVAMP's one.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "without_calculation"),
    [("stories", 1500, 0), ("gsm8k", 8792, 134), ("svamp", 1000, 1)],
)
def test_every_reference_solution_gets_all_and_has_no_wrong_step(name, size, without_calculation):
    problems = reference_problems(name)
    assert len(problems) == size
    unpaid = 0
    for problem in problems:
        assert first_wrong_step(problem.solution, problem, STRICT) is None
        for ordered in (False, True):
            paid = step_fractions(problem.solution, problem, STRICT, ordered=ordered)
            total = sum(fraction for _, fraction in paid)
            assert math.isclose(total, 1) or not STRICT.calculations(problem.solution)
        unpaid += not paid
    assert unpaid == without_calculation


def seconds_to_judge(pattern: str) -> float:
    """Of a completion of 100 kB."""
    text = pattern * (100_000 // len(pattern))
    start = time.process_time()
    STRICT.step_ends(text)
    first_wrong_step(text, ANNOTATED, STRICT)
    step_fractions(text, ANNOTATED, STRICT, ordered=True)
    return time.process_time() - start


def test_long_completions_take_linear_time():
    """Quadratic time would be minutes; linear takes about half a second."""
    patterns = ("1+", "48/2=24\n", "48/2=24 ", "<<1+1=2>>", "#### 72\n", "\n")
    assert [pattern for pattern in patterns if seconds_to_judge(pattern) >= 5] == []
