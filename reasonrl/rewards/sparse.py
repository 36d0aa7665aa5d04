"""The sparse reward, which is also how every evaluation grades (paper, section 2)."""

from __future__ import annotations

from reasonrl.answers import answers_equal, extract_answer
from reasonrl.types import Completion, Problem


def read_answer(completion: Completion) -> str | None:
    """The completion's answer; None, which scores 0, if it can't be parsed or was cut off.

    A completion without an end is never right: ``#### 18`` may have been going to be ``#### 180``,
    and a policy must learn to stop.
    """
    return None if completion.finish_reason == "length" else extract_answer(completion.text)


def score(completion: Completion, problem: Problem) -> float:
    """1.0 for the right final answer, else 0.0."""
    return float(answers_equal(read_answer(completion), problem.answer))
