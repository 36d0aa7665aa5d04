"""The sparse reward, which is also how every evaluation grades (paper, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reasonrl.answers import answers_equal, extract_answer
from reasonrl.rewards.base import TokenRewards
from reasonrl.types import Completion, Problem


def read_answer(completion: Completion) -> str | None:
    """The completion's answer; None, which is wrong, if it can't be parsed or was cut off.

    A completion without an end is never right: ``#### 18`` may have been going to be ``#### 180``,
    and a policy must learn to stop.
    """
    return None if completion.finish_reason == "length" else extract_answer(completion.text)


def is_correct(completion: Completion, problem: Problem) -> bool:
    """Whether the completion's answer is the problem's."""
    return answers_equal(read_answer(completion), problem.answer)


@dataclass(frozen=True)
class Outcome:
    """``weight`` on the last token of a completion with the right final answer, else nothing."""

    weight: float = 1.0

    def __call__(
        self, completions: Sequence[Completion], problems: Sequence[Problem]
    ) -> list[TokenRewards]:
        return [
            at_end(completion, self.weight * is_correct(completion, problem))
            for completion, problem in zip(completions, problems, strict=True)
        ]


def at_end(completion: Completion, reward: float) -> TokenRewards:
    """``reward`` on the last token, EOS or not."""
    length = len(completion.token_ids)
    return (0.0,) * (length - 1) + (float(reward),) * min(length, 1)
