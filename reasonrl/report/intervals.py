"""Estimates of several runs under each other, as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from reasonrl.grading.estimates import Estimate
from reasonrl.report.export import is_bold
from reasonrl.util.atomic import write_bytes
from reasonrl.util.errors import UserError

# By the ending of a file, what says when or by what it was written: without it a picture of the
# same numbers has the same bytes.
STAMPS = {".png": "Software", ".svg": "Date", ".pdf": "CreationDate"}


def draw_intervals(
    names: Sequence[str], rows: Sequence[Mapping[str, Estimate]], path: Path
) -> None:
    """Draws a picture of estimates into a file, see ``figure_of``.

    Raises UserError for a path with another ending than STAMPS has, or that can't be written, and
    where there are no estimates.
    """
    if not any(rows):
        raise UserError(f"plot={path} must have runs that are evaluated; got none. Choose others.")
    if path.suffix not in STAMPS:
        raise UserError(f"plot={path} must end in one of {', '.join(STAMPS)}. Rename it.")
    buffer = io.BytesIO()
    stamp = {STAMPS[path.suffix]: None}
    figure_of(names, rows).savefig(buffer, format=path.suffix[1:], dpi=120, metadata=stamp)
    write_bytes(path, buffer.getvalue())


def figure_of(names: Sequence[str], rows: Sequence[Mapping[str, Estimate]]) -> Figure:
    """A chart for each column, with a line for each run: its estimate and 95% interval.

    A metric's chart is above those of its differences, which have a dashed line at 0 and the same
    scale as those of other metrics. A mark is filled where a difference is established
    (``Estimate.is_established``).

    names: of the runs. rows: the estimates of each, by column, as ``maj@1`` or ``maj@1: gain``.
    """
    columns = {c: c.partition(": ")[::2] for row in rows for c in row}
    metrics = list(dict.fromkeys(metric for metric, _ in columns.values()))
    kinds = list(dict.fromkeys(kind for _, kind in columns.values()))
    height = len(kinds) * (0.9 + 0.24 * len(names))
    figure = Figure(figsize=(1.5 + 2.6 * len(metrics), height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(kinds), len(metrics), squeeze=False, sharey=True)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)  # the first run is on top
    for column, (metric, kind) in columns.items():
        of_kind = axes[kinds.index(kind)]
        axis = of_kind[metrics.index(metric)]
        if kind and axis is not of_kind[0]:
            axis.sharex(of_kind[0])
        _draw(axis, column, rows)
    return figure


def _draw(axis: Axes, column: str, rows: Sequence[Mapping[str, Estimate]]) -> None:
    is_difference = ":" in column
    if is_difference:
        axis.axvline(0, color="0.6", linestyle="--", linewidth=1)
    for place, row in enumerate(rows):
        if (one := row.get(column)) is None:
            continue
        face = "white" if is_difference and not is_bold(column, one) else "C0"
        axis.hlines(place, one.low, one.high, color="C0", linewidth=1.2)
        axis.plot(one.value, place, "o", color="C0", markerfacecolor=face, markersize=5)
    axis.set_title(column, fontsize=9)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", alpha=0.3)
