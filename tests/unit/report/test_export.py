"""Tables for papers, spreadsheets and programs."""

from __future__ import annotations

import csv
import io
import json

from reasonrl.grading.estimates import Estimate
from reasonrl.report.export import Cell, export

ROWS: list[dict[str, Cell]] = [
    {"run": "1a2b", "lr_x": "1e-3 & 50%", "maj@1": Estimate(0.471, 0.442, 0.5, 1319)},
    {
        "run": "3c4d",
        "lr_x": "a|b",
        "maj@1": Estimate(0.5, 0.4, 0.6, 500, seeds=3),
        "maj@1: gain": Estimate(0.0625, 0.01, 0.115, 500, 0.03),
    },
]


def test_csv_has_every_digit() -> None:
    first, second = csv.DictReader(io.StringIO(export(ROWS, "csv")))
    assert first["lr_x"] == "1e-3 & 50%"
    assert (first["maj@1"], first["maj@1 low"], first["maj@1 n"]) == ("0.471", "0.442", "1319")
    assert first["maj@1: gain"] == ""
    assert (second["maj@1: gain"], second["maj@1: gain p_value"]) == ("0.0625", "0.03")
    assert second["maj@1 seeds"] == "3"


def test_json_has_what_csv_has() -> None:
    first, second = json.loads(export(ROWS, "json"))
    assert first["maj@1"]["high"] == 0.5
    assert second["maj@1: gain"]["p_value"] == 0.03


def test_markdown() -> None:
    assert export(ROWS, "markdown").splitlines() == [
        "| run   | lr_x       | maj@1              | maj@1: gain          |",
        "|:------|:-----------|:-------------------|:---------------------|",
        "| 1a2b  | 1e-3 & 50% | 47.1% [44.2, 50.0] |                      |",
        "| 3c4d  | a\\|b       | 50.0% [40.0, 60.0] | **6.2% [1.0, 11.5]** |",
    ]


def test_latex_escapes_what_it_must() -> None:
    assert export(ROWS, "latex").splitlines() == [
        r"\begin{tabular}{llrr}",
        r"\toprule",
        r"run & lr\_x & maj@1 & maj@1: gain \\",
        r"\midrule",
        r"1a2b & 1e-3 \& 50\% & 47.1\% [44.2, 50.0] &  \\",
        r"3c4d & a|b & 50.0\% [40.0, 60.0] & \textbf{6.2\% [1.0, 11.5]} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
