"""What every reward takes and gives, and how rewards add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from reasonrl.types import Completion, Problem

TokenRewards = tuple[float, ...]  # one per sampled token; their sum is the completion's score


class Reward(Protocol):
    def __call__(
        self, completions: Sequence[Completion], problems: Sequence[Problem]
    ) -> list[TokenRewards]:
        """The rewards of each completion's tokens; ``problems[i]`` is what ``completions[i]``
        answers.

        Aligned with the sampled ids, never by encoding text again. A completion without tokens has
        no rewards, and so a score of 0.
        """
        ...


@dataclass(frozen=True)
class Sum:
    """Several rewards at once, token by token."""

    parts: tuple[Reward, ...]

    def __call__(
        self, completions: Sequence[Completion], problems: Sequence[Problem]
    ) -> list[TokenRewards]:
        per_part = [part(completions, problems) for part in self.parts]
        return [
            tuple(map(sum, zip(*rewards, strict=True))) for rewards in zip(*per_part, strict=True)
        ]
