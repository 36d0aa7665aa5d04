"""The settings of Expert Iteration: see ``reasonrl.algorithms.ei``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from reasonrl.config.algorithm.base import (
    SCORE,
    VALIDATED,
    Algorithm,
    Cell,
    Footprint,
    Line,
    Panels,
    Sizes,
    Work,
    learning_panel,
    shorter_by,
    validation_panel,
)
from reasonrl.config.base import LATER, counted, require, require_one_of
from reasonrl.config.learner import FineTuningConfig

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig


@dataclass(frozen=True)
class EIConfig(FineTuningConfig, Algorithm):
    """Expert Iteration: sample, keep what is good, fine-tune on it, again."""

    name: str
    rounds: int
    num_samples_per_prompt: list[int]  # one number a round; the last also serves later rounds
    temperature: float
    # How many of a round's good solutions of a problem are kept, those that score best; None: all.
    top_per_problem: int | None
    max_per_problem: int | None  # the most solutions of a problem to learn from; None: all
    restart: bool  # whether a round starts from the base weights; false: from the last policy
    patience: int | None  # stop after so many rounds without a better validation maj@1
    # What weighs the same in the loss: each solution, or each problem, whose solutions share its
    # weight.
    weighting: str = field(default="sample", kw_only=True, metadata=LATER)
    # Whether a round also learns from the solutions of the rounds before, and from the references.
    accumulate: bool = field(default=True, kw_only=True, metadata=LATER)
    # ei, for an option that is a file of other values for the same rounds.
    variant_of: str | None = field(default=None, kw_only=True, metadata=LATER)

    makes = "policy"
    reads_reward = "scores and threshold"
    questions = "train_size"
    panels = Panels(
        rollouts="ei/rollouts",
        charts=(learning_panel("ei"), validation_panel("rollouts")),
        line=Line(
            part="round",
            number="ei/round",
            total="rounds",
            ends="ei/round",
            cells=(
                SCORE,
                Cell("new", "ei/new_solutions", "7,.0f"),
                Cell("solutions", "ei/solutions", "9,.0f"),
                VALIDATED,
            ),
        ),
        more=("rollout/correct", "ei/new_solutions", "ei/problems_solved"),
    )
    keeps = ("metrics.jsonl", "rollouts", "evaluation/validation", "rounds", "rounds.json")

    def samples_in_round(self, number: int) -> int:
        """The samples per prompt, K, of round ``number``, which counts from 1."""
        samples = self.num_samples_per_prompt
        return samples[min(number, len(samples)) - 1]

    def check(self, key: str) -> None:
        FineTuningConfig.check(self, key)
        require(self.rounds >= 1, f"{key}.rounds must be 1 or more; got {self.rounds}.")
        samples = self.num_samples_per_prompt
        require(
            1 <= len(samples) <= self.rounds and min(samples) >= 1,
            f"{key}.num_samples_per_prompt={samples} must hold 1 to {key}.rounds numbers, each "
            f"1 or more; got {key}.rounds={self.rounds}. One number serves every round: [8].",
        )
        require(
            0 < self.temperature < math.inf,
            f"{key}.temperature={self.temperature} must be above 0: greedy samples of one prompt "
            "are all the same. Expert Iteration explores at 1.0.",
        )
        for name in ("top_per_problem", "max_per_problem", "patience"):
            value = getattr(self, name)
            require(
                value is None or value >= 1,
                f"{key}.{name} must be null (off) or 1 or more; got {value}.",
            )
        require_one_of(f"{key}.weighting", self.weighting, ("sample", "problem"))

    def needs(self, run: TrainConfig) -> dict[str, TrainConfig]:
        return {}

    def shorter(self) -> Iterator[Algorithm]:
        for one in shorter_by(self, "rounds"):
            assert isinstance(one, EIConfig)
            yield replace(one, num_samples_per_prompt=self.num_samples_per_prompt[: one.rounds])

    def outline(self, run: TrainConfig) -> str:
        samples = ", ".join(map(str, self.num_samples_per_prompt))
        return (
            f"{self.called('Expert Iteration')}: {counted(self.rounds, 'round')} of K={samples} "
            f"at T={self.temperature:g}, {run.reward.name} reward"
        )

    def work(self, sizes: Sizes) -> Work:
        """See ``Algorithm.work``.

        The number of examples depends on what is found: it counts one new solution of each problem
        in each round.
        """
        total = Work(completions=sizes.validation)
        known = sizes.references if sizes.starts_from_references else 0
        for number in range(1, self.rounds + 1):
            known = sizes.train + (known if self.accumulate else 0)
            total += Work(
                completions=sizes.train * self.samples_in_round(number) + sizes.validation,
                examples=self.epochs * known,
            )
        return total

    def footprint(self) -> Footprint:
        return Footprint.of_fine_tuning(self)

    def layers(self) -> dict[str, int]:
        return {}

    def longest(self, max_new_tokens: int, count_tokens: Callable[[list[str]], list[int]]) -> int:
        return max_new_tokens
