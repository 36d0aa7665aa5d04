"""The picture of several runs' estimates."""

from __future__ import annotations

from pathlib import Path

import pytest

from reasonrl.grading.estimates import Estimate
from reasonrl.report.intervals import draw_intervals, figure_of
from reasonrl.util.errors import UserError

NAMES = ["ei", "ppo"]
GAIN = "maj@1: against the first"
ROWS = [
    {"maj@1": Estimate(0.4, 0.3, 0.5, 10), "pass@2": Estimate(0.6, 0.5, 0.7, 10)},
    {
        "maj@1": Estimate(0.3, 0.2, 0.4, 10),
        "pass@2": Estimate(0.4, 0.3, 0.5, 10),
        GAIN: Estimate(-0.1, -0.3, 0.1, 10, p_value=0.3),
        GAIN.replace("maj@1", "pass@2"): Estimate(-0.2, -0.3, -0.1, 10, p_value=0.01),
    },
]


def test_each_estimate_is_a_mark_in_its_interval_and_filled_where_it_is_established() -> None:
    values, pass_values, gains, pass_gains = figure_of(NAMES, ROWS).axes
    assert [axis.get_title() for axis in (values, pass_values, gains)] == ["maj@1", "pass@2", GAIN]
    assert [label.get_text() for label in values.get_yticklabels()] == NAMES
    assert [c.get_segments()[0].tolist() for c in values.collections] == [
        [[0.3, 0], [0.5, 0]],
        [[0.2, 1], [0.4, 1]],
    ]
    assert [mark.get_xydata().tolist() for mark in values.lines] == [[[0.4, 0]], [[0.3, 1]]]
    for axis, x, face in ((gains, -0.1, "white"), (pass_gains, -0.2, "C0")):
        zero, mark = axis.lines
        assert zero.get_xdata() == [0, 0]
        assert mark.get_xydata().tolist() == [[x, 1]]
        assert mark.get_markerfacecolor() == face
    assert gains.get_xlim() == pass_gains.get_xlim() != values.get_xlim()
    low, high = sorted(values.get_ylim())
    assert low < 0 < 1 < high
    assert values.yaxis_inverted()


@pytest.mark.parametrize(
    ("ending", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_the_ending_chooses_the_format(tmp_path: Path, ending: str, begins: bytes) -> None:
    path = tmp_path / f"new/x.{ending}"
    draw_intervals(NAMES, ROWS, path)
    assert path.read_bytes().startswith(begins)


def test_runs_without_estimates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must have runs that are evaluated; got none"):
        draw_intervals(NAMES, [{}, {}], tmp_path / "x.png")


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.jpeg must end in one of .png, .svg, .pdf. Rename it."):
        draw_intervals(NAMES, ROWS, tmp_path / "x.jpeg")
    assert not list(tmp_path.iterdir())
