"""The sparse reward, which is also how every evaluation grades (paper, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from reasonrl.config.reward.sparse import SparseConfig
from reasonrl.grading.base import Grader
from reasonrl.rewards.base import Materials, Reward, TokenRewards
from reasonrl.rewards.steps import read_steps
from reasonrl.types import Completion, Problem, Rollout


def read_answer(completion: Completion, grader: Grader) -> str | None:
    """The completion's answer; None, which is wrong, if it can't be parsed or was cut off.

    A completion without an end is never right: ``#### 18`` may have been going to be ``#### 180``,
    and a policy must learn to stop.
    """
    return None if completion.finish_reason == "length" else grader.answer(completion.text)


def is_correct(completion: Completion, problem: Problem, grader: Grader) -> bool:
    """Whether the completion's answer is the problem's."""
    return grader.equal(read_answer(completion, grader), problem.answer)


@dataclass(frozen=True)
class Outcome:
    """``weight`` on the last token of a completion with the right final answer, else nothing."""

    grader: Grader
    weight: float = 1.0
    steps: Path | None = None  # the file of labelled steps, by which steps are judged
    num_continuations: int = 0  # completions that continue each of these steps

    def __call__(
        self, completions: Sequence[Completion], problems: Sequence[Problem]
    ) -> list[TokenRewards]:
        return [
            at_end(completion, self.weight * is_correct(completion, problem, self.grader))
            for completion, problem in zip(completions, problems, strict=True)
        ]

    def judge_steps(
        self,
        rollouts: Sequence[Rollout],
        problems: Sequence[Problem],  # noqa: ARG002 (the counts know)
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[float]]:
        """The share of right completions among those that continue from each step."""
        if self.steps is None:
            raise ValueError("the sparse reward judges steps by how they are continued")
        judged = [
            [(step.correct or 0) / self.num_continuations for step in steps]
            for steps in read_steps(self.steps, rollouts)
        ]
        if on_progress:
            on_progress(len(rollouts))
        return judged


def at_end(completion: Completion, reward: float) -> TokenRewards:
    """``reward`` on the last token, EOS or not."""
    length = len(completion.token_ids)
    return (0.0,) * (length - 1) + (float(reward),) * min(length, 1)


def build(settings: SparseConfig, materials: Materials) -> Reward:  # noqa: ARG001
    """The reward that these settings describe."""
    return Outcome(
        materials.grader,
        steps=materials.steps,
        num_continuations=materials.num_continuations,
    )
