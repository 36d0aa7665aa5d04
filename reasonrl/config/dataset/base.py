"""What every dataset declares of itself, so that no other file has to know it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from reasonrl.config.base import CONTENT, IMMATERIAL, require, undeclared


@dataclass(frozen=True)
class DatasetConfig:
    """The base of all datasets' settings.

    Every concrete subclass declares ``splits``, ``grader`` and ``local``; a missing one raises
    TypeError when the subclass is defined.
    """

    name: str
    train_size: int | None  # training problems; None: the whole split
    validation_size: int | None  # validation problems; None: the whole split
    # Problems of each split that is only evaluated on; an evaluation's protocol names the number.
    test_size: int | None = field(metadata=IMMATERIAL)
    # Training problems of reward models, PPO and RCRL; None: train_size.
    reward_train_size: int | None
    num_references: int | None  # training problems whose solution may be learnt from; None: all
    prompt: str  # the template of a prompt, with ``{question}`` in it
    stop: list[str]  # strings that end a completion
    max_new_tokens: int  # the most tokens of a completion
    num_exemplars: int  # solved problems in a few-shot prompt, for a pretrained policy
    # The folder of the dataset's files; None: they come from the hub, or the dataset is generated.
    # All have the key, for Hydra checks a sweep's keys against the default dataset.
    path: str | None = field(default=None, kw_only=True, metadata=IMMATERIAL)
    # The hash of its training and validation problems, which a plan finds out; None: they are
    # generated, and the settings say which they are.
    content: str | None = field(default=None, kw_only=True, metadata=CONTENT)

    splits: ClassVar[tuple[str, ...]]  # those that may be evaluated on
    grader: ClassVar[str]  # what reads and compares its answers: a name in ``grading.GRADERS``
    # Whether a plan shows what is read of it, as where fields are named by the user.
    shows_examples: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        missing = undeclared(cls, DatasetConfig, DECLARATIONS)
        if missing:
            raise TypeError(f"dataset {cls.__name__} must declare {', '.join(missing)}")

    @property
    def local(self) -> bool:
        """Whether its problems are on this machine, so that no network is asked for them."""
        raise NotImplementedError

    @property
    def is_generated(self) -> bool:
        """Whether its settings alone decide its problems, which no file holds."""
        return self.local and self.path is None

    @property
    def source(self) -> tuple[object, ...]:
        """What decides the problems of its splits, apart from how many are read of each."""
        shared = {f.name for f in fields(DatasetConfig)} - {"name", "path"}
        return tuple(getattr(self, f.name) for f in fields(self) if f.name not in shared)

    @property
    def whole(self) -> Self:
        """The same dataset with all problems of each split."""
        sizes: dict[str, Any] = {f.name: None for f in fields(self) if f.name.endswith("_size")}
        return replace(self, **sizes)

    @property
    def has_solutions(self) -> bool:
        """Whether its problems have reference solutions, and not only gold answers."""
        return True

    def size_of(self, split: str) -> int | None:
        """How many problems of a split are wanted; None: all. One without a key has test_size."""
        size: int | None = getattr(self, f"{split}_size", self.test_size)
        return size

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        sizes = [f.name for f in fields(self) if f.name.endswith("_size")]
        for name in (*sizes, "num_references"):
            value = getattr(self, name)
            require(
                value is None or value >= 1,
                f"dataset.{name} must be null (all there are) or 1 or more; got {value}.",
            )
        require(
            "{question}" in self.prompt,
            f"dataset.prompt={self.prompt!r} must contain {{question}}.",
        )
        require(
            all(self.stop), "dataset.stop must not hold an empty string. Remove it, or pass []."
        )
        require(
            self.max_new_tokens >= 1,
            f"dataset.max_new_tokens must be 1 or more; got {self.max_new_tokens}.",
        )
        require(
            self.num_exemplars >= 0,
            f"dataset.num_exemplars must be 0 or more; got {self.num_exemplars}.",
        )


DECLARATIONS = ("splits", "grader", "local")
