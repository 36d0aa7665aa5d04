"""A run's learning curve as a picture."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reasonrl.atomic import write_bytes
from reasonrl.runs import RunFolder
from reasonrl.tracking import read_metrics

VALIDATION = "eval/validation_maj@1"


def draw_learning_curve(run: RunFolder) -> None:
    """Draws learning_curve.png: the loss over optimizer steps, and validation maj@1 over rollouts.

    The second panel is there for algorithms that sample; its axis counts the samples so far.
    """
    records = read_metrics(run.metrics)
    losses = [
        (record["step"], value)
        for record in records
        for name, value in record.items()
        if name.endswith("/loss")
    ]
    validations = [(r["ei/rollouts"], r[VALIDATION]) for r in records if VALIDATION in r]
    figure = Figure(figsize=(10 if validations else 5.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if validations else 1, squeeze=False)[0]
    axes[0].plot(*zip(*losses, strict=True), linewidth=1) if losses else None
    axes[0].set(xlabel="optimizer step", ylabel="loss per token", title="learning")
    if validations:
        axes[1].plot(*zip(*validations, strict=True), marker="o")
        axes[1].set(xlabel="rollouts", ylabel="maj@1", title="validation, greedy", ylim=(0, 1))
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle(run.path.name, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(run.learning_curve, buffer.getvalue())
