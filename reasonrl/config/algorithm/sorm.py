"""The settings of stepwise outcome reward models: see ``reasonrl.algorithms.sorm``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasonrl.config.algorithm.base import Line, Panels, Sizes, Work, learning_panel
from reasonrl.config.algorithm.reward_model import RewardModelConfig
from reasonrl.config.algorithm.steps import StepsConfig, check_continuations
from reasonrl.config.base import counted

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig


@dataclass(frozen=True)
class SORMConfig(RewardModelConfig):
    """A stepwise outcome reward model: its labels are those of steps."""

    num_solutions_per_prompt: int  # sampled completions of each question that are labelled
    num_continuations: int  # completions that continue each step's prefix

    panels = Panels(None, (learning_panel("sorm"),), Line.of_epochs("sorm"))

    def check(self, key: str) -> None:
        super().check(key)
        check_continuations(key, self.num_continuations, self.num_solutions_per_prompt, self.sample)

    def needs(self, run: TrainConfig) -> dict[str, TrainConfig]:
        steps = StepsConfig(
            name="steps",
            sample=self.sample,
            num_solutions_per_prompt=self.num_solutions_per_prompt,
            num_continuations=self.num_continuations,
        )
        return super().needs(run) | {"steps": dataclasses.replace(run, algorithm=steps)}

    def outline(self, run: TrainConfig) -> str:
        return (
            f"stepwise reward model: {counted(self.epochs, 'epoch')} on the steps of "
            f"{counted(self.num_solutions_per_prompt, 'completion')}"
        )

    def work(self, sizes: Sizes) -> Work:
        return Work(examples=self.epochs * sizes.train * self.num_solutions_per_prompt)
