"""The table at the end of a sweep: which runs are in it, under which names, with which gains."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from reasonrl.evaluation.summary import Evaluation
from reasonrl.grading.estimates import Estimate
from reasonrl.pipeline import comparison
from reasonrl.pipeline.comparison import compare, show_comparison
from reasonrl.pipeline.results import Result
from reasonrl.report.budget import Budget
from reasonrl.report.tables import comparison_table
from reasonrl.runs.folder import RunFolder
from reasonrl.types import SavedPolicy
from reasonrl.util.progress import output

FOUR = ("p0", "p1", "p2", "p3")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "width", 120)


def evaluation(
    greedy: Sequence[float], some: Sequence[float] | None = None, ids: Sequence[str] = FOUR
) -> Evaluation:
    """Right or not at once, and among four samples."""
    among = greedy if some is None else some
    scores = {"maj@1": greedy, "maj@4": greedy, "pass@1": greedy, "pass@2": among, "pass@4": among}
    return Evaluation(tuple(ids), {name: np.array(s, float) for name, s in scores.items()}, {})


POLICY = SavedPolicy("policy", few_shot=False)
START = evaluation([1, 0, 0, 0])
EI = Result(POLICY, START, evaluation([1, 1, 0, 0], [1, 1, 1, 0]), None)
RCRL = Result(POLICY, START, evaluation([1, 1, 1, 0], [1, 1, 1, 1]), evaluation([0, 0, 0, 0]))


def planned(result: Result | None, run: RunFolder) -> Any:
    algorithm = SimpleNamespace(makes="policy" if result else "reward model")
    config = SimpleNamespace(algorithm=algorithm, protocol="test-n4-k4-t0.7")
    return SimpleNamespace(config=config, run=run, result=result)


@pytest.fixture
def shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Mapping[tuple[str, ...], Any]], str]:
    """What is printed of runs with these results; None: of a run that makes no policy.

    The folder of a run is named by its overrides.
    """
    monkeypatch.setattr(comparison, "result_of", lambda planned, _: planned.result)

    def show(results: Mapping[tuple[str, ...], Any]) -> str:
        plans = {
            o: planned(result, RunFolder(tmp_path / " ".join(o))) for o, result in results.items()
        }
        with output.capture() as printed:
            show_comparison(plans)
        return printed.get()

    return show


def values(row: Mapping[str, Estimate]) -> dict[str, float]:
    return {name: estimate.value for name, estimate in row.items()}


# --- what is compared


def test_each_run_is_compared_with_its_start_and_with_the_first() -> None:
    first, second = compare({("algorithm=ei",): EI, ("algorithm=rcrl",): RCRL})
    # 2 of 4 right, where 1 was; 3 of 4 in four samples, where 1 was.
    assert values(first) == {
        "maj@1": 0.5,
        "gain on: its start": 0.25,
        "pass@4: gain on start": 0.5,
    }
    # 3 of 4, where 1 was, where the first run has 2, and where the worst label gives 0.
    assert values(second) == {
        "maj@1": 0.75,
        "gain on: its start": 0.5,
        "gain on: the first run": 0.25,
        "pass@4: gain on start": 0.75,
        "conditioning: gap": 0.75,
    }


def test_gains_are_paired() -> None:
    # One more is right, two others are not: +1, -1 and 0 in a mean of -1/4.
    moved = Result(POLICY, evaluation([1, 1, 0, 0]), evaluation([0, 0, 1, 0]), None)
    (row,) = compare({("seed=0",): moved})
    gain = row["gain on: its start"]
    assert gain.value == -0.25
    # Of four draws from -1, -1, 1, 0 all are -1 in 1/16 of cases, more than a fortieth. All are 1
    # in 1/256 and all but a 0 in 4/256, together less than a fortieth; 2/4 is next.
    assert (gain.low, gain.high) == (-1.0, 0.5)


@pytest.mark.parametrize("ids", [("q0", "q1", "q2", "q3"), FOUR[::-1], FOUR[:3]])
def test_runs_of_other_problems_are_not_compared_with_the_first(ids: Sequence[str]) -> None:
    scores = [1, 1, 1, 0][: len(ids)]
    of_others = evaluation(scores, ids=ids)
    first, second = compare(
        {("dataset=stories",): EI, ("dataset=svamp",): Result(POLICY, of_others, of_others, None)}
    )
    assert {*second} == {*first} == {"maj@1", "gain on: its start", "pass@4: gain on start"}


def test_without_samples_the_single_one_is_compared() -> None:
    one = Evaluation(FOUR, {name: np.array([1.0, 0, 0, 0]) for name in ("maj@1", "pass@1")}, {})
    (row,) = compare({("seed=0",): Result(POLICY, one, one, None)})
    assert [*row] == ["maj@1", "gain on: its start", "pass@1: gain on start"]


# --- what is printed


def test_a_sweep_has_a_row_for_each_run(shown: Any) -> None:
    table = shown({("algorithm=rcrl", "seed=0"): RCRL, ("algorithm=ei", "seed=0"): EI})
    assert "comparison, by maj@1 on test-n4-k4-t0.7; gains are paired" in table
    assert table.index("algorithm=rcrl") < table.index("algorithm=ei")  # as they were asked for
    assert "seed=0" not in table
    assert "conditioning" in table


def test_budgets_are_stated_and_unequal_ones_are_not_compared(
    shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = {
        "algorithm=ei": Budget(1000, 16_000, 1250, 480_000),
        "algorithm=rcrl": Budget(8000, 16_000, 1250, 480_000),
    }
    monkeypatch.setattr(comparison, "budget_of", lambda run, _: budgets[run.path.name])
    table = shown({("algorithm=ei",): EI, ("algorithm=rcrl",): RCRL})
    (line,) = [line for line in table.splitlines() if "8,000" in line and "│" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        *("algorithm=rcrl", "8,000", "16,000", "1,250", "480,000")
    ]
    assert "the first run" not in table
    assert (
        "Budgets differ, so gains aren't compared between runs: questions: 1,000 of algorithm=ei, "
        "8,000 of algorithm=rcrl, 8 times as many"
    ) in " ".join(table.split())
    budgets["algorithm=rcrl"] = budgets["algorithm=ei"]
    table = shown({("algorithm=ei",): EI, ("algorithm=rcrl",): RCRL})
    assert "the first run" in table
    assert "Budgets differ" not in table


def test_nobody_is_compared_with_himself(shown: Any) -> None:
    assert shown({}) == ""
    assert shown({("algorithm=ei",): EI}) == ""
    assert shown({("algorithm=ei",): EI, ("algorithm=orm",): None}) == ""


def test_what_makes_no_policy_is_left_out(shown: Any) -> None:
    table = shown({("algorithm=ei",): EI, ("algorithm=orm",): None, ("algorithm=rcrl",): RCRL})
    assert "algorithm=ei" in table
    assert "algorithm=rcrl" in table
    assert "orm" not in table


def test_of_hundreds_of_runs_no_table_is_printed(shown: Any) -> None:
    assert shown({(f"seed={seed}",): EI for seed in range(40)}) != ""
    assert shown({(f"seed={seed}",): EI for seed in range(41)}) == ""


def test_a_line_says_which_runs_were_made_on_other_hardware(shown: Any, tmp_path: Path) -> None:
    results = {(f"algorithm={name}", "seed=0"): EI for name in ("ei", "ppo", "rcrl", "old")}
    for name, threads in (("ei", 1), ("ppo", 2), ("rcrl", 1)):
        run = RunFolder(tmp_path / f"algorithm={name} seed=0")
        run.path.mkdir()
        attempt = {"threads": threads, "gpu": None, "cpu": "Xeon"}
        run.provenance.write_text(json.dumps({"attempts": [attempt]}))
    _, _, line = shown(results).partition("These runs ")
    assert " ".join(line.split()) == (
        "were made with different threads (1: algorithm=ei, algorithm=rcrl; 2: algorithm=ppo): "
        "the last bits, and so the samples, may differ for that alone."
    )


def test_a_line_says_which_runs_were_made_with_other_code(shown: Any, tmp_path: Path) -> None:
    results = {(f"algorithm={name}",): EI for name in ("ei", "ppo", "rcrl")}
    for name, changes, torch in (("ei", None, "2.9"), ("ppo", "b" * 64, "2.9"), ("rcrl", "", "3")):
        run = RunFolder(tmp_path / f"algorithm={name}")
        run.path.mkdir()
        attempt = {"commit": "a" * 40, "diff_sha256": changes, "packages": {"torch": torch}}
        run.provenance.write_text(json.dumps({"attempts": [attempt]}))
    _, _, line = shown(results).partition("These runs ")
    assert " ".join(line.split()) == (
        "were made with different code (aaaaaaaa: algorithm=ei, algorithm=rcrl; aaaaaaaa+bbbbbbbb: "
        "algorithm=ppo), torch (2.9: algorithm=ei, algorithm=ppo; 3: algorithm=rcrl): what they do "
        "may differ for that alone."
    )


def test_runs_by_several_protocols_are_named_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "result_of", lambda planned, _: planned.result)
    plans = {}
    for k in (4, 96):
        said = (f"evaluation.num_samples_per_prompt={k}",)
        plans[said] = planned(EI, RunFolder(tmp_path / str(k)))
        plans[said].config.protocol = f"test-n4-k{k}-t0.7"
    with output.capture() as printed:
        show_comparison(plans)
    table = " ".join(printed.get().split())
    assert table.startswith("comparison, by maj@1 on test-n4-k4-t0.7, test-n4-k96-t0.7;")
    rows = [line.split("│")[1].strip() for line in printed.get().splitlines() if "│" in line]
    assert [row for row in rows if row] == [
        "num_samples_per_prompt=4",
        "test-n4-k4-t0.7",
        "num_samples_per_prompt=96",
        "test-n4-k96-t0.7",
    ]


def test_of_equal_or_unknown_hardware_nothing_is_said(shown: Any) -> None:
    assert "These runs" not in shown({("seed=0",): EI, ("seed=1",): EI})


# --- the table


def cells(rows: Mapping[str, Mapping[str, Estimate]]) -> list[list[str]]:
    """The lines of the table's text, by cell."""
    plain = Console(width=200)
    with plain.capture() as shown:
        plain.print(comparison_table("title", rows))
    lines = shown.get().replace("┃", "│").splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]


def test_a_table_has_the_columns_of_all_its_rows_and_blanks_where_one_lacks_them() -> None:
    accuracy, gain = Estimate(0.5, 0.25, 0.75, 4), Estimate(-0.125, -0.5, 0.25, 4)
    table = cells({"a=[x]": {"maj@1": accuracy}, "b": {"maj@1": accuracy, "gain on: it": gain}})
    assert table == [
        ["", "", "gain on"],
        ["run", "maj@1", "it"],
        ["a=[x]", "50.0%", ""],
        ["", "[25.0, 75.0]", ""],
        ["b", "50.0%", "-12.5%"],
        ["", "[25.0, 75.0]", "[-50.0, 25.0]"],
    ]


@pytest.mark.parametrize(
    ("column", "estimate", "bold"),
    [
        ("gain on: it", Estimate(0.25, 0.125, 0.5, 4), True),
        ("gain on: it", Estimate(-0.25, -0.5, -0.125, 4), True),
        ("gain on: it", Estimate(0.25, 0.0, 0.5, 4), False),
        ("maj@1", Estimate(0.25, 0.125, 0.5, 4), False),  # an accuracy, no gain
    ],
)
def test_what_is_established_is_bold(column: str, estimate: Estimate, bold: bool) -> None:
    colored = Console(width=200, force_terminal=True, color_system="standard")
    with colored.capture() as shown:
        colored.print(comparison_table("title", {"a": {column: estimate}}))
    row = shown.get().splitlines()[-3]  # the interval stands below, and then the table's edge
    assert ("\x1b[1m" in row) == bold


@pytest.mark.parametrize("width", [80, 100])
def test_in_a_narrow_place_all_of_a_table_can_be_read(width: int) -> None:
    wide = Estimate(-0.304, -0.503, -0.102, 500)
    columns = ("maj@1", "gain on: its start", "pass@16: gain on start", "conditioning: gap", "a: b")
    rows = {name: dict.fromkeys(columns, wide) for name in ("solution_ratio=0.3333", "x=1\ny=2")}
    narrow = Console(width=width, record=True, file=io.StringIO())
    narrow.print(comparison_table("", rows))
    shown = narrow.export_text()
    assert shown.count("-30.4%") == shown.count("[-50.3,") == shown.count("-10.2]") == 10
    assert "solution_ratio=0.3333" in shown
    assert "…" not in shown
