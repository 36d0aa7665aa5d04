"""Tables of runs at several widths: nothing is cut."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from reasonrl.grading.estimates import Estimate
from reasonrl.report.export import Cell
from reasonrl.report.fitting import fitting_table

METRICS = ("maj@1", "maj@16", "pass@1", "pass@16")


def row(name: str, algorithm: str, *, first: bool) -> dict[str, Cell]:
    value = {m: Estimate(0.421, 0.379, 0.462, 500) for m in METRICS}
    gains = {
        f"{m}: against the first": Estimate(
            -0.012, -0.049, 0.025, 500, 0.5 if m[0] == "m" else 0.01
        )
        for m in METRICS
    }
    named: dict[str, Cell] = {"run": name, "algorithm": algorithm, "seeds": "0,1,2"}
    return {**named, "samples": 16_000, **value, **({} if first else gains)}


ROWS = [row("306a1a21", "reinforce", first=True), row("d615810a", "dapo", first=False)]


def shown(width: int, *, styled: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=styled, highlight=False)
    console.print(fitting_table(ROWS, console))
    return file.getvalue()


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120, 160, 200, 1000])
def test_every_number_is_whole_at_any_width(width: int) -> None:
    text = shown(width)
    assert max(map(len, text.splitlines())) <= width
    assert len(re.findall(r"\[37\.9, 46\.2\]", text)) == 8
    assert len(re.findall(r"\[-4\.9, 2\.5\]", text)) == 4
    assert len(re.findall(r"\b(?:reinforce|dapo)\b", text)) == 2
    assert len(re.findall(r"16,000", text)) == 2


def test_wide_each_setting_has_a_column_and_narrow_each_metric_a_line() -> None:
    head = shown(1000).splitlines()[2].split()
    assert head[:5] == ["run", "algorithm", "seeds", "samples", "maj@1"]
    head, _, first = shown(80).splitlines()[1:4]
    assert re.split("  +", head.strip()) == [
        *("run", "settings", "metric", "value", "against the first")
    ]
    assert first.split() == ["306a1a21", "reinforce", "maj@1", "42.1%", "[37.9,", "46.2]"]
    assert shown(40).splitlines()[1].strip() == "runs"


@pytest.mark.parametrize("width", [80, 1000])
def test_what_is_established_is_bold(width: int) -> None:
    bold = re.findall(r"\x1b\[1m *(-1\.2%)", shown(width, styled=True))
    assert len(bold) == 2  # pass@1 and pass@16 of the second run
