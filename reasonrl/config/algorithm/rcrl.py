"""The settings of Return-Conditioned RL: see ``reasonrl.algorithms.rcrl``."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from reasonrl.config.algorithm.base import (
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
from reasonrl.config.algorithm.ei import EIConfig
from reasonrl.config.algorithm.sample import SampleConfig
from reasonrl.config.algorithm.steps import StepsConfig, check_continuations
from reasonrl.config.base import counted, require, require_one_of
from reasonrl.config.learner import FineTuningConfig

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig


RETURNS = ("value", "solution")
LABEL_TOKENS = ("own", "text")
TENTHS = 10


@dataclass(frozen=True)
class RCRLConfig(FineTuningConfig, Algorithm):
    """Return-Conditioned RL."""

    name: str
    # The run that makes the policy whose completions are learnt from; None: the starting policy.
    policy: EIConfig | None
    sample: SampleConfig  # the run that samples these completions
    num_solutions_per_prompt: int  # completions of each question that are learnt from
    num_continuations: int  # of each step's prefix, where these say how good the step is
    returns: str
    labels: list[str] | None  # from the worst; None: the return itself, rounded to a tenth
    thresholds: list[float]  # the lowest return of the second label, of the third, and so on
    label_tokens: str
    solution_ratio: float | None  # right solutions for each wrong one; None: as sampled
    step_ratio: float | None  # steps with the best label for each with another; None: as they are
    shuffle_labels: bool
    restart: bool  # whether training starts from the base weights; false: from the starting policy

    makes = "policy"
    reads_reward = "scores"
    questions = "reward_train_size"
    keeps = ()
    panels = Panels(
        rollouts=None,
        charts=(learning_panel("rcrl"), validation_panel("label", "rcrl/maj@1_*")),
        line=Line.of_epochs("rcrl", VALIDATED, Cell("gap", "rcrl/conditioning_gap", "7.3f")),
        more=("rcrl/conditioning_gap",),
    )

    @property
    def label_texts(self) -> list[str]:
        """The labels, from the worst to the best."""
        return self.labels or [f"[{tenth / TENTHS:.1f}]" for tenth in range(TENTHS + 1)]

    def label_number(self, value: float) -> int:
        """The place, in ``label_texts``, of the label for a return between 0 and 1."""
        if self.labels is None:
            return math.floor(TENTHS * value + 0.5)  # round() would take .25 down, .75 up
        return bisect_right(self.thresholds, value)

    def check(self, key: str) -> None:
        FineTuningConfig.check(self, key)
        if self.policy is not None:
            self.policy.check(f"{key}.policy")
        self.sample.check(f"{key}.sample")
        check_continuations(key, self.num_continuations, self.num_solutions_per_prompt, self.sample)
        require_one_of(f"{key}.returns", self.returns, RETURNS)
        require_one_of(f"{key}.label_tokens", self.label_tokens, LABEL_TOKENS)
        labels, thresholds = self.labels, self.thresholds
        if labels is None:
            require(
                not thresholds,
                f"{key}.thresholds={thresholds} must be [] where a label is the return itself; got "
                f"{key}.labels=null. Pass {key}.thresholds=[].",
            )
        else:
            require(
                len({*labels}) == len(labels) >= 2 and all(label.strip() for label in labels),
                f"{key}.labels={labels} must be two different texts or more, from the worst to the "
                "best, none of them blank.",
            )
            require(
                len(thresholds) == len(labels) - 1
                and all(a < b for a, b in pairwise([0.0, *thresholds]))
                and all(threshold <= 1 for threshold in thresholds),
                f"{key}.thresholds={thresholds} must be one fewer than {key}.labels, rising, above "
                f"0 and at most 1; got {len(labels)} labels.",
            )
        for name in ("solution_ratio", "step_ratio"):
            ratio = getattr(self, name)
            require(
                ratio is None or ratio > 0,
                f"{key}.{name} must be null (as it is), above 0, or inf (positive ones alone); got "
                f"{ratio}.",
            )

    def needs(self, run: TrainConfig) -> dict[str, TrainConfig]:
        """See ``Algorithm.needs``.

        A dense or learned reward judges a step by itself; the sparse one needs its continuations.
        """
        sampled = dataclasses.replace(run, init=run.init.improved_by(self.policy))
        first = {"rollouts": dataclasses.replace(sampled, algorithm=self.sample)}
        if self.returns == "value" and run.reward.judges_steps_by == "continuations":
            steps = StepsConfig(
                name="steps",
                sample=self.sample,
                num_solutions_per_prompt=self.num_solutions_per_prompt,
                num_continuations=self.num_continuations,
            )
            first["steps"] = dataclasses.replace(sampled, algorithm=steps)
        return first

    def shorter(self) -> Iterator[Algorithm]:
        return shorter_by(self, "epochs")

    def outline(self, run: TrainConfig) -> str:
        labels = self.label_texts
        learned = run.reward.judges_steps_by == "reward model"
        in_sample = ", which has learnt from most of these completions" if learned else ""
        return (
            f"Return-Conditioned RL: steps labelled {labels[0]} to {labels[-1]} by the "
            f"{run.reward.name} reward{in_sample}, of {self.num_solutions_per_prompt} "
            f"completions each, {counted(self.epochs, 'epoch')}"
        )

    def work(self, sizes: Sizes) -> Work:
        labels = len(self.label_texts)
        return Work(
            # The policy is validated under each label, and tested under the worst one too.
            completions=labels * sizes.validation + sizes.evaluation,
            examples=self.epochs * self.num_solutions_per_prompt * sizes.train,
        )

    def footprint(self) -> Footprint:
        return Footprint.of_fine_tuning(self)

    def layers(self) -> dict[str, int]:
        return {}

    def longest(self, max_new_tokens: int, count_tokens: Callable[[list[str]], list[int]]) -> int:
        labels = count_tokens(self.label_texts) if self.label_tokens == "text" else [1]
        return max_new_tokens + max(labels)
