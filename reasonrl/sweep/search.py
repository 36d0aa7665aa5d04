"""A search: Optuna chooses the next runs of a sweep by what came of the earlier ones.

Nothing is kept of a search but its runs. Optuna's choices follow from its seed and from the values
so far, so the same command asks for the same runs, finds those that are done, and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from rich import box
from rich.table import Table

from reasonrl.runs.folder import RunFolder
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.sweep.options import SearchOptions
from reasonrl.util.errors import UserError
from reasonrl.util.progress import console

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

SHOWN = 10


def search(
    options: SearchOptions,
    overrides: Iterable[Override],
    make: Callable[[list[list[str]]], list[RunFolder]],
    *,
    dry_run: bool = False,
) -> Study:
    """Makes runs of values that promise the best metric; prints each, and a table of the best.

    Raises UserError, also where a run can't be made or doesn't log the metric.

    overrides: of the command. Those with several values, or an interval, are what is searched.
    make: makes the runs of these lists of overrides, and returns once they are done.
    dry_run: whether ``make`` only says what it would do, and the first choice is all there is.
    """
    options.check()
    try:
        import optuna
    except ImportError:
        raise UserError(
            "hydra/sweeper=optuna must have Optuna; it isn't installed. pip install optuna."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fixed, space = split(overrides)
    sampler = optuna.samplers.TPESampler(seed=options.seed)
    direction = optuna.study.StudyDirection[options.direction.upper()]
    study = optuna.create_study(direction=direction, sampler=sampler)
    runs: list[RunFolder] = []
    while len(runs) < options.num_runs:
        number = min(options.at_once, options.num_runs - len(runs))
        trials = [study.ask(space) for _ in range(number)]
        made = make([[*fixed, *said(trial.params)] for trial in trials])
        if dry_run:
            return study
        for trial, run in zip(trials, made, strict=True):
            value = value_of(run, options)
            study.tell(trial, value)
            runs.append(run)
            console.print(
                f"{len(runs)} of {options.num_runs}: {options.metric} {value:.4g}, the best so far "
                f"{study.best_value:.4g}: {' '.join(said(trial.params))}",
                soft_wrap=True,
            )
    console.print(_table(study, runs, options), soft_wrap=True)
    return study


def split(overrides: Iterable[Override]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """The overrides that all runs share, and what to search of each other key.

    Raises UserError if there is nothing to search.
    """
    fixed, space = [], {}
    for one in overrides:
        if one.is_sweep_override():
            space[one.get_key_element()] = _distribution(one)
        else:
            assert one.input_line is not None
            fixed.append(one.input_line)
    if not space:
        raise UserError(
            "a search must have a key with several values; got none. Pass such as "
            "'algorithm.learning_rate=tag(log,interval(1e-5,1e-3))' or algorithm.epochs=1,2,4."
        )
    return fixed, space


def said(values: dict[str, Any]) -> list[str]:
    """Values that Optuna has chosen, as overrides."""
    return [f"{key}={value}" for key, value in values.items()]


def value_of(run: RunFolder, options: SearchOptions) -> float:
    """The best value of the metric in a finished run, whose policy is chosen in the same way.

    Raises UserError, with the metrics that there are, if the run has none of this name.
    """
    records = read_metrics(run.metrics)
    values = [x for r in records if (x := r.get(options.metric)) is not None]
    if not values:
        names = sorted({name for record in records for name in record} - {"step"})
        raise UserError(
            f"hydra.sweeper.metric={options.metric} must be a metric that every run logs; "
            f"{run.path.name} doesn't. It logs {', '.join(names)}."
        )
    return float(max(values) if options.direction == "maximize" else min(values))


def _distribution(override: Override) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        low, high, log = sweep.start, sweep.end, "log" in sweep.tags
        assert low is not None
        assert high is not None
        if isinstance(low, int):
            return IntDistribution(low, int(high), log=log)
        return FloatDistribution(low, high, log=log)
    if (
        isinstance(sweep, RangeSweep)
        and isinstance(sweep.start, int)
        and sweep.step == int(sweep.step)
    ):
        values = [int(x) for x in override.sweep_string_iterator()]
        step = abs(int(sweep.step))
        return IntDistribution(min(values), max(values), step=step)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _table(study: Study, runs: Sequence[RunFolder], options: SearchOptions) -> Table:
    sign = -1 if options.direction == "maximize" else 1
    told = zip(study.trials, runs, strict=True)
    ranked = sorted(told, key=lambda one: sign * one[0].values[0])
    table = Table(title=f"the best of {len(runs)} runs", title_justify="left", box=box.SIMPLE)
    for column in (options.metric, "values", "run"):
        table.add_column(column, overflow="fold")
    for trial, run in ranked[:SHOWN]:
        table.add_row(f"{trial.values[0]:.4g}", "\n".join(said(trial.params)), run.path.name)
    return table
