"""What every algorithm declares of itself, so that no other file has to know it. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from reasonrl.config.base import undeclared

if TYPE_CHECKING:
    from reasonrl.config.schema import TrainConfig

# Bytes of a parameter.
FLOAT32 = 4
LEARNT = 4 * FLOAT32  # the weight, its gradient, and Adam's two moments

VALIDATION = "eval/validation_maj@1"  # the metric by which all algorithms that validate are seen

Makes = Literal["policy", "reward model", "completions"]
ReadsReward = Literal["nothing", "scores", "scores and threshold"]
Questions = Literal["train_size", "reward_train_size"]
Over = Literal["step", "rollouts", "label"]


@dataclass(frozen=True)
class Work:
    """How much a run does; works of several runs add up."""

    completions: int = 0  # sampled
    examples: int = 0  # learnt from, each as often as there are epochs
    readings: int = 0  # completions that a model reads without learning, as often as it does

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Sizes:
    """What the work of a run depends on beside its algorithm's own settings."""

    train: int  # training problems
    references: int  # of these, those whose reference solution may be learnt from
    validation: int  # validation problems
    evaluation: int  # completions of one evaluation on the test problems, greedy ones included
    steps_per_solution: float  # of the reference solutions, mean, without the last step
    starts_from_references: bool  # whether the starting policy has learnt the reference solutions


@dataclass(frozen=True)
class Panel:
    """One chart of an algorithm's learning curve."""

    title: str
    ylabel: str
    lines: Mapping[str, str]  # metric to its text in the legend; over labels it ends in ``*``
    over: Over  # the x axis: optimizer steps, rollouts so far, or the labels that ``*`` stands for
    markers: str = "."  # matplotlib's, of the points of each line; none: the line alone
    ylim: tuple[float, float] | None = None
    zero: bool = False  # whether a dashed line marks 0, on every axis that may choose its limits
    right: tuple[str, str] | None = None  # one more metric, on an axis of its own, and its ylabel
    right_ylim: tuple[float, float] | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of all its lines."""
        return (*self.lines, self.right[0]) if self.right else (*self.lines,)


@dataclass(frozen=True)
class Panels:
    """What there is to see of an algorithm's runs while they are made, and over what."""

    rollouts: str | None  # the metric that counts the rollouts so far, where there is one
    charts: tuple[Panel, ...]  # the learning curve; without any there is no picture
    more: tuple[str, ...] = ()  # metrics that no chart has, and W&B's workspace shows all the same

    def __post_init__(self) -> None:
        if self.rollouts is None and any(panel.over == "rollouts" for panel in self.charts):
            raise TypeError(
                "panels with a chart over rollouts must name the metric that counts them"
            )


def learning_panel(prefix: str) -> Panel:
    """The loss of each optimizer step, of metrics with this prefix."""
    return Panel("learning", "loss per token", {f"{prefix}/loss": ""}, over="step", markers="")


def validation_panel(over: Over, metric: str = VALIDATION) -> Panel:
    """The greedy accuracy on the validation problems."""
    return Panel("validation, greedy", "maj@1", {metric: ""}, over=over, markers="o", ylim=(0, 1))


class Algorithm:
    """The base of all algorithms' settings. A subclass is a frozen dataclass of its keys.

    Every concrete subclass declares all that stands here: there are no defaults, and what is
    missing raises TypeError when the subclass is defined. ``abstract=True`` exempts a class that
    only others derive from.
    """

    name: str

    makes: ClassVar[Makes]  # what a run of it ends with; only a policy is evaluated
    reads_reward: ClassVar[ReadsReward]  # what of the reward it reads, and so depends on
    questions: ClassVar[Questions]  # the key of ``dataset`` that says how many it learns from
    panels: ClassVar[Panels]  # what its learning curve shows

    def __init_subclass__(cls, *, abstract: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        missing = [] if abstract else undeclared(cls, Algorithm, DECLARATIONS)
        if missing:
            raise TypeError(f"algorithm {cls.__name__} must declare {', '.join(missing)}")

    def check(self, key: str) -> None:
        """Raises UserError for values out of range; ``key`` is where the settings stand."""
        raise NotImplementedError

    def needs(self, run: TrainConfig) -> dict[str, TrainConfig]:
        """The runs that a run of this algorithm learns from, by what they give.

        rollouts: completions. steps: what becomes of the steps of completions. The starting policy
        and the reward model aren't among them: ``identity.prerequisites`` adds these for all.
        """
        raise NotImplementedError

    def outline(self, run: TrainConfig) -> str:
        """What a run of it does, for the plan."""
        raise NotImplementedError

    def work(self, sizes: Sizes) -> Work:
        """What a run of it does without the evaluations that every policy gets."""
        raise NotImplementedError

    def bytes_per_parameter(self, compute: int) -> int:
        """What a run of it holds of the model in GPU memory at the same time, at least.

        Activations, value layers, adapters and a reward model's head are left out. ``compute``: the
        bytes of a number of the dtype that the model computes in.
        """
        raise NotImplementedError

    def layers(self) -> dict[str, int]:
        """By key, the settings that may be at most the model's number of layers."""
        raise NotImplementedError

    def longest(self, max_new_tokens: int, count_tokens: Callable[[list[str]], list[int]]) -> int:
        """How many tokens may follow a prompt of it.

        count_tokens: the number of tokens of each of some texts; it raises UserError for a text
        that the model's tokenizer doesn't know.
        """
        raise NotImplementedError


DECLARATIONS = tuple(
    name
    for name in (*Algorithm.__annotations__, *vars(Algorithm))
    if not name.startswith("_") and name != "name"
)
