"""What a finished run came to, as the files of its evaluations have it; nothing is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from reasonrl.evaluation.summary import METRICS, read_estimates, warn_of_unparsed
from reasonrl.grading.base import Grader
from reasonrl.pipeline.plan import Plan
from reasonrl.report.tables import estimates_table, gains_table
from reasonrl.runs.folder import GAIN
from reasonrl.runs.result import (
    AFTER,
    CONDITIONING_GAP,
    VALIDATION,
    WORST,
    policy_of,
)
from reasonrl.util.progress import console, output


def show_outcome(planned: Plan) -> None:
    """Prints the result of a finished run to stdout, and where to look further to stderr."""
    run, makes = planned.run, planned.config.algorithm.makes
    if makes == "policy":
        _show_policy(planned)
    elif makes == "reward model":
        title = f"{run.path.name}: completions of {len(planned.validation)} validation problems"
        output.print(estimates_table(title, read_estimates(run.evaluation / VALIDATION / METRICS)))
        _tell("reward model", run.reward_model)
        _tell("reliability diagram", run.evaluation / VALIDATION / "calibration.png")
    else:
        _tell("completions", run.rollouts)


def show_unparsed(statistics: Mapping[str, float], grader: Grader) -> None:
    """Prints how many samples had no answer that could be read, and what one is if they are many.

    They count as wrong, and a low score can't be told from that of a policy that is always wrong.

    statistics: ``Evaluation.statistics``.
    """
    unparsed = statistics["sampled/unparsed"]
    if unparsed:
        output.print(f"samples without a readable answer: {unparsed:.1%}")
    warn_of_unparsed(unparsed, grader)


def _show_policy(planned: Plan) -> None:
    """Prints the table of before and after, and that of the conditioning gap if there is one."""
    config, run = planned.config, planned.run
    folder = run.evaluated(config.protocol)
    title = (
        f"{config.algorithm.name} on {config.dataset.name} ({config.model.name}, "
        f"init={config.init.name}): {len(planned.test)} {config.evaluation.split} problems, "
        f"T={config.evaluation.temperature:g}"
    )
    after = read_estimates(folder / AFTER / METRICS)
    one, when = planned.evaluated_before
    before = read_estimates(one.run.evaluated(one.config.protocol) / when / METRICS)
    output.print(gains_table(title, before, after, read_estimates(folder / GAIN)))
    show_unparsed(json.loads((folder / AFTER / METRICS).read_text())["statistics"], planned.grader)
    if labels := list(policy_of(run).labels):
        output.print(
            gains_table(
                "conditioning gap: asked for the worst, and for the best return",
                read_estimates(folder / WORST / METRICS),
                after,
                read_estimates(folder / CONDITIONING_GAP),
                columns=(labels[0], labels[-1]),
            )
        )
    _tell("policy", run.policy)
    if config.algorithm.panels.charts:
        _tell("learning curve", run.learning_curve)


def _tell(what: str, path: Path) -> None:
    console.print(f"{what}: {path}", soft_wrap=True, markup=False)
