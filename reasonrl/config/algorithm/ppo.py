"""The settings of policy gradients, PPO's and its variants': see ``reasonrl.algorithms.ppo``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from reasonrl.config.algorithm.base import (
    SCORE,
    VALIDATED,
    VALIDATION,
    Algorithm,
    Cell,
    Footprint,
    Line,
    Panel,
    Panels,
    Sizes,
    Work,
    shorter_by,
)
from reasonrl.config.algorithm.switches import check_switches
from reasonrl.config.base import LATER, counted, require, require_one_of
from reasonrl.config.learner import LearnerConfig

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig


TRAINABLE = ("all", "top", "lora")
KL_PENALTIES = ("reward", "loss")
OLD_LOGPROBS = ("recomputed", "sampler")
OFF_POLICY_CORRECTIONS = ("none", "tis", "mask")
BASELINES = ("critic", "none", "group_mean", "leave_one_out", "greedy", "step_continuations")
SCALES = ("batch_std", "none", "group_std", "group_mean")
RATIOS = ("token", "sequence")
AGGREGATIONS = ("token", "sequence", "constant")
FILTERS = ("all", "mixed")
MEAN_STEPS = 3  # of a completion, for an estimate of the time alone


def validates_after(settings: PPOConfig, iteration: int) -> bool:
    """Whether a run validates after this iteration: after every so many, and after the last."""
    return iteration % settings.validate_every == 0 or iteration == settings.iterations


@dataclass(frozen=True)
class CompatConfig:
    """What PPO frameworks of the paper's time did otherwise, as settings to measure its effect."""

    unmasked_whitening: bool  # whether padding counts when advantages are whitened
    # Whether log-probabilities are those at temperature 1, whatever the sampling temperature.
    temperature_one_logprobs: bool


@dataclass(frozen=True)
class PPOConfig(LearnerConfig, Algorithm):
    """PPO and its variants. ``epochs`` are passes over the rollouts of an iteration.

    A variant is a file of values: which baseline is taken off the scores, by what the difference is
    divided, of what the ratio is, how it is clipped, how tokens are averaged, and which questions
    are learnt from.
    """

    name: str
    iterations: int
    rollouts_per_iteration: int
    num_samples_per_prompt: int
    temperature: float
    gamma: float
    clip_range: float  # below 1 and, without clip_range_high, above
    entropy_coef: float
    kl_coef: float
    kl_penalty: str
    kl_target: float | None  # nats per completion to which kl_coef adapts; None: it stays
    kl_horizon: int  # rollouts over which kl_coef adapts
    max_approx_kl: float | None  # nats per token, from old to new policy, that end an iteration
    scale_scores: bool
    score_clip: float | None
    truncation_penalty: float  # taken off the score of a completion that was cut off
    mask_truncated: bool  # whether nothing is learnt from a completion that was cut off
    old_logprobs: str
    trainable: str
    trainable_layers: int  # how many top layers train, with trainable=top
    lora_rank: int  # the adapters' rank, with trainable=lora
    validate_every: int  # iterations between validations
    compat: CompatConfig
    # Of a value function: whether the loss is clipped (None: it isn't), the peak of its learning
    # rate, which falls as the policy's does; 0: a linear head on the policy, M: a copy of its top M
    # layers and a head; whether its gradient stops before the policy's weights.
    gae_lambda: float | None = field(default=None, kw_only=True)
    value_clip_range: float | None = field(default=None, kw_only=True)
    value_learning_rate: float | None = field(default=None, kw_only=True)
    value_coef: float | None = field(default=None, kw_only=True)
    value_layers: int | None = field(default=None, kw_only=True)
    detach_value: bool | None = field(default=None, kw_only=True)
    # What a variant is made of, in the order of the loop; the defaults are PPO's.
    baseline: str = field(default="critic", kw_only=True, metadata=LATER)
    num_continuations: int | None = field(default=None, kw_only=True, metadata=LATER)  # of a step
    scale: str = field(default="batch_std", kw_only=True, metadata=LATER)
    ratio: str = field(default="token", kw_only=True, metadata=LATER)
    clip_range_high: float | None = field(default=None, kw_only=True, metadata=LATER)
    clip_detached: bool = field(default=False, kw_only=True, metadata=LATER)
    aggregation: str = field(default="token", kw_only=True, metadata=LATER)
    filter: str = field(default="all", kw_only=True, metadata=LATER)
    resamplings: int = field(default=0, kw_only=True, metadata=LATER)  # for filtered questions
    # ppo, for an option that is a file of other values for the same loop.
    variant_of: str | None = field(default=None, kw_only=True, metadata=LATER)
    # Stop after so many validations without a better maj@1.
    patience: int | None = field(default=None, kw_only=True, metadata=LATER)
    # How a token weighs that another engine than the learner's sampled, by the quotient of both
    # probabilities (``functional.off_policy_weights``), and what the quotient is cut or masked at.
    off_policy_correction: str = field(default="none", kw_only=True, metadata=LATER)
    off_policy_cap: float = field(default=2.0, kw_only=True, metadata=LATER)

    makes = "policy"
    reads_reward = "scores"
    questions = "reward_train_size"
    keeps = ()
    panels = Panels(
        rollouts="pg/rollouts",
        charts=(
            Panel(
                "accuracy",
                "share right",
                {
                    "rollout/correct": "training questions, sampled",
                    VALIDATION: "validation, greedy",
                },
                over="rollouts",
                markers=".o",
                ylim=(0, 1),
            ),
            Panel(
                "KL to the reference",
                "nats per completion",
                {"pg/kl": ""},
                over="rollouts",
                zero=True,
            ),
            Panel("entropy", "nats per token", {"pg/entropy": ""}, over="rollouts", zero=True),
            # How far below 0 a critic is matters little, and would flatten the rest.
            Panel(
                "critic",
                "explained variance",
                {"pg/explained_variance": ""},
                over="rollouts",
                ylim=(-1, 1),
                zero=True,
            ),
            Panel(
                "updates",
                "clip fraction",
                {"pg/clip_fraction": ""},
                over="rollouts",
                zero=True,
                right=("pg/approx_kl", "approximate KL, nats per token"),
            ),
            Panel(
                "completions",
                "mean length in tokens",
                {"rollout/mean_length": ""},
                over="rollouts",
                zero=True,
                right=("rollout/finish_length", "share cut off"),
                right_ylim=(-0.05, 1.05),
            ),
        ),
        line=Line(
            part="iteration",
            number="pg/iteration",
            total="iterations",
            ends="pg/steps",
            cells=(
                SCORE,
                VALIDATED,
                Cell("KL", "pg/kl", "7.3f"),
                Cell("length", "rollout/mean_length", "6.1f"),
            ),
            validates=validates_after,
        ),
    )

    def check(self, key: str) -> None:
        LearnerConfig.check(self, key)
        require_one_of(f"{key}.kl_penalty", self.kl_penalty, KL_PENALTIES)
        require_one_of(f"{key}.old_logprobs", self.old_logprobs, OLD_LOGPROBS)
        require_one_of(
            f"{key}.off_policy_correction", self.off_policy_correction, OFF_POLICY_CORRECTIONS
        )
        require(
            1 <= self.off_policy_cap < math.inf,
            f"{key}.off_policy_cap must be 1 or more; got {self.off_policy_cap}.",
        )
        require_one_of(f"{key}.trainable", self.trainable, TRAINABLE)
        for name in (
            "iterations",
            "num_samples_per_prompt",
            "kl_horizon",
            "trainable_layers",
            "lora_rank",
            "validate_every",
        ):
            value = getattr(self, name)
            require(value >= 1, f"{key}.{name} must be 1 or more; got {value}.")
        require(
            self.patience is None or self.patience >= 1,
            f"{key}.patience must be null (off) or 1 or more; got {self.patience}.",
        )
        for name, choices in (
            ("baseline", BASELINES),
            ("scale", SCALES),
            ("ratio", RATIOS),
            ("aggregation", AGGREGATIONS),
            ("filter", FILTERS),
        ):
            require_one_of(f"{key}.{name}", getattr(self, name), choices)
        require(0 <= self.gamma <= 1, f"{key}.gamma must be between 0 and 1; got {self.gamma}.")
        for name in ("entropy_coef", "kl_coef", "truncation_penalty"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"{key}.{name} must be 0 or more; got {value}.")
        for name in ("clip_range_high", "kl_target", "max_approx_kl", "score_clip"):
            value = getattr(self, name)
            require(
                value is None or 0 < value < math.inf,
                f"{key}.{name} must be null (off) or above 0; got {value}.",
            )
        require(
            0 < self.clip_range < 1,
            f"{key}.clip_range must be above 0 and below 1; got {self.clip_range}.",
        )
        require(
            0 < self.temperature < math.inf,
            f"{key}.temperature={self.temperature} must be above 0: a policy gradient "
            "learns from the differences between samples of one prompt. The paper's PPO explores "
            "at 0.7, and at 0.2 from a prompted pretrained model.",
        )
        samples = self.num_samples_per_prompt
        for name in ("rollouts_per_iteration", "batch_size"):
            value = getattr(self, name)
            require(
                value >= 1 and value % samples == 0,
                f"{key}.{name}={value} must be a multiple of {key}.num_samples_per_prompt: it is "
                f"made of whole questions; got {samples}. "
                f"Pass {max(1, round(value / samples)) * samples}.",
            )
        require(
            self.kl_target is None or self.kl_coef > 0,
            f"{key}.kl_coef must be above 0 to adapt to {key}.kl_target={self.kl_target}; got "
            f"{self.kl_coef}. Pass {key}.kl_coef=0.05 or {key}.kl_target=null.",
        )
        require(
            5 * self.kl_horizon > self.rollouts_per_iteration,
            f"{key}.kl_horizon={self.kl_horizon} must be above a fifth of "
            f"{key}.rollouts_per_iteration, or one iteration could make the coefficient 0; got "
            f"{self.rollouts_per_iteration}. Raise it.",
        )
        check_switches(key, self)

    def needs(self, run: TrainConfig) -> dict[str, TrainConfig]:
        return {}

    def shorter(self) -> Iterator[Algorithm]:
        return shorter_by(self, "iterations")

    def outline(self, run: TrainConfig) -> str:
        return (
            f"{self.called('PPO')}: {counted(self.iterations, 'iteration')} of "
            f"{self.rollouts_per_iteration:,} rollouts, K={self.num_samples_per_prompt} at "
            f"T={self.temperature:g}, {counted(self.epochs, 'epoch')}, KL {self.kl_coef:g}, "
            f"{run.reward.name} reward"
        )

    def work(self, sizes: Sizes) -> Work:
        rollouts = self.iterations * self.rollouts_per_iteration
        validations = 1 + -(-self.iterations // self.validate_every)
        extra = {"greedy": 1 / self.num_samples_per_prompt, "step_continuations": MEAN_STEPS}
        sampled = rollouts * (1 + extra.get(self.baseline, 0) * (self.num_continuations or 1))
        return Work(
            completions=round(sampled) + validations * sizes.validation,
            again=self.resamplings * rollouts,
            examples=self.epochs * rollouts,
            readings=2 * rollouts,  # each is read by the policy and by the reference
        )

    def footprint(self) -> Footprint:
        return Footprint(
            self.trainable,
            "while it learns",
            self.micro_batch_tokens,
            self.lora_rank,
            self.trainable_layers,
            self.value_layers or 0,
            checkpoint_layers=self.checkpoint_layers,
            reference=self.trainable != "lora",  # else it is the policy without its adapters
        )

    def layers(self) -> dict[str, int]:
        return {name: getattr(self, name) or 0 for name in ("value_layers", "trainable_layers")}

    def longest(self, max_new_tokens: int, count_tokens: Callable[[list[str]], list[int]]) -> int:
        return max_new_tokens
