"""Finished runs against each other, problem by problem, and over seeds where there are several."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from reasonrl.grading.estimates import (
    Estimate,
    estimate_mean,
    holm,
    mean_over_seeds,
    paired_difference,
)
from reasonrl.report.catalogue import Entry
from reasonrl.report.scores import Scores
from reasonrl.util.errors import UserError


@dataclass(frozen=True)
class Row:
    """A run, or runs that differ in their seed alone, in a table."""

    entries: Sequence[Entry]  # those of which its numbers are, or all where there are none
    lacking: Sequence[Entry]  # those that its numbers lack, not being evaluated
    # By column, such as ``maj@1``, ``maj@1: gain``, ``maj@1: against the first``.
    estimates: dict[str, Estimate]


def results(groups: Sequence[Sequence[Entry]], metrics: Sequence[str]) -> list[Row]:
    """Of each group the metrics of its policies, and what they gained on those they started from.

    metrics: their names; ``pass@K`` and ``maj@K`` mean the K of the evaluation.
    """
    rows = []
    for group in groups:
        row = _measured(group, metrics)
        before = [entry.before for entry in row.entries if entry.before is not None]
        after = [entry.after for entry in row.entries]
        for metric in list(row.estimates) if len(before) == len(after) else ():
            gain = _difference(
                *([_values(s, metric) for s in scores] for scores in (before, after))
            )
            row.estimates[f"{metric}: gain"] = gain
        rows.append(row)
    return rows


def compared(groups: Sequence[Sequence[Entry]], metrics: Sequence[str]) -> list[Row]:
    """Of each group the metrics of its policies, and what they gain on those of the first group.

    Differences are paired by problem and, where both groups have several seeds, by seed; p-values
    are corrected for the number of all these differences (``holm``).

    Raises UserError if a run wasn't evaluated, if the problems differ, or if no seed is in both
    groups.
    """
    base, *others = groups
    rows = [_measured(group, metrics) for group in groups]
    pairs = list(product(metrics, zip(rows[1:], others, strict=True)))
    gains = [_paired(base, other, metric) for metric, (_, other) in pairs]
    corrected = holm([1.0 if gain.p_value is None else gain.p_value for gain in gains])
    for (metric, (row, _)), gain, p_value in zip(pairs, gains, corrected, strict=True):
        row.estimates[f"{metric}: against the first"] = replace(gain, p_value=p_value)
    return rows


def _measured(group: Sequence[Entry], metrics: Sequence[str]) -> Row:
    """The metrics of a group's policies; none as long as no run of it was evaluated."""
    evaluated = [entry for entry in group if entry.after is not None]
    found = {}
    for metric in metrics if evaluated else ():
        found[metric] = _mean([_values(entry.after, metric) for entry in evaluated])
    lacking = [entry for entry in group if entry.after is None] if evaluated else []
    return Row(evaluated or group, lacking, found)


def _paired(base: Sequence[Entry], other: Sequence[Entry], metric: str) -> Estimate:
    pairs = [(base[0], other[0])] if len(base) == len(other) == 1 else []
    if not pairs:
        seeds = {entry.config.seed: entry for entry in base}
        pairs = [(seeds[e.config.seed], e) for e in other if e.config.seed in seeds]
    if not pairs:
        raise UserError(
            f"{base[0].name} and {other[0].name} must have a seed in common to be paired; the "
            f"seeds are {_listed(base)} and {_listed(other)}."
        )
    for one, another in pairs:
        for entry in (one, another):
            if entry.after is None:
                raise UserError(
                    f"run={entry.name} must be evaluated by {entry.run.protocol}; it isn't. Leave "
                    "it out (--where state=done), or give its command again with these evaluation "
                    "settings."
                )
        same = one.after.problem_ids == another.after.problem_ids  # type: ignore[union-attr]
        if not same or _content_in(one.run.protocol) != _content_in(another.run.protocol):
            raise UserError(
                f"{one.name} and {another.name} must have answered the same problems to be "
                "compared; they haven't."
            )
    return _difference(
        [_values(one.after, metric) for one, _ in pairs],
        [_values(other.after, metric) for _, other in pairs],
    )


def _content_in(protocol: str | None) -> str | None:
    """The hash of the problems in a protocol's name, for other problems may have the same ids."""
    end = (protocol or "").rpartition("-")[2]
    return end if re.fullmatch(r"[0-9a-f]{8}", end) else None


def _mean(values: Sequence[np.ndarray]) -> Estimate:
    if len(values) == 1 or len({each.shape for each in values}) > 1:
        return estimate_mean(values[0])
    return replace(mean_over_seeds(np.stack(values)), p_value=None)


def _difference(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> Estimate:
    if len(before) == 1:
        return paired_difference(before[0], after[0])
    return mean_over_seeds(np.stack(after) - np.stack(before))


def _values(scores: Scores | None, metric: str) -> np.ndarray:
    """A metric's values by problem. Raises UserError for one that the evaluation doesn't have."""
    assert scores is not None
    name, _, k = metric.partition("@")
    if k == "K":
        sizes = [int(known.partition("@")[2]) for known in scores.values if known.startswith(name)]
        metric = f"{name}@{max(sizes, default=1)}"
    if metric not in scores.values:
        raise UserError(
            f"metric={metric} must be one of {', '.join(scores.values)} of this evaluation."
        )
    return scores.values[metric]


def _listed(entries: Sequence[Entry]) -> str:
    return ", ".join(str(entry.config.seed) for entry in entries)
