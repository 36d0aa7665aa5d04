"""What every reward takes and gives, and how rewards add up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from reasonrl.grading.base import Grader
from reasonrl.runs.process import ALONE, Process
from reasonrl.types import Completion, Problem, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reasonrl.reward_models.model import RewardModel

TokenRewards = tuple[float, ...]  # one per sampled token; their sum is the completion's score


class Reward(Protocol):
    def __call__(
        self, completions: Sequence[Completion], problems: Sequence[Problem]
    ) -> list[TokenRewards]:
        """The rewards of each completion's tokens; ``completions[i]`` answers ``problems[i]``.

        Rewards are aligned with the sampled ids, never by encoding text again. A completion without
        tokens has no rewards, and so a score of 0.
        """
        ...

    def judge_steps(
        self,
        rollouts: Sequence[Rollout],
        problems: Sequence[Problem],
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[float]]:
        """How good each step (``grading.steps.step_tokens``) of each rollout is, in [0, 1].

        All processes of a run call it together.
        ``on_progress(n)`` is called as n further rollouts are judged.
        """
        ...


@dataclass(frozen=True)
class Materials:
    """What a reward may be built from, beside its settings."""

    tokenizer: PreTrainedTokenizerBase
    grader: Grader
    reward_model: RewardModel | None  # the reward model of a learned reward
    steps: Path | None  # the file of labelled steps, where steps are continued
    num_continuations: int  # completions that continue each of these steps
    process: Process = ALONE  # one of those that make the run together


@dataclass(frozen=True)
class Sum:
    """The sum of several rewards, token by token."""

    parts: tuple[Reward, ...]  # the last one judges steps

    def judge_steps(
        self,
        rollouts: Sequence[Rollout],
        problems: Sequence[Problem],
        on_progress: Callable[[int], None] | None = None,
    ) -> list[list[float]]:
        return self.parts[-1].judge_steps(rollouts, problems, on_progress)

    def __call__(
        self, completions: Sequence[Completion], problems: Sequence[Problem]
    ) -> list[TokenRewards]:
        per_part = [part(completions, problems) for part in self.parts]
        return [
            tuple(map(sum, zip(*rewards, strict=True))) for rewards in zip(*per_part, strict=True)
        ]
