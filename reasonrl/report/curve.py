"""A run's learning curve as a picture."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reasonrl.runs.folder import RunFolder
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.util.atomic import write_bytes

VALIDATION = "eval/validation_maj@1"
BY_LABEL = "rcrl/maj@1_"

Records = Sequence[Mapping[str, Any]]


def draw_learning_curve(run: RunFolder) -> None:
    """Draws learning_curve.png.

    The loss over optimizer steps, and validation maj@1: of an algorithm that samples over rollouts,
    of RCRL over what it is asked for. Of PPO what its iterations log, over rollouts. Rollouts are
    all those sampled so far.
    """
    records = read_metrics(run.metrics)
    of_ppo = any("ppo/rollouts" in record for record in records)
    figure = _ppo_figure(records) if of_ppo else _loss_figure(records)
    figure.suptitle(run.path.name, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(run.learning_curve, buffer.getvalue())


def over_rollouts(records: Records, name: str) -> list[tuple[int, float]]:
    """(rollouts sampled so far, value) of a PPO metric, oldest first.

    A record without ``ppo/rollouts`` belongs to the one before it; the values of several optimizer
    steps on the same rollouts are averaged. Null is nan, and so is a mean with it: a gap.
    """
    values = defaultdict(list)
    rollouts = 0
    for record in records:
        rollouts = record.get("ppo/rollouts", rollouts)
        if name in record:
            values[rollouts].append(math.nan if record[name] is None else record[name])
    return [(rollouts, fmean(of_rollouts)) for rollouts, of_rollouts in values.items()]


def _loss_figure(records: Records) -> Figure:
    losses = [
        (record["step"], value)
        for record in records
        for name, value in record.items()
        if name.endswith("/loss")
    ]
    validations = [(r["ei/rollouts"], r[VALIDATION]) for r in records if "ei/rollouts" in r]
    by_label = [
        (name.removeprefix(BY_LABEL), value)
        for record in records
        for name, value in record.items()
        if name.startswith(BY_LABEL)
    ]
    wide = bool(validations or by_label)
    figure, axes = _figure(1, 2 if wide else 1, (10 if wide else 5.5, 4))
    axes[0].plot(*zip(*losses, strict=True), linewidth=1) if losses else None
    axes[0].set(xlabel="optimizer step", ylabel="loss per token", title="learning")
    if validations:
        axes[1].plot(*zip(*validations, strict=True), marker="o")
        axes[1].set(xlabel="rollouts", ylabel="maj@1", title="validation, greedy", ylim=(0, 1))
    if by_label:
        axes[1].plot(*zip(*by_label, strict=True), marker="o")
        axes[1].set(xlabel="asked for", ylabel="maj@1", title="validation, greedy", ylim=(0, 1))
    return figure


def _ppo_figure(records: Records) -> Figure:
    figure, axes = _figure(2, 3, (14, 7))
    accuracy, kl, entropy, critic, updates, completions = axes

    def plot(axis: Axes, name: str, color: str = "C0", marker: str = ".", label: str = "") -> None:
        """With markers: a point between gaps, or of a single iteration, has no line."""
        x, y = zip(*over_rollouts(records, name) or [(0, math.nan)], strict=True)
        axis.plot(x, y, color=color, marker=marker, markersize=4, linewidth=1, label=label)

    def plot_right(axis: Axes, name: str, label: str) -> Axes:
        """On an axis of its own; either axis is in the colour of its line."""
        right = axis.twinx()
        plot(right, name, "C1", "x")
        right.set_ylabel(label, color="C1")
        axis.yaxis.label.set_color("C0")
        return right

    plot(accuracy, "rollout/correct", label="training questions, sampled")
    plot(accuracy, VALIDATION, "C1", "o", label="validation, greedy")
    accuracy.set(title="accuracy", ylabel="share right", ylim=(0, 1))
    accuracy.legend(fontsize=8)

    plot(kl, "ppo/kl")
    kl.set(title="KL to the reference", ylabel="nats per completion")

    plot(entropy, "ppo/entropy")
    entropy.set(title="entropy", ylabel="nats per token")

    # How far below 0 a critic is matters little, and would flatten the rest.
    plot(critic, "ppo/explained_variance")
    critic.set(title="critic", ylabel="explained variance", ylim=(-1, 1))

    plot(updates, "ppo/clip_fraction")
    updates.set(title="updates", ylabel="clip fraction")
    divergence = plot_right(updates, "ppo/approx_kl", "approximate KL, nats per token")

    plot(completions, "rollout/mean_length")
    completions.set(title="completions", ylabel="mean length in tokens")
    plot_right(completions, "rollout/finish_length", "share cut off").set_ylim(-0.05, 1.05)

    for axis in (kl, entropy, critic, updates, divergence, completions):
        axis.axhline(0, color="0.6", linestyle="--", linewidth=1)
    for axis in axes:
        axis.set_xlabel("rollouts")
        axis.set_xlim(accuracy.get_xlim())
    return figure


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure, axes
