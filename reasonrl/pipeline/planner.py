"""The way from a configuration to a plan: all runs it takes, checked before any of them is made.

What is checked of a model is in ``model_checks`` and imports torch. A finished run is planned
without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from reasonrl.config.dataset.base import DatasetConfig
from reasonrl.config.identity import prerequisites, shorter, training_set
from reasonrl.config.model import ModelConfig, ShapeConfig
from reasonrl.config.rules import validate
from reasonrl.config.schema import EvaluateConfig, TrainConfig
from reasonrl.grading import grader_of
from reasonrl.pipeline.contents import (
    Contents,
    content_of_policy,
    content_of_reward_model,
    with_contents,
)
from reasonrl.pipeline.memory import check_memory
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.problems import (
    contradictions,
    learns_from_solutions,
    shared_questions,
    stopped_answers,
    stopped_solutions,
)
from reasonrl.policy.source import content_of as content_of_model
from reasonrl.policy.source import find_folder, local_folder
from reasonrl.problems import content_of, load_problems
from reasonrl.runs import machines
from reasonrl.runs.folder import RunFolder, is_done, read_config, run_folder
from reasonrl.runs.process import ALONE
from reasonrl.runs.result import policy_of
from reasonrl.types import Problem
from reasonrl.util.errors import UserError
from reasonrl.util.own_code import content_of_function

if TYPE_CHECKING:
    from reasonrl.pipeline.model_checks import Checked

T = TypeVar("T")


def base_model(config: EvaluateConfig) -> str:
    """The pretrained model's folder, once it is downloaded or converted if need be.

    Raises UserError if that isn't possible.
    """
    return local_folder(config.model, _models(config))


def with_sizes(model: ModelConfig, base: str) -> ModelConfig:
    """The model with the sizes of its folder's config.json, where its settings don't say them."""
    if model.num_parameters is not None:
        return model
    from reasonrl.policy.policy import num_parameters_of, shape_of

    return replace(
        model, num_parameters=num_parameters_of(base), shape=shape_of(base) or model.shape
    )


def _models(config: EvaluateConfig) -> Path:
    return Path(config.runtime.outputs) / "models"


def plan(config: TrainConfig, *, fetch: bool = True) -> Plan:
    """Plans a single run, as ``Planner(fetch=fetch)`` does."""
    return Planner(fetch=fetch).plan(config)


class Planner:
    """Plans runs; what several of them have in common is planned, read and checked once."""

    def __init__(self, *, fetch: bool = True, here: bool = True) -> None:
        """Makes a planner that has planned nothing yet.

        fetch: whether a model that isn't on this machine is downloaded or converted, which is an
            error where it isn't possible. Else the run is planned without its model, and what needs
            the tokenizer isn't checked.
        here: whether the runs are made on this machine, which then must have their device.
        """
        self._fetch, self._here = fetch, here
        self._plans: dict[RunFolder, Plan] = {}
        self._known: dict[str, Any] = {}

    def plan(self, config: TrainConfig) -> Plan:
        """Plans a run. Raises UserError if it is found to be impossible without computing.

        Which run it is, its content says too: what the paths of its configuration hold by now.
        """
        config = self._with_contents(config)
        run = run_folder(config)
        if run not in self._plans:
            self._plans[run] = self._plan(config, run)
        return self._plans[run]

    def _with_contents(self, config: TrainConfig) -> TrainConfig:
        """The configuration with the hashes of all that it reads. Raises UserError."""
        model, init, dataset = config.model, config.init, config.dataset
        self._cached(("grader", dataset), lambda: grader_of(dataset))
        found = Contents(
            learnt=self._content(dataset, "train", "validation"),
            judged=self._content(dataset, config.evaluation.split),
        )
        if (earlier := init.run) is not None:
            self._cached(("init", earlier, model.path), lambda: _check_init_run(config))
            found.init = self._cached(("content", earlier), lambda: content_of_policy(earlier))
        reward_run, code = config.reward.finished_run(), config.reward.code
        reads_reward = config.algorithm.reads_reward != "nothing"
        if reads_reward and reward_run is not None:
            found.reward = self._cached(
                ("content", reward_run), lambda: content_of_reward_model(reward_run, "reward.run")
            )
        elif reads_reward and code is not None:
            found.reward = self._cached(
                ("content", code), lambda: content_of_function(code, "reward.path")
            )
        base = self._cached_base(config)
        if base is not None:
            found.model = self._cached(("content", base), lambda: content_of_model(model, base))
            sized = self._cached(("sizes", model, base), lambda: with_sizes(model, base))
            if sized != model:
                config = replace(config, model=sized)
                validate(config)
        return with_contents(config, found)

    def _content(self, dataset: DatasetConfig, *splits: str) -> str | None:
        """The hash of a dataset's splits, whatever is read of them; None: they are generated."""
        if dataset.is_generated:
            return None
        return self._cached(
            ("content", *dataset.source, splits),
            lambda: content_of(
                problem for split in splits for problem in self._split(dataset, split)
            ),
        )

    def _split(self, dataset: DatasetConfig, split: str) -> list[Problem]:
        """All problems of a split that isn't generated."""
        return self._cached(
            ("split", *dataset.source, split), lambda: load_problems(dataset.whole, split)
        )

    def _cached_base(self, config: TrainConfig) -> str | None:
        key = ("model", config.model.name, config.model.path, config.runtime.outputs)
        return self._cached(key, lambda: self._base(config))

    def _plan(self, config: TrainConfig, run: RunFolder) -> Plan:
        model, dataset, done = config.model, config.dataset, is_done(run)
        if self._here and not done:
            self._cached(("device", model), lambda: ALONE.device(model.device))
            self._cached(("sampler", config.sampler), config.sampler.check_installed)
            self._cached(("ranks", model, config.runtime), lambda: machines.check(config))
        exemplars, validation = self._validation(dataset)
        first = {gives: self.plan(one) for gives, one in prerequisites(config).items()}
        base = self._cached_base(config)
        planned = Plan(
            config=config,
            run=run,
            prerequisites=first,
            base=base or model.path,
            has_model=base is not None,
            shape=model.shape if base is None or done else self._shape(base) or model.shape,
            train=self._problems(training_set(config), "train"),
            validation=validation,
            exemplars=exemplars,
            test=self._problems(dataset, config.evaluation.split),
            shorter=_finished_shorter(config, run),
        )
        self._check_reward(planned)
        if planned.shape is not None and not done:
            check_memory(config, planned.shape)
        said = list(self._of_problems(planned))
        if config.algorithm.reads_reward != "nothing":
            key = ("answers", training_set(config))
            said += self._cached(key, lambda: list(stopped_answers(planned.train, dataset)))
        if learns_from_solutions(config):
            key = ("stops", training_set(config))
            said += self._cached(key, lambda: list(stopped_solutions(planned)))
        reading = ""
        if planned.has_model and not done:
            checked = self._check_model(planned)
            said, reading = said + checked.warnings, checked.reading
        return replace(planned, warnings=tuple(said), reading=reading)

    def _problems(self, dataset: DatasetConfig, split: str) -> list[Problem]:
        if not dataset.is_generated:
            return self._split(dataset, split)[: dataset.size_of(split)]
        return self._cached(("problems", dataset, split), lambda: load_problems(dataset, split))

    def _validation(self, dataset: DatasetConfig) -> tuple[list[Problem], list[Problem]]:
        """The exemplars of the validation split, and its other problems."""
        problems, number = self._problems(dataset, "validation"), dataset.num_exemplars
        if len(problems) <= number:
            raise UserError(
                f"dataset.num_exemplars={number} must leave problems of the validation split to "
                f"validate on; got {len(problems)} in all. Lower it."
            )
        return problems[:number], problems[number:]

    def _base(self, config: TrainConfig) -> str | None:
        return base_model(config) if self._fetch else find_folder(config.model, _models(config))

    def _shape(self, base: str) -> ShapeConfig | None:
        from reasonrl.policy.policy import shape_of

        return self._cached(("shape", base), lambda: shape_of(base))

    def _check_reward(self, planned: Plan) -> None:
        """Raises UserError if the reward pays for calculations that no reference solution has."""
        config = planned.config
        by_reference = config.reward.judges_steps_by == "reference solution"
        if config.algorithm.reads_reward == "nothing" or not by_reference:
            return
        if not any(planned.grader.calculations(problem.solution) for problem in planned.train):
            raise UserError(
                f"reward={config.reward.name} must have calculations in the reference solutions to "
                f"pay for; got dataset={config.dataset.name}, where grader="
                f"{config.dataset.grader} reads none. Pass reward=sparse."
            )

    def _of_problems(self, planned: Plan) -> list[str]:
        """Warnings of questions that two splits share, or with two answers; none if generated."""
        dataset, split = planned.config.dataset, planned.config.evaluation.split
        if dataset.is_generated:
            return []
        key = ("shared", training_set(planned.config), split)
        return self._cached(
            key,
            lambda: [
                *shared_questions(planned),
                *contradictions(planned.train),
                *contradictions(planned.test),
            ],
        )

    def _check_model(self, planned: Plan) -> Checked:
        from reasonrl.pipeline.model_checks import check_model

        return check_model(planned, self._cached)

    def _cached(self, key: tuple[object, ...], compute: Callable[[], T]) -> T:
        """What ``compute`` returns, which is called only once for each key."""
        text = repr(key)  # configurations hold lists, which have no hash
        if text not in self._known:
            self._known[text] = compute()
        known: T = self._known[text]
        return known


def _finished_shorter(config: TrainConfig, run: RunFolder) -> TrainConfig | None:
    """The longest of the shorter runs that are finished and have all that they keep.

    Returns None if there is none, or the run itself has begun.
    """
    keeps = config.algorithm.keeps
    if (run.path / keeps[-1] if keeps else run.metrics).exists():
        return None
    for one in shorter(config):
        finished = run_folder(one)
        if finished.result.exists() and all((finished.path / name).exists() for name in keeps):
            return one
    return None


def _check_init_run(config: TrainConfig) -> None:
    """Raises UserError unless the policy of ``init.run`` can be gone on with.

    A run restarts from the base model and takes its tokenizer, so both have to be those of the
    named run; the path says which they are, for a name may be given to any model.
    """
    earlier = RunFolder(Path(str(config.init.run)))
    if policy_of(earlier).labels:
        raise UserError(
            f"init.run={config.init.run} must be a run whose policy is asked without labels; got "
            "algorithm=rcrl. Pass another run."
        )
    of_run, model = read_config(earlier).model, config.model
    if not _same_path(of_run.path, model.path):
        raise UserError(
            f"init.run={config.init.run} must be a run of the same model; it is of model.path="
            f"{of_run.path}; got model.path={model.path}. Pass the option model={of_run.name}, if "
            f"it has that path, else model.path={of_run.path} model.name={of_run.name}."
        )


def _same_path(one: str, other: str) -> bool:
    """Whether two values of ``model.path`` are of one model: equal, or the same folder or file."""
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())
