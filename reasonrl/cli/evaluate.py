"""What evaluate.py does with runs and models: it turns them into metrics.

Torch is imported once nothing is left to be refused: mistakes are told in a moment.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from reasonrl.cli.attempt import attempt
from reasonrl.cli.command import find_run
from reasonrl.cli.evaluated import check_format, show, writable
from reasonrl.cli.run_overrides import applied_to
from reasonrl.config.identity import decisive, identity
from reasonrl.config.resolve import resolve_evaluation, with_homes
from reasonrl.config.schema import EvaluateConfig
from reasonrl.evaluation.summary import METRICS, Evaluation, warn_of_unparsed
from reasonrl.grading import grader_of
from reasonrl.grading.estimates import paired_difference
from reasonrl.pipeline.contents import Contents, with_contents
from reasonrl.pipeline.memory import EVALUATION, with_batch_size
from reasonrl.pipeline.outcome import show_unparsed
from reasonrl.pipeline.overrides import differing
from reasonrl.pipeline.planner import base_model, with_sizes
from reasonrl.pipeline.problems import stopped_answers
from reasonrl.policy.source import content_of as content_of_model
from reasonrl.problems import content_of, load_problems
from reasonrl.report.export import export
from reasonrl.report.tables import comparison_table, gains_table
from reasonrl.runs import machines, ranks
from reasonrl.runs.folder import read_config
from reasonrl.runs.process import Process, joined, usable_cores
from reasonrl.runs.rank import as_rank
from reasonrl.runs.result import AFTER, reward_model_of, usable_policy_of
from reasonrl.types import Problem, SavedPolicy
from reasonrl.util.entry_point import set_up_logging
from reasonrl.util.errors import UserError
from reasonrl.util.progress import Progress, console, output

logger = logging.getLogger(__name__)

RANK = [sys.executable, "-P", "-m", "reasonrl.cli.evaluate"]  # of an evaluation by several


def evaluate_and_show(config: DictConfig, overrides: Sequence[str] = ()) -> None:
    """Evaluates what the configuration names and shows the metrics. Raises UserError.

    Where ``evaluation.split`` is a list, each of its splits is evaluated by itself, and one table
    shows all.

    Told to stop by a signal, it keeps what it has sampled and exits; see ``attempt``.

    overrides: what the command line said.
    """
    config = OmegaConf.create(with_homes(OmegaConf.to_container(config, resolve=True)))
    if OmegaConf.is_list(config.evaluation.split):
        evaluate_all_and_show(_by_split(config, overrides))
        return
    _check(config)
    with joined() as process:
        asked = process.first(lambda: _asked(config, overrides))
        evaluation = _evaluate_together(asked, config, overrides, process)
        if process.is_main:
            _show(asked, evaluation, config.format)


def evaluate_all_and_show(points: Mapping[tuple[str, ...], DictConfig]) -> None:
    """Evaluates what each configuration names, then shows all of them in one table.

    All are checked before the first is evaluated. Tables for people have pass@k of the largest k
    alone; CSV and JSON have all estimates. Raises UserError.

    points: by the overrides that the command gave each.
    """
    for config in points.values():
        if config.predictions is not None:
            raise UserError(
                f"predictions={config.predictions} must be evaluated by themselves; got -m. Give "
                "one command for each file."
            )
        _check(config)
    kind = next(iter(points.values())).format
    with joined() as process:
        all_asked = {
            said: process.first(partial(_asked, config, said)) for said, config in points.items()
        }
        rows, records = {}, []
        for (said, asked), told in zip(all_asked.items(), differing([*points]), strict=True):
            evaluation = _evaluate_together(asked, points[said], said, process)
            split = asked.config.evaluation.split
            own = [setting for setting in told if not setting.startswith("run=")]
            name = "\n".join([asked.name, f"{len(asked.problems)} {split} problems", *own])
            rows[name] = {
                metric: estimate
                for metric, estimate in evaluation.estimates().items()
                if kind in ("csv", "json")
                or not metric.startswith("pass@")
                or metric == list(evaluation.scores)[-1]
            }
            records.append(asked.record)
            if process.is_main:
                _show_unparsed(asked, evaluation, kind)
        if process.is_main:
            if kind == "table":
                output.print(comparison_table(f"{len(rows)} evaluations", rows))
            else:
                named = {name.replace("\n", ", "): row for name, row in rows.items()}
                print(export([{"name": name, **row} for name, row in named.items()], kind))
            for record in records:
                console.print(f"record: {record}", soft_wrap=True, markup=False)


def _by_split(config: DictConfig, overrides: Sequence[str]) -> dict[tuple[str, ...], DictConfig]:
    """The configuration with each of its splits, by its overrides.

    Raises UserError for none, and for one that is named twice.
    """
    splits = list(config.evaluation.split)
    if not splits:
        raise UserError("evaluation.split must name a split, or several; got []. Leave it out.")
    if twice := [split for split in dict.fromkeys(splits) if splits.count(split) > 1]:
        raise UserError(f"evaluation.split must name each split once; got {twice[0]} again.")
    points = {}
    for split in splits:
        one = config.copy()
        one.evaluation.split = split
        others = [o for o in overrides if o.lstrip("+").partition("=")[0] != "evaluation.split"]
        points[*others, f"evaluation.split={split}"] = one
    return points


def _check(config: DictConfig) -> None:
    check_format(config.format)
    if config.grader is not None:
        raise UserError(
            f"grader={config.grader} must be of predictions=FILE: the completions of a run or a "
            "model are read by their dataset's grader. Leave it out."
        )


def _evaluate_together(
    asked: _Asked, config: DictConfig, overrides: Sequence[str], process: Process
) -> Evaluation:
    """Evaluates by this process and its like, or by several that it starts for it."""
    if process.size == 1 and machines.num_processes(asked.config) > 1:
        with attempt(), TemporaryDirectory() as folder:
            file = Path(folder) / "config.yaml"
            OmegaConf.save(config, file, resolve=True)
            ranks.make_together([*RANK, str(file), *overrides], asked.config)
    with attempt(process):
        return _evaluate(asked, process)


def evaluate_as_rank(file: str, overrides: Sequence[str]) -> None:
    """Evaluates what the configuration in a file names, together with the other ranks."""
    with as_rank() as process:
        config = OmegaConf.load(file)
        assert isinstance(config, DictConfig)
        _evaluate(process.first(lambda: _asked(config, overrides)), process)


@dataclass(frozen=True)
class _Asked:
    """What is to be evaluated."""

    name: str  # for people
    config: EvaluateConfig
    policy: SavedPolicy
    problems: list[Problem]
    exemplars: list[Problem]  # of the few-shot prompt, where the policy needs one
    record: Path  # the folder of what the evaluation writes
    reward_model: Path | None  # its folder


def _asked(config: DictConfig, overrides: Sequence[str]) -> _Asked:
    if config.run is not None:
        run = find_run(Path(config.runtime.outputs), config.run)
        said, trained = config.copy(), read_config(run)
        said.run = str(run.path)
        config = applied_to(trained, OmegaConf.load(run.config), said, overrides)
    resolved = resolve_evaluation(config, [] if config.run is not None else overrides)
    dataset, split = resolved.dataset, resolved.evaluation.split
    reward_model = _reward_model(resolved, config.reward_model)
    if config.run is not None:
        name, policy = Path(config.run).resolve().name, usable_policy_of(run)
    else:
        name = f"{resolved.model.name} on {dataset.name}"
        base = base_model(resolved)
        resolved = replace(resolved, model=with_sizes(resolved.model, base))
        policy = SavedPolicy(base, few_shot=dataset.num_exemplars > 0)
    exemplars = load_problems(dataset, "validation")[: dataset.num_exemplars]
    problems = load_problems(dataset if dataset.is_generated else dataset.whole, split)
    for warning in stopped_answers(problems, dataset):
        logger.warning(warning)
    shown = exemplars if policy.few_shot else []
    found = Contents(
        learnt=None if dataset.is_generated or not shown else content_of(shown),
        judged=None if dataset.is_generated else content_of(problems),
    )
    if config.run is None:
        found.model = content_of_model(resolved.model, policy.path)
        resolved = with_contents(resolved, found)
        record = _record_of_model(resolved)
    else:
        resolved = with_contents(resolved, replace(found, learnt=None))
        record = run.evaluated(resolved.protocol) / AFTER
        if not (record / METRICS).exists():
            record = writable(record, Path(resolved.runtime.outputs))
    machines.check(resolved)
    from reasonrl.policy.policy import shape_of  # this imports torch

    judged = reward_model is not None
    shape = shape_of(policy.path)
    resolved = with_batch_size(resolved, shape, EVALUATION, reward_model=judged)
    problems = problems[: dataset.size_of(split)]
    return _Asked(name, resolved, policy, problems, exemplars, record, reward_model)


def _reward_model(config: EvaluateConfig, run: str | None) -> Path | None:
    """The folder of the reward model that a run has made. Raises UserError if it can't be used."""
    if run is None:
        return None
    if config.evaluation.num_samples_per_prompt == 1:
        raise UserError(
            f"reward_model={run} must have samples to choose among; got "
            "evaluation.num_samples_per_prompt=1. Raise it."
        )
    found = find_run(Path(config.runtime.outputs), run, "reward_model")
    return reward_model_of(found, "reward_model")


def _record_of_model(config: EvaluateConfig) -> Path:
    name = f"{config.model.name}-{config.dataset.name}-{config.protocol}"
    return Path(config.runtime.outputs) / "evaluations" / f"{name}-{identity(decisive(config))}"


def _show(asked: _Asked, evaluation: Evaluation, kind: str) -> None:
    show(asked.name, len(evaluation.problem_ids), evaluation.estimates(), kind)
    if kind == "table" and any(score.startswith("rerank@") for score in evaluation.scores):
        output.print(_gains_on_vote(evaluation))
    _show_unparsed(asked, evaluation, kind)
    console.print(f"record: {asked.record}", soft_wrap=True, markup=False)


def _show_unparsed(asked: _Asked, evaluation: Evaluation, kind: str) -> None:
    grader = grader_of(asked.config.dataset)
    if kind == "table":
        show_unparsed(evaluation.statistics, grader)
    else:
        warn_of_unparsed(evaluation.statistics["sampled/unparsed"], grader)


def _evaluate(asked: _Asked, process: Process) -> Evaluation:
    import torch

    from reasonrl.evaluation.policy import evaluate
    from reasonrl.reward_models.model import RewardModel

    config, folder = asked.config, asked.reward_model
    torch.set_num_threads(config.runtime.threads or max(1, usable_cores() // process.local_size))
    judge = None
    if folder is not None:
        device = process.device(config.model.device)
        judge = RewardModel.load(folder, config.model.compute_dtype, device)
    return evaluate(
        config,
        asked.policy,
        asked.problems,
        asked.exemplars,
        folder=asked.record,
        progress=Progress(shown=process.is_main),
        description="evaluation",
        reward_model=judge,
        process=process,
    )


def _gains_on_vote(evaluation: Evaluation) -> Table:
    """What choosing by the reward model gains on the majority vote over the same samples."""
    vote = next(name for name in evaluation.scores if name.startswith("maj@") and name != "maj@1")
    chosen = [name for name in evaluation.scores if name.startswith(("rerank@", "weighted_maj@"))]
    estimates = evaluation.estimates()
    return gains_table(
        f"by the reward model, against {vote}",
        dict.fromkeys(chosen, estimates[vote]),
        {name: estimates[name] for name in chosen},
        {
            name: paired_difference(evaluation.scores[vote], evaluation.scores[name])
            for name in chosen
        },
    )


if __name__ == "__main__":
    set_up_logging()
    evaluate_as_rank(sys.argv[1], sys.argv[2:])
