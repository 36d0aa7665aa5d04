"""The commands that list runs, compare any of them, and remove them."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from reasonrl.cli.main import main
from reasonrl.cli.run_tables import compare_sweep
from reasonrl.grading.estimates import Estimate
from reasonrl.runs.folder import RunFolder, Status, write_status
from reasonrl.sweep.manifest import Member
from tests.helpers.fake_sweep import make_sweep
from tests.helpers.finished_runs import Answers, finished


def right(*numbers: int) -> Answers:
    return {f"q{i}": (i in numbers, ["7" if i in numbers else "3"] * 2) for i in range(10)}


@pytest.fixture
def made(tmp_path: Path) -> dict[str, RunFolder]:
    """SFT and Expert Iteration from it, of two seeds each, and a shorter Expert Iteration."""
    runs = {}
    for seed in (0, 1):
        sft = [f"seed={seed}", "algorithm=sft"]
        runs[f"sft {seed}"] = finished(tmp_path, *sft, after=right(0, seed), before=right())
        ei = [f"seed={seed}", "algorithm=ei"]
        runs[f"ei {seed}"] = finished(tmp_path, *ei, after=right(*range(7 + seed)))
    runs["short"] = finished(tmp_path, "algorithm=ei", "algorithm.rounds=1", after=right(2))
    return runs


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def end_of(run: RunFolder) -> str:
    return run.path.name.rpartition("-")[2]


def test_runs_are_listed_with_what_differs(
    made: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = said(capsys, "runs", "--outputs", tmp_path, "--format", "json")
    rows = {row["run"]: row for row in json.loads(out)}
    assert rows.keys() == {end_of(run) for run in made.values()}
    short, sft = rows[end_of(made["short"])], rows[end_of(made["sft 1"])]
    assert (short["algorithm"], short["seed"], short["rounds"]) == ("ei", "0", "1")
    assert (sft["algorithm"], sft["seed"], sft["rounds"]) == ("sft", "1", "")
    assert short["maj@1"]["value"] == 0.1
    assert short["maj@1: gain"]["value"] == 0.0
    assert "model" not in short
    table = said(capsys, "runs", "--outputs", tmp_path, "--where", "algorithm=ei")
    assert "all: algorithm=ei, reward=sparse, model=tiny, init=sft, dataset=stories" in " ".join(
        table.split()
    )
    assert end_of(made["short"]) in table
    assert end_of(made["sft 0"]) not in table


def test_where_it_is_narrow_settings_are_words(
    made: dict[str, RunFolder],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    table = said(capsys, "runs", "--outputs", tmp_path)
    assert " settings " in table
    assert all(len(line) <= 70 for line in table.splitlines())
    for wide in ("200", None):  # of a file, which has no width
        monkeypatch.setenv("COLUMNS", wide) if wide else monkeypatch.delenv("COLUMNS")
        table = said(capsys, "runs", "--outputs", tmp_path)
        assert " algorithm " in table
        assert " settings " not in table
    assert len(made) == 5


def test_seeds_go_into_one_row(
    made: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(made) == 5
    out = said(capsys, *("runs", "--outputs", tmp_path, "--seeds", "--format", "json"))
    rows = {(row["algorithm"], row["rounds"]): row for row in json.loads(out)}
    assert rows.keys() == {("ei", "2"), ("ei", "1"), ("sft", "")}
    assert rows["ei", "2"]["seeds"] == "0,1"
    assert rows["ei", "2"]["maj@1"]["value"] == pytest.approx(0.75)
    assert rows["ei", "2"]["maj@1"]["seeds"] == 2
    assert rows["ei", "1"]["maj@1"]["seeds"] == 1


def test_a_seed_without_numbers_is_named(
    made: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(made["ei 1"].path / "evaluation")
    write_status(made["ei 1"], Status.here("failed", 1))
    command = ("runs", "--outputs", tmp_path, "--seeds", "--where", "rounds=2")
    (row,) = json.loads(said(capsys, *command, "--format", "json"))
    assert (row["seeds"], row["state"]) == ("0", "done, seed 1 failed")


def test_no_run_is_no_silence(
    made: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(made) == 5
    command = ("runs", "--outputs", tmp_path, "--where", "state=failed")
    assert said(capsys, *command) == "No run is meant.\n"
    assert json.loads(said(capsys, *command, "--format", "json")) == []


def test_counts_of_a_csv_are_whole(
    made: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [end_of(made[name]) for name in ("sft 0", "ei 0")]
    out = said(capsys, "compare", *names, "--outputs", tmp_path, "--format", "csv")
    first, second = csv.DictReader(out.splitlines())
    assert first["maj@1: against the first n"] == ""
    assert second["maj@1: against the first n"] == second["maj@1 n"] == "10"


def test_any_runs_are_compared_with_the_first(
    made: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [end_of(made[name]) for name in ("sft 0", "ei 0", "short")]
    out = said(capsys, "compare", *names, "--outputs", tmp_path, "--format", "json")
    first, ei, short = json.loads(out)
    assert "maj@1: against the first" not in first
    assert ei["maj@1: against the first"]["value"] == pytest.approx(0.6)
    assert short["maj@1: against the first"]["value"] == 0.0
    table = said(capsys, "compare", *names, "--outputs", tmp_path)
    assert "Differences are paired by problem; bold: p < 0.05 after Holm's correction" in table


def test_a_comparison_is_drawn_by_what_differs(
    made: dict[str, RunFolder],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = {}

    def draw(names: list[str], rows: list[dict[str, Estimate]], path: Path) -> None:
        drawn[path.name] = dict(zip(names, rows, strict=True))

    monkeypatch.setattr("reasonrl.report.intervals.draw_intervals", draw)
    names = [end_of(made[name]) for name in ("sft 0", "ei 0", "short")]
    said(capsys, "compare", *names, "--outputs", tmp_path, "--plot", "x.png")
    said(capsys, "runs", *names[:1], "--outputs", tmp_path, "--plot", "y.png")
    said(capsys, "runs", "--where", "rounds=2", "--outputs", tmp_path, "--plot", "z.png")
    assert list(drawn["x.png"]) == [
        "sft pretrained",
        "ei sparse sft rounds=2",
        "ei sparse sft rounds=1",
    ]
    assert drawn["x.png"]["ei sparse sft rounds=2"][
        "maj@1: against the first"
    ].value == pytest.approx(0.6)
    assert list(drawn["y.png"]) == names[:1]
    assert list(drawn["z.png"]) == ["seed=0", "seed=1"]


def test_the_runs_of_a_sweep_are_compared_by_its_name(
    made: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But not those that only others need."""
    asked = [Member(made[name].path.name, [name]) for name in ("short", "ei 0")]
    sweep = make_sweep(tmp_path, [Member(made["sft 0"].path.name, None), *asked])
    out = said(capsys, "compare", sweep.name, "--outputs", tmp_path, "--format", "json")
    assert [row["run"] for row in json.loads(out)] == [end_of(made[n]) for n in ("short", "ei 0")]
    assert compare_sweep(sweep, ["maj@1"]) == 0
    assert "Differences are paired by problem" in capsys.readouterr().out


@pytest.fixture
def budgets(made: dict[str, RunFolder]) -> None:
    """The shorter run took half the samples and steps of the longer one; SFT's are in both."""
    logs = {
        "sft 0": [{"step": 20}],
        "ei 0": [{"step": 100, "ei/rollouts": 192, "rollout/mean_length": 10.0}],
        "short": [{"step": 40, "ei/rollouts": 96, "rollout/mean_length": 20.0}],
    }
    for name, records in logs.items():
        made[name].metrics.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.usefixtures("budgets")
def test_runs_of_unequal_budgets_are_compared_only_if_asked(
    made: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, ei = made["short"].path.name, made["ei 0"].path.name
    command = ["compare", short, ei, "--outputs", str(tmp_path)]
    assert main(command) == 2
    differ = (
        f"samples: 96 of {short}, 192 of {ei}, 2 times as many; "
        f"steps: 60 of {short}, 120 of {ei}, 2 times as many"
    )
    error = " ".join(capsys.readouterr().err.split())
    assert f"compare must be given runs with equal budgets, to 10%; these differ in {differ}." in (
        error
    )
    assert "add --may-differ samples steps." in error
    assert main([*command, "--may-differ", "steps"]) == 2
    assert "steps" not in capsys.readouterr().err.partition("To compare")[0]
    asked = [*command, "--may-differ", "samples", "steps"]
    assert f"Budgets differ in {differ}." in " ".join(said(capsys, *asked).split())
    (row, other) = json.loads(said(capsys, *asked, "--format", "json"))
    assert [row[name] for name in ("questions", "samples", "steps", "tokens")] == [
        *(12, 96, 60, 1920)
    ]
    assert other["tokens"] == 1920
    assert "1,920" in said(capsys, *asked, "--format", "markdown")
    assert other["maj@1: against the first"]["value"] == pytest.approx(0.6)


@pytest.mark.usefixtures("budgets")
def test_a_sweep_of_unequal_budgets_ends_with_a_table_all_the_same(
    made: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [Member(made[name].path.name, [name]) for name in ("short", "ei 0")]
    assert compare_sweep(make_sweep(tmp_path, asked), ["maj@1"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Budgets differ, so gains aren't compared between runs: samples: 96 of" in out
    assert "against the first" not in out
    assert "gain" in out


def test_two_runs_differ_in_their_settings(
    made: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = [made["ei 0"].path.name, made["short"].path.name]
    lines = said(capsys, "diff", *pair, "--outputs", tmp_path).splitlines()
    settings = [line.split("│")[1:4] for line in lines if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in settings] == [["algorithm.rounds", "2", "1"]]
    out = said(capsys, "diff", pair[0], pair[0], "--outputs", tmp_path)
    assert "They have the same settings." in out


def test_runs_are_removed_after_a_preview(
    made: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sft = made["sft 0"]
    preview = said(capsys, "remove", end_of(sft), "--outputs", tmp_path)
    assert f"{sft.path.name} (done), 0.0 MB" in preview
    assert f"{made['ei 0'].path.name} (done) is made from {sft.path.name}" in preview
    assert preview.endswith("Nothing is removed yet: add --yes.\n")
    assert sft.path.exists()
    out = said(capsys, "remove", "--where", "rounds=1", "--yes", "--outputs", tmp_path)
    assert out.endswith("removed: 1\n")
    assert not made["short"].path.exists()
    assert sft.path.exists()


def test_a_run_that_is_worked_on_is_not_removed(
    made: dict[str, RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made["short"]
    with FileLock(run.path / ".lock"):
        assert main(["remove", end_of(run), "--yes", "--outputs", str(tmp_path)]) == 2
    assert "a process makes it. Cancel it first." in capsys.readouterr().err
    assert run.config.exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["remove"], "remove must be told which runs"),
        (["compare"], "the same problems"),
        (
            ["compare", "--where", "rounds=1"],
            "compare must mean two runs or more, by their names or by --where",
        ),
        (
            ["runs", "nothing"],
            "run=nothing must be a run's folder, or a part of exactly one run's name",
        ),
    ],
)
def test_mistakes_are_said_in_one_line(
    arguments: list[str],
    error: str,
    made: dict[str, RunFolder],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if arguments == ["compare"]:
        finished(tmp_path, "seed=5", "algorithm=sft", after={"other": (True, ["7", "7"])})
    assert made
    assert main([*arguments, "--outputs", str(tmp_path)]) == 2
    assert error in capsys.readouterr().err


def test_none_of_it_needs_torch(made: dict[str, RunFolder], tmp_path: Path) -> None:
    assert made
    code = (
        "import sys; from reasonrl.cli.main import main; "
        f"main(['runs', '--outputs', {str(tmp_path)!r}]); "
        "print({'torch', 'transformers'} & {*sys.modules})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.endswith("set()\n")
