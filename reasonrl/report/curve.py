"""A run's learning curve as a picture."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import filter as filter_names
from itertools import cycle
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reasonrl.config.algorithm.base import Panel, Panels
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.util.atomic import write_bytes

# The width of a picture in inches, by the number of charts side by side, which is 3 at most.
WIDTH = {1: 5.5, 2: 10.0, 3: 14.0}
XLABEL = {"step": "optimizer step", "rollouts": "rollouts", "label": "asked for"}

Records = Sequence[Mapping[str, Any]]
Points = Sequence[tuple[Any, float]]


def draw_learning_curve(run: RunFolder, panels: Panels) -> None:
    """Draws learning_curve.png with the charts that the run's algorithm declares, if there are any.

    Those of metrics that the run doesn't log, such as a value function's where there is none, are
    left out. Charts over the same quantity have the same limits of x, so that they can be compared
    where one stands below the other.
    """
    if not panels.charts:
        return
    records = read_metrics(run.metrics)
    charts = [panel for panel in panels.charts if _is_logged(panel, records)] or panels.charts
    figure, axes = _figure(len(charts))
    first: dict[str, Axes] = {}
    for axis, panel in zip(axes, charts, strict=True):
        if panel.over in first:
            axis.sharex(first[panel.over])
        first.setdefault(panel.over, axis)
        _draw(axis, panel, records, panels.rollouts)
    figure.suptitle(run.path.name, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(run.learning_curve, buffer.getvalue())


def over_rollouts(records: Records, name: str, rollouts: str) -> list[tuple[int, float]]:
    """The points (rollouts sampled so far, value) of a metric, oldest first.

    ``rollouts`` names the metric that counts rollouts. A record without it belongs to the last one
    that has it, and the values of several optimizer steps on the same rollouts are averaged. A null
    becomes nan, and so does an average with one in it; nan is drawn as a gap.
    """
    values = defaultdict(list)
    sampled = 0
    for record in records:
        sampled = record.get(rollouts, sampled)
        if name in record:
            values[sampled].append(_number(record[name]))
    return [(sampled, fmean(of_rollouts)) for sampled, of_rollouts in values.items()]


def over_steps(records: Records, name: str) -> list[tuple[int, float]]:
    """The points (optimizer step, value) of a metric, oldest first; a null becomes nan."""
    return [(record["step"], _number(record[name])) for record in records if name in record]


def over_labels(records: Records, pattern: str) -> list[tuple[str, float]]:
    """The points (label, value) of the metrics whose names match the pattern.

    The pattern ends in ``*``, which stands for the label.
    """
    prefix = pattern.removesuffix("*")
    return [
        (name.removeprefix(prefix), _number(value))
        for record in records
        for name, value in record.items()
        if name.startswith(prefix)
    ]


def _is_logged(panel: Panel, records: Records) -> bool:
    logged = {name for record in records for name in record}
    names = [*panel.lines, *(panel.right or ())[:1]]
    return any(filter_names(logged, name) for name in names)


def _draw(axis: Axes, panel: Panel, records: Records, rollouts: str | None) -> None:
    def plot(on: Axes, name: str, color: str, marker: str, label: str = "") -> None:
        points: Points
        if panel.over == "rollouts":
            assert rollouts is not None  # as Panels has checked
            points = over_rollouts(records, name, rollouts)
        elif panel.over == "step":
            points = over_steps(records, name)
        else:
            points = over_labels(records, name)
        if points:
            x, y = zip(*points, strict=True)
            on.plot(x, y, color=color, marker=marker, markersize=4, linewidth=1, label=label)

    markers = cycle(panel.markers or [""])
    for number, (name, label) in enumerate(panel.lines.items()):
        plot(axis, name, f"C{number}", next(markers), label)
    axis.set(title=panel.title, xlabel=XLABEL[panel.over], ylabel=panel.ylabel)
    if panel.ylim is not None:
        axis.set_ylim(panel.ylim)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
    if panel.zero:
        _mark_zero(axis)
    if panel.right is not None:
        name, ylabel = panel.right
        right = axis.twinx()
        plot(right, name, "C1", "x")
        # Each axis has the colour of its line.
        axis.yaxis.label.set_color("C0")
        right.set_ylabel(ylabel, color="C1")
        if panel.right_ylim is not None:
            right.set_ylim(panel.right_ylim)
        elif panel.zero:
            _mark_zero(right)


def _mark_zero(axis: Axes) -> None:
    axis.axhline(0, color="0.6", linestyle="--", linewidth=1)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _figure(charts: int) -> tuple[Figure, list[Axes]]:
    columns = min(charts, max(WIDTH))
    rows = math.ceil(charts / columns)
    size = (WIDTH[columns], 4.0 if rows == 1 else 3.5 * rows)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[charts:]:
        unused.remove()
    for axis in axes[:charts]:
        axis.grid(alpha=0.3)
    return figure, axes[:charts]
