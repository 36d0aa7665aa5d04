"""What evaluate.py does: it turns a run, a model or a file of completions into metrics."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.table import Table

from reasonrl.cli.attempt import attempt
from reasonrl.config.identity import decisive, identity
from reasonrl.config.resolve import resolve_evaluation
from reasonrl.config.schema import EvaluateConfig
from reasonrl.evaluation.policy import Evaluation, evaluate
from reasonrl.evaluation.predictions import grade_predictions
from reasonrl.grading.metrics import paired_difference
from reasonrl.grading.strict import Strict
from reasonrl.pipeline.plan import base_model
from reasonrl.pipeline.results import AFTER
from reasonrl.problems import load_problems
from reasonrl.report.tables import estimates_table, gains_table
from reasonrl.reward_models.model import RewardModel
from reasonrl.runs.folder import RunFolder, read_config
from reasonrl.runs.process import ALONE, usable_cores
from reasonrl.runs.result import policy_of, reward_model_of
from reasonrl.types import SavedPolicy
from reasonrl.util.errors import UserError
from reasonrl.util.progress import Progress, console


def evaluate_and_show(config: DictConfig) -> None:
    """Evaluates what the configuration names and shows the metrics. Raises UserError.

    Told to stop by a signal, it keeps what it has sampled and exits; see ``attempt``.
    """
    for key in ("run", "reward_model"):
        if config[key] is not None and config.predictions is not None:
            raise UserError(
                f"predictions={config.predictions} must be evaluated by themselves; got "
                f"{key}={config[key]}. Pass one of them."
            )
    if config.predictions is not None:
        file = Path(config.predictions)
        evaluation, record = grade_predictions(file, Strict(next_question="Q:"))
        name = file.name
    else:
        resolved = resolve_evaluation(config)
        if config.run is not None:
            resolved, policy, record = _of_run(RunFolder(Path(config.run)), resolved)
            name = Path(config.run).name
        else:
            policy, record = _of_model(resolved)
            name = f"{resolved.model.name} on {resolved.dataset.name}"
        with attempt():
            evaluation = _evaluate(resolved, policy, record, config.reward_model)
    num_problems = len(evaluation.problem_ids)
    console.print(estimates_table(f"{name}: {num_problems} problems", evaluation.estimates()))
    if config.reward_model is not None:
        console.print(_gains_on_vote(evaluation))
    console.print(f"record: {record}", soft_wrap=True)


def _of_run(run: RunFolder, config: EvaluateConfig) -> tuple[EvaluateConfig, SavedPolicy, Path]:
    """What to evaluate of a run: the configuration, the policy, and the folder for the record.

    Model, dataset and seed are the run's, the protocol is that of ``config``.
    """
    trained = read_config(run)
    own = dataclasses.replace(
        config, model=trained.model, dataset=trained.dataset, seed=trained.seed
    )
    return own, policy_of(run), run.evaluated(own.protocol) / AFTER


def _of_model(config: EvaluateConfig) -> tuple[SavedPolicy, Path]:
    name = f"{config.model.name}-{config.dataset.name}-{config.protocol}"
    folder = Path(config.runtime.outputs) / "evaluations" / f"{name}-{identity(decisive(config))}"
    return SavedPolicy(base_model(config), few_shot=config.dataset.num_exemplars > 0), folder


def _evaluate(
    config: EvaluateConfig, policy: SavedPolicy, folder: Path, reward_model: str | None
) -> Evaluation:
    torch.set_num_threads(config.runtime.threads or usable_cores())
    dataset = config.dataset
    problems = load_problems(dataset, config.evaluation.split)
    exemplars = load_problems(dataset, "validation")[: dataset.num_exemplars]
    return evaluate(
        config,
        policy,
        problems,
        exemplars,
        folder=folder,
        progress=Progress(),
        description="evaluation",
        reward_model=_load_reward_model(config, reward_model),
    )


def _load_reward_model(config: EvaluateConfig, run: str | None) -> RewardModel | None:
    if run is None:
        return None
    if config.evaluation.num_samples_per_prompt == 1:
        raise UserError(
            f"reward_model={run} must have samples to choose among; got "
            "evaluation.num_samples_per_prompt=1. Raise it."
        )
    folder = reward_model_of(RunFolder(Path(run)), "reward_model")
    return RewardModel.load(folder, config.model.compute_dtype, ALONE.device(config.model.device))


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
