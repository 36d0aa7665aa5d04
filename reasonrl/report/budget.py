"""What runs were given to learn from, which a comparison has to state.

A run's budget is its own and that of all runs that it is made from, each once: the starting policy,
the completions and steps that it learns from, the reward model. It is read from their folders:

    questions   training problems, by the configuration: the most of any of these runs
    samples     completions sampled to learn from: as many as metrics.jsonl counts, else the rows of
                the run's files of them and of continued steps; and those that a baseline samples.
                What validates doesn't count
    steps       optimizer steps: the last one in metrics.jsonl
    tokens      sampled tokens: samples times their mean length as logged, else those in the files
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from reasonrl.config.identity import prerequisites, training_set
from reasonrl.config.schema import TrainConfig
from reasonrl.runs.folder import RunFolder, read_config, run_folder
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.util.errors import UserError

logger = logging.getLogger(__name__)

TOLERANCE = 0.1  # budgets that differ by no more than this share count as equal
NOT_COMPARED = "Budgets differ, so gains aren't compared between runs: {}."
ALL = "all"  # what a number of questions is called that isn't limited
SAMPLED = ("train.parquet", "continuations.parquet")  # where no metric counts samples


@dataclass(frozen=True)
class Budget:
    """What a run was given to learn from, so far if it isn't done."""

    questions: int | None  # None: all of the data set
    samples: int
    steps: int
    tokens: int

    def __add__(self, other: Budget) -> Budget:
        both = (self.questions, other.questions)
        return Budget(
            None if None in both else max(filter(None, both), default=0),
            self.samples + other.samples,
            self.steps + other.steps,
            self.tokens + other.tokens,
        )

    def cells(self) -> dict[str, int | str]:
        """Its quantities by their names: numbers, and ``all`` questions of the data set."""
        counts = {name: getattr(self, name) for name in QUANTITIES}
        return {name: ALL if count is None else count for name, count in counts.items()}


QUANTITIES = tuple(field.name for field in dataclasses.fields(Budget))


def budget_of(run: RunFolder, config: TrainConfig) -> Budget | None:
    """A run's budget, from its folder and those beside it; None if it isn't known.

    It isn't if one of these runs has nothing yet, or files that can't be read, which is logged.
    """
    try:
        return _with_what_it_is_made_from(run, config)
    except (UserError, OSError, ValueError) as error:
        logger.warning("the budget of %s isn't known: %s", run.path.name, error)
        return None


def _with_what_it_is_made_from(run: RunFolder, config: TrainConfig) -> Budget | None:
    total = _own(run, config)
    if total is None:
        return None
    for other, its_config in {one.path: (one, c) for one, c in _made_from(run, config)}.values():
        more = _own(other, its_config)
        if more is None:
            return None
        total += more
    return total


def unequal(budgets: Mapping[str, Budget | None]) -> dict[str, str]:
    """The quantities that differ by more than TOLERANCE, and in what: a text of each, by name.

    A run whose budget isn't known is left out.

    budgets: by the names of the runs.
    """
    said = {}
    for quantity in QUANTITIES:
        values = {name: getattr(b, quantity) for name, b in budgets.items() if b is not None}
        ordered = sorted(values, key=lambda name: (values[name] is None, values[name] or 0))
        if not ordered:
            continue
        least, most = ordered[0], ordered[-1]
        low, high = values[least], values[most]
        if low == high or (high is not None and high <= (1 + TOLERANCE) * low):
            continue
        times = f", {high / low:.3g} times as many" if low and high else ""
        said[quantity] = f"{quantity}: {_text(low)} of {least}, {_text(high)} of {most}{times}"
    return said


def _made_from(run: RunFolder, config: TrainConfig) -> Iterator[tuple[RunFolder, TrainConfig]]:
    for first in prerequisites(config).values():
        beside = RunFolder(run.path.parent / run_folder(first).path.name)
        yield beside, first
        yield from _made_from(beside, first)
    for finished in filter(None, (config.init.run, config.reward.finished_run())):
        beside = RunFolder(run.path.parent / Path(finished).name)
        other = beside if beside.path.exists() else RunFolder(Path(finished))
        try:
            its_config = read_config(other)
        except UserError:
            continue  # it has moved: a folder of a policy is enough to go on from
        yield other, its_config
        yield from _made_from(other, its_config)


def _own(run: RunFolder, config: TrainConfig) -> Budget | None:
    """A run's budget without what it is made from; None if it has neither logged nor sampled."""
    files = [file for name in SAMPLED if (file := run.rollouts / name).exists()]
    records = read_metrics(run.metrics)
    if not records and not files:
        return None
    count = config.algorithm.panels.rollouts
    # What baselines sample (``policy_gradient.baselines``) is in no metric.
    beside = sorted(run.rollouts.glob("baselines/*.parquet"))
    samples, tokens = _in_files(beside if count else [*files, *beside])
    if count is not None:
        logged, exact = 0, 0.0
        for record in records:
            if "rollout/mean_length" in record and count in record:
                exact += record["rollout/mean_length"] * (record[count] - logged)
                logged = record[count]
        samples, tokens = samples + logged, tokens + round(exact)
    steps = max((record["step"] for record in records), default=0)
    return Budget(training_set(config).train_size, samples, steps, tokens)


def _in_files(files: Sequence[Path]) -> tuple[int, int]:
    """The completions in files of rollouts, and their tokens."""
    samples = tokens = 0
    for file in files:
        samples += pq.read_metadata(file).num_rows
        lengths = pc.list_value_length(pq.read_table(file, columns=["token_ids"])["token_ids"])
        tokens += pc.sum(lengths).as_py() or 0
    return samples, tokens


def _text(number: int | None) -> str:
    return ALL if number is None else f"{number:,}"
