"""What evaluate.py does: it turns a run, a model or a file of completions into metrics."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from reasonrl.cli.attempt import attempt
from reasonrl.config.identity import decisive, identity
from reasonrl.config.resolve import resolve_evaluation, with_homes
from reasonrl.config.schema import EvaluateConfig
from reasonrl.evaluation.policy import METRICS, Evaluation, evaluate
from reasonrl.evaluation.predictions import grade_predictions, verdicts_of
from reasonrl.grading import Grader, grader_of
from reasonrl.grading.metrics import paired_difference
from reasonrl.grading.strict import Strict
from reasonrl.pipeline.memory import EVALUATION, with_batch_size
from reasonrl.pipeline.plan import base_model
from reasonrl.pipeline.results import AFTER
from reasonrl.pipeline.text import show_unparsed
from reasonrl.policy.policy import shape_of
from reasonrl.problems import load_problems
from reasonrl.report.tables import estimates_table, gains_table
from reasonrl.reward_models.model import RewardModel
from reasonrl.runs import ranks
from reasonrl.runs.folder import RunFolder, read_config
from reasonrl.runs.process import Process, joined, usable_cores
from reasonrl.runs.result import policy_of, reward_model_of
from reasonrl.types import SavedPolicy
from reasonrl.util.entry_point import set_up_logging
from reasonrl.util.errors import UserError
from reasonrl.util.progress import Progress, console, output

RANK = [sys.executable, "-P", "-m", "reasonrl.cli.evaluate"]  # of an evaluation by several


def evaluate_and_show(config: DictConfig) -> None:
    """Evaluates what the configuration names and shows the metrics. Raises UserError.

    Told to stop by a signal, it keeps what it has sampled and exits; see ``attempt``.
    """
    config = OmegaConf.create(with_homes(OmegaConf.to_container(config, resolve=True)))
    for key in ("run", "reward_model"):
        if config[key] is not None and config.predictions is not None:
            raise UserError(
                f"predictions={config.predictions} must be evaluated by themselves; got "
                f"{key}={config[key]}. Pass one of them."
            )
    if config.predictions is not None:
        file, grader = Path(config.predictions), Strict(next_question="Q:")
        record = _writable(verdicts_of(file), Path(config.runtime.outputs))
        _show(file.name, grade_predictions(file, grader, record), record, grader)
        return
    with joined() as process:
        asked = process.first(lambda: _asked(config))
        if process.size == 1 and ranks.num_processes(asked.config) > 1:
            with attempt(), TemporaryDirectory() as folder:
                file = Path(folder) / "config.yaml"
                OmegaConf.save(config, file, resolve=True)
                ranks.make_together([*RANK, str(file)], asked.config)
        else:
            with attempt(process):
                evaluation = _evaluate(asked, process)
            if process.is_main:
                _show(asked.name, evaluation, asked.record, grader_of(asked.config.dataset))


def evaluate_as_rank(file: str) -> None:
    """Evaluates what the configuration in a file names, together with the other ranks."""
    with ranks.as_rank() as process:
        config = OmegaConf.load(file)
        assert isinstance(config, DictConfig)
        asked = process.first(lambda: _asked(config))
        evaluation = _evaluate(asked, process)
        if process.is_main:
            _show(asked.name, evaluation, asked.record, grader_of(asked.config.dataset))


@dataclass(frozen=True)
class _Asked:
    """What is to be evaluated."""

    name: str  # for people
    config: EvaluateConfig
    policy: SavedPolicy
    record: Path  # the folder of what the evaluation writes
    reward_model: str | None  # the folder of the run that made it


def _asked(config: DictConfig) -> _Asked:
    resolved = resolve_evaluation(config)
    if config.run is not None:
        resolved, policy, record = _of_run(RunFolder(Path(config.run)), resolved)
        name = Path(config.run).name
    else:
        policy, record = _of_model(resolved)
        name = f"{resolved.model.name} on {resolved.dataset.name}"
    ranks.check(resolved)
    judged = config.reward_model is not None
    shape = shape_of(policy.path)
    resolved = with_batch_size(resolved, shape, EVALUATION, reward_model=judged)
    return _Asked(name, resolved, policy, record, config.reward_model)


def _show(name: str, evaluation: Evaluation, record: Path, grader: Grader) -> None:
    num_problems = len(evaluation.problem_ids)
    output.print(estimates_table(f"{name}: {num_problems} problems", evaluation.estimates()))
    if any(score.startswith("rerank@") for score in evaluation.scores):
        output.print(_gains_on_vote(evaluation))
    show_unparsed(evaluation, grader)
    console.print(f"record: {record}", soft_wrap=True, markup=False)


def _of_run(run: RunFolder, config: EvaluateConfig) -> tuple[EvaluateConfig, SavedPolicy, Path]:
    """What to evaluate of a run: the configuration, the policy, and the folder for the record.

    Model, dataset and seed are the run's, the protocol is that of ``config``.
    """
    trained = read_config(run)
    own = dataclasses.replace(
        config, model=trained.model, dataset=trained.dataset, seed=trained.seed
    )
    record = run.evaluated(own.protocol) / AFTER
    if not (record / METRICS).exists():
        record = _writable(record, Path(config.runtime.outputs))
    return own, policy_of(run), record


def _writable(path: Path, outputs: Path) -> Path:
    """The path, or where nothing may be written there one in the folder of outputs."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if os.access(there, os.W_OK):
        return path
    where = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:8]
    return outputs / "evaluations" / where / path.name


def _of_model(config: EvaluateConfig) -> tuple[SavedPolicy, Path]:
    name = f"{config.model.name}-{config.dataset.name}-{config.protocol}"
    folder = Path(config.runtime.outputs) / "evaluations" / f"{name}-{identity(decisive(config))}"
    return SavedPolicy(base_model(config), few_shot=config.dataset.num_exemplars > 0), folder


def _evaluate(asked: _Asked, process: Process) -> Evaluation:
    config, dataset = asked.config, asked.config.dataset
    torch.set_num_threads(config.runtime.threads or max(1, usable_cores() // process.local_size))
    problems = load_problems(dataset, config.evaluation.split)
    exemplars = load_problems(dataset, "validation")[: dataset.num_exemplars]
    return evaluate(
        config,
        asked.policy,
        problems,
        exemplars,
        folder=asked.record,
        progress=Progress(shown=process.is_main),
        description="evaluation",
        reward_model=_load_reward_model(config, asked.reward_model, process),
        process=process,
    )


def _load_reward_model(
    config: EvaluateConfig, run: str | None, process: Process
) -> RewardModel | None:
    if run is None:
        return None
    if config.evaluation.num_samples_per_prompt == 1:
        raise UserError(
            f"reward_model={run} must have samples to choose among; got "
            "evaluation.num_samples_per_prompt=1. Raise it."
        )
    folder = reward_model_of(RunFolder(Path(run)), "reward_model")
    return RewardModel.load(folder, config.model.compute_dtype, process.device(config.model.device))


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
    evaluate_as_rank(sys.argv[1])
