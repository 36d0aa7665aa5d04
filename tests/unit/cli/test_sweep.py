"""python -m reasonrl.sweep, on a made-up sweep."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from reasonrl.cli.sweep import main
from reasonrl.runs.folder import Status, write_status
from reasonrl.sweep import slurm, submit, table
from reasonrl.sweep.manifest import Member, Submitted, Sweep, short_names
from reasonrl.sweep.slurm import SlurmError, SlurmJob
from reasonrl.sweep.table import duration
from tests.helpers.fake_sweep import made_up_sweep
from tests.helpers.slurm_logs import SEGFAULT

NAMES = ["sft-tiny-s0-11111111", "ei-tiny-s0-22222222", "ppo-tiny-s0-33333333"]
BEGUN, ENDED = "2026-11-22T10:05:00+00:00", "2026-11-22T12:12:03+00:00"


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One run done, one failed, one crashed, and one that needs both; Slurm knows of no job."""
    sweep, batch = made_up_sweep(tmp_path, [*NAMES, "rcrl-tiny-s0-44444444"])
    last = replace(sweep.runs[3], needs=NAMES[:2])
    replace(sweep, runs=[*sweep.runs[:3], last]).write()
    states = [("done", None), ("failed", "ValueError: [red]"), ("running", None)]
    for name, (state, error) in zip(NAMES, states, strict=True):
        status = Status(state, 2, "elsewhere", 1, BEGUN, ENDED, error)  # type: ignore[arg-type]
        write_status(sweep.run(name), status)
    batch.log(2).write_text("reasonrl: attempt 1\nKilled\n" + SEGFAULT)
    sweep.run(NAMES[0]).metrics.write_text('{"step": 7, "eval/validation_maj@1": 0.5}\n')
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "queue", list)
    monkeypatch.setattr(slurm, "ended", dict)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def run(outputs: Path, command: str, *arguments: str) -> int:
    return main([command, "--outputs", str(outputs), *arguments])


def test_status_is_a_table(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(outputs, "status") == 1
    log = outputs / "sweeps" / "ei-1a2b3c4d" / "batches" / "0001" / "17_2_0_log.out"
    # 10:05:00 to 12:12:03 is 2 h 7 min
    assert capsys.readouterr().out.splitlines() == [
        "ei-1a2b3c4d",
        "run           state    attempt  progress    took  last metric       why",
        "sft-tiny-s0   done           2  step 7    2h 07m  validation 0.500",
        "ei-tiny-s0    failed         2            2h 07m                    ValueError: [red]",
        "ppo-tiny-s0   crashed        2            2h 07m                    Segmentation fault",
        "rcrl-tiny-s0  blocked                                               needs ei-tiny-s0",
        "",
        "4 runs: 1 done, 1 failed, 1 crashed, 1 blocked",
        "",
        f"ei-tiny-s0: {outputs / 'sweeps' / 'ei-1a2b3c4d' / 'batches' / '0001' / '17_1_0_log.out'}",
        "  (nothing)",
        "",
        f"ppo-tiny-s0: {log}",
        "  reasonrl: attempt 1 of outputs/runs/a",
        "  Segmentation fault",
        "",
    ]


def test_slurms_word_is_shown_where_it_disagrees(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = outputs / "sweeps" / "ei-1a2b3c4d" / "batches" / "0001"
    states = ["RUNNING", "COMPLETING", "RUNNING", "PENDING"]
    jobs = [SlurmJob(f"17_{k}", "17", k, s, "None", 3723, batch) for k, s in enumerate(states)]
    monkeypatch.setattr(slurm, "queue", lambda: jobs)
    run(outputs, "status")
    done, failed, running, blocked = capsys.readouterr().out.splitlines()[2:6]
    assert done.split()[:3] == ["sft-tiny-s0", "done", "RUNNING"]
    assert failed.split()[:3] == ["ei-tiny-s0", "failed", "COMPLETING"]
    assert running.split()[:3] == ["ppo-tiny-s0", "running", "2"]  # no disagreement
    assert "1h 02m" in running  # 3723 s left
    assert blocked.split()[:3] == ["rcrl-tiny-s0", "blocked", "PENDING"]


def test_status_for_programs(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(outputs, "status", "ei-1a2b3c4d", "--json") == 1
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [one["verdict"] for one in runs] == ["done", "failed", "crashed", "blocked"]
    assert (runs[1]["reason"], runs[3]["needs"]) == ("ValueError: [red]", NAMES[:2])
    assert runs[0]["seconds"] == 7623  # 2 * 3600 + 7 * 60 + 3


def test_graph_shows_what_needs_what(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(outputs, "status", "--graph")
    assert capsys.readouterr().out.splitlines() == [
        "sft-tiny-s0 done",
        "ei-tiny-s0 failed",
        "└── rcrl-tiny-s0 blocked (needs also sft-tiny-s0)",
        "ppo-tiny-s0 crashed",
        "4 runs: 1 done, 1 failed, 1 crashed, 1 blocked",
    ]


def test_status_is_0_when_nothing_is_to_be_submitted_again(outputs: Path) -> None:
    sweep = Sweep.read(outputs / "sweeps" / "ei-1a2b3c4d")
    replace(sweep, runs=sweep.runs[:1]).write()
    assert run(outputs, "status") == run(outputs, "status", "--watch") == 0


def test_logs_of_a_run_by_a_part_of_its_name(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = outputs / "sweeps" / "ei-1a2b3c4d" / "batches" / "0001" / "17_2_0_log.out"
    expected = f"==> {log} <==\nSegmentation fault\n"
    for name in ("ppo", "ppo-tiny-s0", NAMES[2], str(outputs / "runs" / NAMES[2])):
        assert run(outputs, "logs", name, "--lines", "1") == 0
        assert capsys.readouterr().out == expected


@pytest.mark.parametrize("named", ["algorithm.rate=2", "rate=2", "s0 rate=2"])
def test_logs_of_a_run_by_what_differs(
    outputs: Path, capsys: pytest.CaptureFixture[str], named: str
) -> None:
    sweep = Sweep.read(outputs / "sweeps" / "ei-1a2b3c4d")
    alike = [Member(f"ei-s0-{rate}", [f"algorithm.rate={rate}"]) for rate in (1, 2)]
    replace(sweep, runs=alike).write()
    for member in alike:
        sweep.run(member.name).path.mkdir(parents=True)
        sweep.run(member.name).log.write_text(f"of {member.name}\n")
    assert run(outputs, "logs", named) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "of ei-s0-2"
    assert run(outputs, "status") == 1
    rows = capsys.readouterr().out.splitlines()[2:4]
    assert [row[:12] for row in rows] == ["ei-s0 rate=1", "ei-s0 rate=2"]


def test_a_sweep_that_is_not_there_names_those_that_are(
    outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(outputs, "status", "absent") == 2
    assert capsys.readouterr().err.endswith("sweeps, which has: ei-1a2b3c4d.\n")


def test_outputs_may_be_in_the_home_folder(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(outputs))
    assert main(["status", "--outputs=~", "--graph"]) == 1


def test_of_a_job_of_several_nodes_the_first_ones_log_comes_first(
    outputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = outputs / "sweeps" / "ei-1a2b3c4d" / "batches" / "0001"
    batch = Submitted.read(folder)
    assert batch is not None
    replace(batch, options={"nodes": 2}).write()
    (folder / "17_2_1_log.out").write_text("there\n")
    followed: list[Path] = []
    monkeypatch.setattr("reasonrl.cli.sweep._follow", followed.append)
    assert run(outputs, "logs", "ppo", "--lines", "1", "--follow") == 0
    first, second = (folder / f"17_2_{node}_log.out" for node in range(2))
    expected = f"==> {first} <==\nSegmentation fault\n==> {second} <==\nthere\n"
    assert capsys.readouterr().out == expected
    assert followed == [first]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["status", "nothing"], "must be a sweep's folder"),
        (
            ["logs", "tiny"],
            r"run=tiny must be .* a part of exactly one .*; it is of 4\. Choose from",
        ),
        (["logs", "sft"], "must have begun; it has printed nothing"),
        (["cancel", "17"], "it is of 0"),
        (["resubmit", "sft"], "must have ended without being done; it is done"),
        (["resubmit", "--state", "timed-out,ill"], "state=ill must be one of failed, crashed, out"),
        (["resubmit", "--memory-gb", "0"], "--memory-gb must be positive; got 0"),
        (["resubmit", "--hours", "-5"], r"--hours must be positive; got -5\.0"),
        (["resubmit", "--hours", "nan"], "--hours must be positive; got nan"),
        (["resubmit", "--nodes", "0"], "--nodes must be positive; got 0"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], error: str, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    assert run(outputs, *arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert re.search(error, message)


def test_no_sweep_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "status") == 2
    assert "there are none" in capsys.readouterr().err


def test_sweeps_are_told_of_from_anywhere(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Jobs are told where their run lies, and work in another folder."""
    told: list[Path] = []
    monkeypatch.setattr(submit, "resubmit", lambda sweep, *_: told.append(sweep.path) or [])
    sweep = outputs / "sweeps" / "ei-1a2b3c4d"
    (outputs / "elsewhere").mkdir()
    monkeypatch.chdir(outputs / "elsewhere")
    assert main(["resubmit", "--outputs", "..", "--yes"]) == 0
    assert main(["resubmit", "../sweeps/ei-1a2b3c4d", "--yes"]) == 0
    monkeypatch.chdir(sweep)
    assert main(["resubmit", ".", "--yes"]) == 0
    assert told == [sweep] * 3
    capsys.readouterr()
    main(["status", "."])
    assert "4 runs: 1 done" in capsys.readouterr().out


def test_watching_outlasts_a_controller_that_is_busy(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: list[Any] = [SlurmError("squeue must answer; got nothing."), []]

    def queue() -> list[SlurmJob]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(slurm, "queue", queue)
    monkeypatch.setattr(table, "WATCH_SECONDS", 0)
    assert run(outputs, "status", "--watch") == 1
    assert answers == []
    assert "4 runs: 1 done, 1 failed" in capsys.readouterr().out
    monkeypatch.setattr(table, "SILENT_SECONDS", -1)
    answers.append(SlurmError("squeue must answer; got nothing."))
    assert run(outputs, "status", "--watch") == 2


def test_resubmit_only_says_what_it_would_do_until_it_gets_yes(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[list[str], dict[str, Any]]] = []

    def resubmit(sweep: Sweep, names: list[str], changes: dict[str, Any]) -> list[str]:
        assert sweep.name == "ei-1a2b3c4d"
        calls.append((names, changes))
        return names

    monkeypatch.setattr(submit, "resubmit", resubmit)
    assert run(outputs, "resubmit") == 0
    assert "3 runs: 1 failed, 1 crashed, 1 blocked" in capsys.readouterr().out
    assert calls == []
    run(outputs, "resubmit", "--yes")
    # rcrl needs ei, which failed; sft, which it needs too, is done
    run(outputs, "resubmit", "rcrl", "--memory-gb", "120", "--hours", "1.5", "--yes")
    run(outputs, "resubmit", "ei-1a2b3c4d", "--state", "crashed", "--partition", "low", "--yes")
    run(outputs, "resubmit", "--state", "timed-out", "--yes")
    others = ["--nodes", "2", "--gpus", "4", "--cpus", "8"]
    run(outputs, "resubmit", "--state", "failed", *others, "--yes")
    rcrl = "rcrl-tiny-s0-44444444"
    assert calls == [
        ([*NAMES[1:], rcrl], {}),
        ([NAMES[1], rcrl], {"mem_gb": 120, "timeout_min": 90}),
        ([NAMES[2]], {"partition": "low"}),
        ([NAMES[1]], {"nodes": 2, "gpus_per_node": 4, "cpus_per_task": 8}),
    ]


def test_resubmit_shows_what_it_submits(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "resubmit", lambda _, names, __: names)
    changed = ["--memory-gb", "120", "--hours", "1.5"]
    assert run(outputs, "resubmit", "--state", "failed,blocked", *changed, "--yes") == 0
    # The crashed one, and the one that is done, are left out.
    assert capsys.readouterr().out.splitlines() == [
        "ei-1a2b3c4d",
        "run           state    attempt    took  why",
        "ei-tiny-s0    failed         2  2h 07m  ValueError: [red]",
        "rcrl-tiny-s0  blocked                   needs ei-tiny-s0",
        "",
        "2 runs: 1 failed, 1 blocked",
        "with mem_gb=120, timeout_min=90",
        "submitted: 2",
    ]


def test_cancel_ends_jobs_that_are_alive(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = outputs / "sweeps" / "ei-1a2b3c4d" / "batches" / "0001"
    jobs = [SlurmJob(f"17_{k}", "17", k, "RUNNING", "None", None, batch) for k in (2, 3)]
    cancelled: list[list[str]] = []
    monkeypatch.setattr(slurm, "queue", lambda: jobs)
    monkeypatch.setattr(slurm, "cancel", lambda ids: cancelled.append(list(ids)))
    run(outputs, "cancel")
    assert cancelled == []
    assert "ppo-tiny-s0: running, job 17_2\nrcrl-tiny-s0: running" in capsys.readouterr().out
    run(outputs, "cancel", "rcrl", "--yes")
    run(outputs, "cancel", "--yes")
    run(outputs, "cancel", "sft", "--yes")
    assert cancelled == [["17_3"], ["17_2", "17_3"]]


def test_cancel_on_this_machine_ends_the_run_and_its_launcher(tmp_path: Path) -> None:
    sweep, batch = made_up_sweep(tmp_path, ["a-1", "b-2"], cluster="local")
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    processes = [subprocess.Popen(sleep, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        launcher, worker = processes
        now = datetime.now(UTC).isoformat(timespec="seconds")
        replace(batch, pid=launcher.pid, submitted=now).write()
        host = socket.gethostname()
        write_status(sweep.run("a-1"), Status("running", 1, host, worker.pid, now, now))
        with FileLock(sweep.run("a-1").path / ".lock"):  # as its process would hold
            assert run(tmp_path, "cancel", "a-1", "--yes") == 0
            assert worker.wait(10) == -signal.SIGTERM
            assert launcher.poll() is None
            assert run(tmp_path, "cancel", "--yes") == 0
            assert launcher.wait(10) == -signal.SIGTERM
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_clean_removes_what_nobody_needs(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = outputs / "runs"
    for name in NAMES:
        (runs / name / "work").mkdir()
        (runs / name / "work" / "x").write_bytes(b"x" * 500_000)
    result = runs / NAMES[0] / "result.json"
    result.write_text("{}")
    abandoned = runs / NAMES[0] / f".result.json~host~1~{'0' * 32}.tmp"
    used, unused, new = (outputs / "code" / name for name in ("1a2b3c4d", "00000000", "new"))
    abandoned.write_text("")
    for code in (used, unused, new):
        code.mkdir(parents=True)
    for old in (abandoned, used, unused):
        os.utime(old, (0, 0))
    finished, failed, crashed = (runs / name / "work" for name in NAMES)

    run(outputs, "clean", "--failed", "--days", "0")
    assert finished.exists()  # nothing yet
    assert "       1.5 MB in all: add --yes" in capsys.readouterr().out
    with FileLock(runs / NAMES[0] / ".lock"):
        run(outputs, "clean", "--yes")
        assert finished.exists()
    assert "left, somebody works in this run" in capsys.readouterr().out
    assert not unused.exists()
    run(outputs, "clean", "--yes")
    assert not finished.exists()
    assert not abandoned.exists()
    assert failed.exists()
    run(outputs, "clean", "--failed", "--days", "99999", "--yes")
    assert failed.exists()
    run(outputs, "clean", "--failed", "--days", "0", "--yes")
    assert not failed.exists()
    assert not crashed.exists()
    assert result.exists()
    assert used.exists()
    assert new.exists()


def test_clean_leaves_runs_that_are_alive(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Submitted.read(outputs / "sweeps" / "ei-1a2b3c4d" / "batches" / "0001")
    assert batch is not None
    job = SlurmJob("17_2", "17", 2, "PENDING", "None", None, batch.path)
    monkeypatch.setattr(slurm, "queue", lambda: [job])
    work = outputs / "runs" / NAMES[2] / "work"
    work.mkdir()
    run(outputs, "clean", "--failed", "--days", "0", "--yes")
    assert work.exists()


def test_short_names_stay_unique() -> None:
    names = ["ei-s0-1234", "ei-s0-5678", "ppo-s0-9999"]
    assert [*short_names(names).values()] == ["ei-s0-1234", "ei-s0-5678", "ppo-s0"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (9.7, "9s"), (423, "7m 03s"), (7500, "2h 05m"), (273_600, "3d 4h")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
