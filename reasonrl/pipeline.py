"""From a configuration to a finished run: found by its identity, resumed, or made.

Whatever a run needs first is a run too, obtained the same way.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from reasonrl.algorithms import ALGORITHMS
from reasonrl.atomic import remove_folder, write_json, write_text, writing
from reasonrl.config import (
    EvaluateConfig,
    TrainConfig,
    decisive,
    readable_name,
    resolve,
    sft_prerequisite,
)
from reasonrl.errors import UserError
from reasonrl.evaluation import Evaluation, evaluate
from reasonrl.job import WORK, Job
from reasonrl.policy import SavedPolicy, context_of, device_of, load_tokenizer, local_folder
from reasonrl.problems import load_problems
from reasonrl.progress import Progress
from reasonrl.prompts import build_prompts, check_lengths
from reasonrl.report.curve import draw_learning_curve
from reasonrl.runs import RunFolder, identity, is_done, running
from reasonrl.tracking import MetricsLog
from reasonrl.types import Problem

BEFORE, AFTER = "before", "after"


def run_folder(config: TrainConfig) -> RunFolder:
    """``<outputs>/runs/ei-sparse-tiny-sft-stories-s0-1a2b3c4d``."""
    name = f"{readable_name(config)}-{identity(decisive(config))}"
    return RunFolder(Path(config.runtime.outputs) / "runs" / name)


def read_config(run: RunFolder) -> TrainConfig:
    """The configuration a run was made with. Raises UserError if there is no such run."""
    if not run.config.exists():
        raise UserError(f"run={run.path} must be a run's folder; there is no {run.config}.")
    config = OmegaConf.load(run.config)
    assert isinstance(config, DictConfig)
    return resolve(config)


def read_result(run: RunFolder) -> SavedPolicy:
    """The policy a finished run made. Raises UserError if it isn't done."""
    if not is_done(run):
        raise UserError(f"run={run.path} must be done; it isn't. Give its command again.")
    return _read_result(run)


def _read_result(run: RunFolder) -> SavedPolicy:
    result = SavedPolicy(**json.loads(run.result.read_text()))
    # A run's folder may have moved since, or is seen from another working directory.
    return replace(result, path=str(run.policy)) if run.policy.exists() else result


def usable_cores() -> int:
    """The cores this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def base_model(config: EvaluateConfig) -> str:
    """The pretrained model, as a folder or hub id."""
    return local_folder(config.model, Path(config.runtime.outputs) / "models")


@dataclass(frozen=True)
class Plan:
    """A run and what it needs, found to be possible before anything is computed.

    prerequisite: the run that makes the starting policy, where that is one of this project's.
    base: the pretrained model, as a folder or hub id.
    test: the problems of ``evaluation.split``.
    """

    config: TrainConfig
    run: RunFolder
    prerequisite: Plan | None
    base: str
    train: list[Problem]
    validation: list[Problem]
    exemplars: list[Problem]
    test: list[Problem]


def plan(config: TrainConfig) -> Plan:
    """Checks what can be checked without computing. Raises UserError."""
    dataset = config.dataset
    device_of(config.model)
    if config.init.run is not None:
        _check_init_run(config)
    validation = load_problems(dataset, "validation")
    planned = Plan(
        config=config,
        run=run_folder(config),
        prerequisite=plan(sft_prerequisite(config)) if config.init.name == "sft" else None,
        base=base_model(config),
        train=load_problems(dataset, "train"),
        validation=validation[dataset.num_exemplars :],
        exemplars=validation[: dataset.num_exemplars],
        test=load_problems(dataset, config.evaluation.split),
    )
    if not planned.validation:
        raise UserError(
            f"dataset.num_exemplars={dataset.num_exemplars} must leave problems of the validation "
            f"split to validate on; got {len(validation)} in all. Lower it."
        )
    _check_prompts(planned)
    return planned


def _check_init_run(config: TrainConfig) -> None:
    earlier = RunFolder(Path(str(config.init.run)))
    read_result(earlier)
    model = read_config(earlier).model.name
    if model != config.model.name:
        raise UserError(
            f"init.run={config.init.run} must be a run of the same model; it is of {model}; got "
            f"model.name={config.model.name}. Pass model={model}."
        )


def _check_prompts(planned: Plan) -> None:
    dataset = planned.config.dataset
    tokenizer, context = load_tokenizer(planned.base), context_of(planned.base)
    exemplars = planned.exemplars if planned.config.init.name == "pretrained" else []
    for problems in (planned.train, planned.validation, planned.test):
        prompts = build_prompts(problems, tokenizer, dataset.prompt, exemplars)
        check_lengths(prompts, dataset.max_new_tokens, context)


def obtain(planned: Plan, progress: Progress, *, wait: bool = False) -> RunFolder:
    """The planned run, done: as it is if it was done before, else resumed or made.

    wait: whether to wait for another process that is making it, or to refuse.
    """
    if not is_done(planned.run):
        if planned.prerequisite is not None:
            obtain(planned.prerequisite, progress, wait=True)
        with running(planned.run, wait=wait) as todo:
            if todo:
                with _logged(planned.run):
                    _execute(planned, progress)
    return planned.run


def _execute(planned: Plan, progress: Progress) -> None:
    config, run = planned.config, planned.run
    torch.set_num_threads(config.runtime.threads or usable_cores())
    write_text(run.config, OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    start = _starting_policy(planned)
    if planned.prerequisite is None:
        _evaluate(planned, start, BEFORE, progress)
    if not run.result.exists():
        write_json(run.result, asdict(_learn(planned, start, progress)))
    if (run.path / WORK).exists():
        remove_folder(run.path / WORK)
    _evaluate(planned, _read_result(run), AFTER, progress)
    draw_learning_curve(run)


def _learn(planned: Plan, start: SavedPolicy, progress: Progress) -> SavedPolicy:
    config = planned.config
    with MetricsLog(planned.run.metrics) as log:
        job = Job(
            config=config,
            run=planned.run,
            device=device_of(config.model),
            base=planned.base,
            init=start.path,
            few_shot=start.few_shot,
            tokenizer=load_tokenizer(planned.base),
            train=planned.train,
            validation=planned.validation,
            exemplars=planned.exemplars,
            log=log,
            progress=progress,
        )
        return ALGORITHMS[config.algorithm.name](job)


def _starting_policy(planned: Plan) -> SavedPolicy:
    if planned.prerequisite is not None:
        return read_result(planned.prerequisite.run)
    if planned.config.init.run is not None:
        return read_result(RunFolder(Path(planned.config.init.run)))
    return SavedPolicy(planned.base, few_shot=planned.config.dataset.num_exemplars > 0)


def _evaluate(planned: Plan, policy: SavedPolicy, when: str, progress: Progress) -> Evaluation:
    return evaluate(
        planned.config,
        policy,
        planned.test,
        planned.exemplars,
        folder=planned.run.evaluation / when,
        progress=progress,
        description=f"{planned.config.algorithm.name}: evaluation {when}",
    )


def evaluations(planned: Plan, progress: Progress) -> tuple[Evaluation, Evaluation]:
    """A finished run's evaluations before and after, from what they left on disk.

    Before is the prerequisite's after, where there is a prerequisite: the same policy.
    """
    result = read_result(planned.run)
    after = _evaluate(planned, result, AFTER, progress)
    if planned.prerequisite is not None:
        return evaluations(planned.prerequisite, progress)[1], after
    return _evaluate(planned, _starting_policy(planned), BEFORE, progress), after


@contextmanager
def _logged(run: RunFolder) -> Iterator[None]:
    """Copies what is logged to the run's train.log."""
    with writing(run.log):
        handler = logging.FileHandler(run.log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
