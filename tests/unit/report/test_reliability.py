"""The reliability diagram shows the numbers that the metrics give."""

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest

from reasonrl.report.reliability import draw_reliability_diagram
from reasonrl.util.errors import UserError

# Bins of 1/15: 0.02 and 0.04 share the first, 0.5 (one wrong) and 0.9 (one right) have their own.
PROBABILITIES = np.array([0.02, 0.04, 0.5, 0.9])
LABELS = np.array([0, 1, 0, 1], dtype=bool)


def test_the_diagram_shows_bins_counts_and_the_error(tmp_path, figures):
    draw_reliability_diagram(LABELS, PROBABILITIES, tmp_path / "calibration.png", "test problems")
    (figure,) = figures
    reliability, histogram = figure.axes
    _, curve = reliability.lines
    points = [[0.03, 0.5], [0.5, 0.0], [0.9, 1.0]]  # 0.03 = (0.02 + 0.04) / 2, one of the two right
    assert curve.get_xydata() == pytest.approx(np.array(points), abs=1e-12)
    # Gaps 0.47, 0.5, 0.1 by counts 2, 1, 1: (0.94 + 0.5 + 0.1) / 4 = 0.385
    assert reliability.get_title() == "test problems\nECE 0.385, 4 completions"
    right, wrong = (
        {i: bar.get_height() for i, bar in enumerate(bars) if bar.get_height()}
        for bars in histogram.containers
    )
    # Of 15 bars: 15 · 0.04 = 0.6 and 15 · 0.9 = 13.5 are right; 0.3 and 15 · 0.5 = 7.5 are wrong.
    assert (right, wrong) == ({0: 1, 13: 1}, {0: 1, 7: 1})


def test_the_diagram_is_a_whole_png_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "calibration.png"
    draw_reliability_diagram(LABELS, PROBABILITIES, path, "test problems")
    height, width, _ = matplotlib.image.imread(path).shape
    assert (width, height) == (600, 780)  # 5 × 6.5 inches at 120 dots per inch
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("labels", [np.zeros(4, dtype=bool), np.ones(4, dtype=bool)])
def test_completions_of_a_single_class_can_be_drawn(tmp_path, labels):
    draw_reliability_diagram(labels, PROBABILITIES, tmp_path / "calibration.png", "one class")
    assert (tmp_path / "calibration.png").exists()


def test_logits_are_refused_and_leave_no_file(tmp_path):
    with pytest.raises(UserError, match=r"probabilities must lie in \[0, 1\]"):
        draw_reliability_diagram(LABELS, 9 * PROBABILITIES, tmp_path / "calibration.png", "logits")
    assert not list(tmp_path.iterdir())
