"""The settings of continuing steps: see ``reasonrl.algorithms.steps``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasonrl.config.algorithm.base import (
    Algorithm,
    Footprint,
    Panels,
    Sizes,
    Work,
)
from reasonrl.config.algorithm.sample import SampleConfig
from reasonrl.config.base import counted, require

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig


@dataclass(frozen=True)
class StepsConfig(Algorithm):
    """Continuation of the steps of sampled completions, to see what becomes of them."""

    name: str
    sample: SampleConfig  # the run that samples the completions
    num_solutions_per_prompt: int  # completions of each question whose steps are continued
    num_continuations: int  # completions that continue each step's prefix

    makes = "completions"
    reads_reward = "nothing"
    questions = "reward_train_size"
    keeps = ()
    panels = Panels(rollouts=None, charts=())

    def check(self, key: str) -> None:
        self.sample.check(f"{key}.sample")
        check_continuations(key, self.num_continuations, self.num_solutions_per_prompt, self.sample)

    def needs(self, run: TrainConfig) -> dict[str, TrainConfig]:
        return {"rollouts": dataclasses.replace(run, algorithm=self.sample)}

    def shorter(self) -> Iterator[Algorithm]:
        return iter(())

    def outline(self, run: TrainConfig) -> str:
        return (
            f"continuing steps: K={self.num_continuations} of each step of "
            f"{counted(self.num_solutions_per_prompt, 'completion')}"
        )

    def work(self, sizes: Sizes) -> Work:
        """See ``Algorithm.work``. Every step's prefix counts, as if no two were the same."""
        solutions = sizes.train * self.num_solutions_per_prompt
        return Work(
            completions=round(solutions * sizes.steps_per_solution() * self.num_continuations)
        )

    def footprint(self) -> Footprint:
        return Footprint("nothing", "apart")

    def layers(self) -> dict[str, int]:
        return {}

    def longest(self, max_new_tokens: int, count_tokens: Callable[[list[str]], list[int]]) -> int:
        return 2 * max_new_tokens  # a completion may continue one that is almost whole


def check_continuations(
    key: str, num_continuations: int, num_solutions_per_prompt: int, sample: SampleConfig
) -> None:
    """Raises UserError for numbers of continuations that don't fit the completions there are."""
    require(
        num_continuations >= 1,
        f"{key}.num_continuations must be 1 or more; got {num_continuations}.",
    )
    require(
        1 <= num_solutions_per_prompt <= sample.num_samples_per_prompt,
        f"{key}.num_solutions_per_prompt={num_solutions_per_prompt} must be 1 or more "
        f"and at most {key}.sample.num_samples_per_prompt; got "
        f"{sample.num_samples_per_prompt}.",
    )
