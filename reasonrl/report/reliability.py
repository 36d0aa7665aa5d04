"""How far a reward model's probabilities can be believed, as a picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reasonrl.grading.metrics import expected_calibration_error, reliability_bins
from reasonrl.util.atomic import write_bytes

NUM_BINS = 15


def draw_reliability_diagram(
    labels: np.ndarray, probabilities: np.ndarray, path: Path, title: str
) -> None:
    """Draws a PNG: the fraction right over the mean probability of each bin, above a histogram.

    A calibrated model's points lie on the diagonal. The bars between points and diagonal are the
    gaps, whose average by count is the expected calibration error in the title.

    labels: bool (completions,). probabilities: float (completions,).

    Raises UserError where ``metrics.reliability_bins`` does, and if ``path`` can't be written.
    """
    bins = reliability_bins(labels, probabilities, NUM_BINS)
    error = expected_calibration_error(labels, probabilities, NUM_BINS)
    labels, probabilities = np.asarray(labels, dtype=bool), np.asarray(probabilities)
    figure = Figure(figsize=(5, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    reliability, histogram = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))

    reliability.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="calibrated")
    reliability.vlines(
        bins.mean_probability,
        bins.mean_probability,
        bins.fraction_positive,
        color="C3",
        alpha=0.4,
        linewidth=5,
        label="gap",
    )
    reliability.plot(
        bins.mean_probability, bins.fraction_positive, "o-", linewidth=1, label="reward model"
    )
    reliability.set(ylabel="fraction right", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    reliability.set_title(f"{title}\nECE {error:.3f}, {labels.size:,} completions", fontsize=10)

    histogram.hist(
        [probabilities[labels], probabilities[~labels]],
        bins=np.arange(NUM_BINS + 1) / NUM_BINS,
        stacked=True,
        color=["C0", "0.75"],
        label=["right", "wrong"],
    )
    histogram.set(xlabel="probability of being right", ylabel="completions")

    for axes in (reliability, histogram):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_bytes(path, buffer.getvalue())
