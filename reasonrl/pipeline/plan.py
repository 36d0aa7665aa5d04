"""A run and all that it takes, found to be possible before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from reasonrl.config.model import ShapeConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.grading import Grader, grader_of
from reasonrl.runs.folder import RunFolder, run_folder
from reasonrl.runs.result import AFTER, BEFORE
from reasonrl.types import Problem


@dataclass(frozen=True)
class Plan:
    """A run and what it needs, found to be possible before anything is computed."""

    config: TrainConfig
    run: RunFolder
    prerequisites: dict[str, Plan]  # by what each gives this run, see ``identity.prerequisites``
    base: str  # the pretrained model's folder; without the model its ``model.path``
    has_model: bool  # whether the model is on this machine; else the plan can't be carried out
    shape: ShapeConfig | None  # the model's; None: it isn't known
    train: list[Problem]
    validation: list[Problem]  # of the validation split, all but the exemplars
    exemplars: list[Problem]  # of the validation split, those of the few-shot prompt
    test: list[Problem]  # of ``evaluation.split``
    shorter: TrainConfig | None = None  # of a finished run, where this one hasn't begun
    warnings: tuple[str, ...] = ()  # what makes its numbers mean less than they seem to
    reading: str = ""  # how its model is read where that costs more than it might

    @property
    def grader(self) -> Grader:
        """The grader that reads the completions."""
        return grader_of(self.config.dataset)

    @property
    def goes_on_from(self) -> RunFolder | None:
        """The finished run whose work is the beginning of this run's; None: there is none."""
        if self.shorter is None or not self.shorter.algorithm.keeps:
            return None
        return run_folder(self.shorter)

    @property
    def evaluated_before(self) -> tuple[Plan, str]:
        """The run with the evaluation of the policy that this one starts from, and its folder.

        If another run made that policy, it is that run's evaluation after.
        """
        first = self.prerequisites.get("init")
        return (self, BEFORE) if first is None else (first, AFTER)

    def in_order(self) -> Iterator[Plan]:
        """This run and all that it needs, each once, none before what it needs itself."""
        seen = set()
        for first in self.prerequisites.values():
            for one in first.in_order():
                if one.run not in seen:
                    seen.add(one.run)
                    yield one
        yield self
