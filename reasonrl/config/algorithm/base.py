"""What every algorithm declares of itself, so that no other file has to know it.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from reasonrl.config.base import undeclared

if TYPE_CHECKING:
    from reasonrl.config.learner import FineTuningConfig
    from reasonrl.config.schema import TrainConfig

VALIDATION = "eval/validation_maj@1"  # the metric by which all algorithms that validate are seen

Makes = Literal["policy", "reward model", "completions"]
ReadsReward = Literal["nothing", "scores", "scores and threshold"]
Questions = Literal["train_size", "reward_train_size"]
Over = Literal["step", "rollouts", "label"]
Samples = Literal["never", "apart", "while it learns"]


@dataclass(frozen=True)
class Work:
    """How much a run does; works of several runs add up."""

    completions: int = 0  # completions that are sampled
    again: int = 0  # at most as many more, in the place of those that are left out
    examples: int = 0  # examples that are learnt from, each counted once an epoch
    readings: int = 0  # completions that a model reads without learning, counted at each reading

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Footprint:
    """What a run has of a model at the same time, as far as memory and arithmetic depend on it."""

    # Which weights: nothing, head (one that the run adds, too small to count), lora, top, all.
    trains: str
    # Whether it samples with the policy, and whether what its learner holds lies beside that.
    samples: Samples
    micro_batch_tokens: int = 0  # the most tokens that it learns from at a time
    lora_rank: int = 0  # with trains=lora
    trainable_layers: int = 0  # with trains=top
    value_layers: int = 0  # of a value function, copies of the model's layers, which train
    checkpoint_layers: bool | None = None  # as of ``LearnerConfig``
    reference: bool = False  # whether it reads with a frozen copy of the policy too

    @classmethod
    def of_fine_tuning(cls, settings: FineTuningConfig) -> Footprint:
        """That of a run which fine-tunes a policy, and samples at other times."""
        return cls(
            settings.trainable,
            "apart",
            settings.micro_batch_tokens,
            settings.lora_rank,
            checkpoint_layers=settings.checkpoint_layers,
        )


@dataclass(frozen=True)
class Sizes:
    """What the work of a run depends on beside its algorithm's own settings."""

    train: int  # training problems
    references: int  # training problems whose reference solution may be learnt from
    validation: int  # validation problems
    evaluation: int  # completions of one evaluation on the test problems, greedy ones included
    # The mean steps of a reference solution, its last step not counted. It reads all solutions.
    steps_per_solution: Callable[[], float]
    starts_from_references: bool  # whether the starting policy has learnt the reference solutions


@dataclass(frozen=True)
class Panel:
    """One chart of an algorithm's learning curve."""

    title: str
    ylabel: str
    lines: Mapping[str, str]  # each metric's text in the legend; over labels a metric ends in ``*``
    over: Over  # the x axis: optimizer steps, rollouts so far, or the labels that ``*`` stands for
    markers: str = "."  # matplotlib's markers, one for each line in turn; "": no line has any
    ylim: tuple[float, float] | None = None
    zero: bool = False  # whether a dashed line marks 0, on every axis that may choose its limits
    right: tuple[str, str] | None = None  # one more metric, on an axis of its own, and its ylabel
    right_ylim: tuple[float, float] | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of all its lines."""
        return (*self.lines, self.right[0]) if self.right else (*self.lines,)


@dataclass(frozen=True)
class Cell:
    """One number of the line that is shown of a part of a run."""

    head: str
    metric: str  # of which the mean since the line before is shown
    form: str  # how it is formatted, with its width

    @property
    def width(self) -> int:
        """The columns of the terminal that it takes."""
        return max(len(self.head), len(format(0, self.form)))


@dataclass(frozen=True)
class Line:
    """The line that is shown of each part of a run when it is done, and after a validation.

    Tokens per second and the time that is left end it, whatever else it shows.
    """

    part: str  # what a part is called: epoch, round, iteration
    number: str  # the metric that counts them
    total: str  # the setting that says how many there are
    ends: str  # the metric that is logged last of a part
    cells: tuple[Cell, ...]
    # Whether a validation, whose line it then is, follows a part of these settings and this number.
    validates: Callable[[Any, int], bool] | None = None

    @classmethod
    def of_epochs(cls, prefix: str, *more: Cell) -> Line:
        """The line of a learner's epochs; the metrics' names begin with ``prefix``."""
        loss = Cell("loss", f"{prefix}/loss", "8.4f")
        return cls("epoch", f"{prefix}/epoch", "epochs", f"{prefix}/epoch", (loss, *more))


SCORE = Cell("score", "rollout/score", "6.3f")
VALIDATED = Cell("validation maj@1", VALIDATION, "20")  # with its interval: 100.0% [98.6, 100.0]


@dataclass(frozen=True)
class Panels:
    """What is shown of an algorithm's runs while they are made."""

    rollouts: str | None  # the metric that counts the rollouts so far, where there is one
    charts: tuple[Panel, ...]  # the learning curve; without any there is no picture
    line: Line | None = None  # of each part; None: a run has no parts
    more: tuple[str, ...] = ()  # metrics without a chart that W&B's workspace shows all the same

    def __post_init__(self) -> None:
        if self.rollouts is None and any(panel.over == "rollouts" for panel in self.charts):
            raise TypeError(
                "panels with a chart over rollouts must name the metric that counts them"
            )


def learning_panel(prefix: str) -> Panel:
    """The chart of the loss at each optimizer step; the metric's name begins with ``prefix``."""
    return Panel("learning", "loss per token", {f"{prefix}/loss": ""}, over="step", markers="")


def validation_panel(over: Over, metric: str = VALIDATION) -> Panel:
    """The chart of the greedy accuracy on the validation problems."""
    return Panel("validation, greedy", "maj@1", {metric: ""}, over=over, markers="o", ylim=(0, 1))


def shorter_by(settings: Algorithm, key: str) -> Iterator[Algorithm]:
    """The same settings with each lower value of the number under ``key``, the highest first."""
    for value in range(getattr(settings, key) - 1, 0, -1):
        changed: Any = replace(settings, **{key: value})  # type: ignore[type-var]
        yield changed


class Algorithm:
    """The base of all algorithms' settings. A subclass is a frozen dataclass of its keys.

    Every concrete subclass declares all that stands here: there are no defaults, and a missing
    declaration raises TypeError when the subclass is defined. ``abstract=True`` exempts a class
    that only others derive from.
    """

    name: str

    makes: ClassVar[Makes]  # what a run ends with; only a policy is evaluated
    reads_reward: ClassVar[ReadsReward]  # which part of the reward a run reads, and so depends on
    questions: ClassVar[Questions]  # the key of ``dataset`` with the number of training questions
    panels: ClassVar[Panels]  # what the learning curve shows
    # What a longer run of the same settings goes on from, as files and folders of a finished run's
    # folder, the last one its journal. Empty: a longer run starts anew.
    keeps: ClassVar[tuple[str, ...]]

    @property
    def kind(self) -> str:
        """The option whose settings and work these are: another's, of which this is a variant."""
        return getattr(self, "variant_of", None) or self.name

    def called(self, title: str) -> str:
        """The title of its kind, which a variant's own name takes the place of."""
        return title if self.kind == self.name else self.name

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

        rollouts: completions.
        steps: what becomes of the steps of completions.

        The runs that make the starting policy and the reward model aren't among them:
        ``identity.prerequisites`` adds these for all algorithms.
        """
        raise NotImplementedError

    def shorter(self) -> Iterator[Algorithm]:
        """The settings of the runs that are shorter than one with these, the longest first."""
        raise NotImplementedError

    def outline(self, run: TrainConfig) -> str:
        """What a run of this algorithm does, in one line for the plan."""
        raise NotImplementedError

    def work(self, sizes: Sizes) -> Work:
        """How much a run does, without the evaluations that every policy gets."""
        raise NotImplementedError

    def footprint(self) -> Footprint:
        """What a run has of the model in memory; a learned reward's model is left out."""
        raise NotImplementedError

    def layers(self) -> dict[str, int]:
        """The settings that may be at most the model's number of layers, by key."""
        raise NotImplementedError

    def longest(self, max_new_tokens: int, count_tokens: Callable[[list[str]], list[int]]) -> int:
        """The most tokens that may follow a prompt in a run of this algorithm.

        count_tokens: gives the number of tokens of each text; it raises UserError for a text that
            the model's tokenizer doesn't know.
        """
        raise NotImplementedError


DECLARATIONS = tuple(
    name
    for name in (*Algorithm.__annotations__, *vars(Algorithm))
    if not name.startswith("_") and name not in ("name", "kind", "called")
)
