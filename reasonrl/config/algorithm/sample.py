"""The settings of sampling: see ``reasonrl.algorithms.sample``."""

from __future__ import annotations

import math
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
from reasonrl.config.base import require

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig


@dataclass(frozen=True)
class SampleConfig(Algorithm):
    """Sampling of completions for other runs to learn from."""

    name: str
    num_samples_per_prompt: int
    temperature: float

    makes = "completions"
    reads_reward = "nothing"
    questions = "reward_train_size"
    keeps = ()
    panels = Panels(rollouts=None, charts=())

    def check(self, key: str) -> None:
        require(
            self.num_samples_per_prompt >= 1,
            f"{key}.num_samples_per_prompt must be 1 or more; got {self.num_samples_per_prompt}.",
        )
        require(
            0 < self.temperature < math.inf,
            f"{key}.temperature={self.temperature} must be above 0: greedy samples of one prompt "
            "are all the same.",
        )

    def needs(self, run: TrainConfig) -> dict[str, TrainConfig]:
        return {}

    def shorter(self) -> Iterator[Algorithm]:
        return iter(())

    def outline(self, run: TrainConfig) -> str:
        return f"sampling: K={self.num_samples_per_prompt} at T={self.temperature:g}"

    def work(self, sizes: Sizes) -> Work:
        return Work(completions=self.num_samples_per_prompt * (sizes.train + sizes.validation))

    def footprint(self) -> Footprint:
        return Footprint("nothing", "apart")

    def layers(self) -> dict[str, int]:
        return {}

    def longest(
        self,
        max_new_tokens: int,
        count_tokens: Callable[[list[str]], list[int]],
    ) -> int:
        return max_new_tokens
