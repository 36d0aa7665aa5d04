"""What evaluate.py does with completions of other systems. It needs no torch."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from reasonrl.cli.evaluated import check_format, show, writable
from reasonrl.config.resolve import resolve_evaluation, with_homes
from reasonrl.config.schema import EvaluateConfig
from reasonrl.evaluation.predictions import UNPARSED, grade_predictions, verdicts_of
from reasonrl.evaluation.summary import warn_of_unparsed
from reasonrl.grading import GRADERS, Grader, grader_of, next_question
from reasonrl.problems import load_problems
from reasonrl.util.errors import UserError
from reasonrl.util.progress import console


def grade_and_show(config: DictConfig) -> None:
    """Grades the file that the configuration names and shows the metrics. Raises UserError."""
    config = OmegaConf.create(with_homes(OmegaConf.to_container(config, resolve=True)))
    for key in ("run", "reward_model"):
        if config[key] is not None:
            raise UserError(
                f"predictions={config.predictions} must be evaluated by themselves; got "
                f"{key}={config[key]}. Pass one of them."
            )
    check_format(config.format)
    resolved = resolve_evaluation(config)
    file, grader = Path(config.predictions), _grader(config.grader, resolved)
    record = writable(verdicts_of(file), Path(config.runtime.outputs))
    evaluation = grade_predictions(file, grader, lambda: _golds(resolved), record)
    fewest, most = (
        int(evaluation.statistics[f"{which}_completions"]) for which in ("fewest", "most")
    )
    if fewest < most:
        console.print(
            f"problems have {fewest} to {most} completions: the metrics are of the first {fewest} "
            "of each"
        )
    show(file.name, len(evaluation.problem_ids), evaluation.estimates(), config.format)
    warn_of_unparsed(float(evaluation.scores[UNPARSED].mean()), grader)
    console.print(f"record: {record}", soft_wrap=True, markup=False)


def _grader(name: str | None, config: EvaluateConfig) -> Grader:
    if name is None:
        return grader_of(config.dataset)
    if name not in GRADERS:
        raise UserError(f"grader must be one of {', '.join(GRADERS)}; got grader={name}.")
    return GRADERS[name](next_question(config.dataset.prompt))


def _golds(config: EvaluateConfig) -> dict[str, str]:
    return {p.id: p.answer for p in load_problems(config.dataset, config.evaluation.split)}
