"""The settings that the two kinds of reward model share: see ``reasonrl.reward_models``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reasonrl.config.algorithm.base import Algorithm, Footprint, shorter_by
from reasonrl.config.algorithm.sample import SampleConfig
from reasonrl.config.base import require, require_one_of
from reasonrl.config.learner import LearnerConfig

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig


TRAINABLE = ("all", "head", "lora")


@dataclass(frozen=True)
class RewardModelConfig(LearnerConfig, Algorithm, abstract=True):
    """A reward model of the starting policy's completions."""

    name: str
    sample: SampleConfig  # the run that samples the completions to learn from
    likelihood: bool  # whether the head reads the log-probability of the completion so far
    trainable: str
    lora_rank: int  # the adapters' rank, with trainable=lora
    balanced: bool  # whether right and wrong labels weigh the same, whatever their numbers
    held_out: float  # share of the training questions to calibrate on, not to learn from

    makes = "reward model"
    reads_reward = "nothing"
    questions = "reward_train_size"
    keeps = ()

    def check(self, key: str) -> None:
        LearnerConfig.check(self, key)
        self.sample.check(f"{key}.sample")
        require_one_of(f"{key}.trainable", self.trainable, TRAINABLE)
        require(self.lora_rank >= 1, f"{key}.lora_rank must be 1 or more; got {self.lora_rank}.")
        require(
            0 < self.held_out < 1,
            f"{key}.held_out={self.held_out} must be above 0 and below 1: it is the share of the "
            "questions that the reward model is calibrated on and doesn't learn from.",
        )

    def needs(self, run: TrainConfig) -> dict[str, TrainConfig]:
        return {"rollouts": dataclasses.replace(run, algorithm=self.sample)}

    def shorter(self) -> Iterator[Algorithm]:
        return shorter_by(self, "epochs")

    def footprint(self) -> Footprint:
        return Footprint(
            self.trainable,
            "never",
            self.micro_batch_tokens,
            self.lora_rank,
            checkpoint_layers=self.checkpoint_layers,
        )

    def layers(self) -> dict[str, int]:
        return {}

    def longest(self, max_new_tokens: int, count_tokens: Callable[[list[str]], list[int]]) -> int:
        return max_new_tokens
