"""Sweeps on a real SLURM: what goes wrong is named, and one resubmission makes up for it."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.planner import plan
from reasonrl.runs.folder import read_status
from reasonrl.sweep.manifest import Sweep
from reasonrl.sweep.status import look
from reasonrl.util.progress import Progress
from tests.helpers.configs import ROOT, small_config
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import WAIT, all_done, outcome, short, sweep_of, train, wait_until


def verdicts(sweep: Sweep) -> dict[str, str]:
    return {short(finding.member.name): finding.verdict for finding in look(sweep)}


@pytest.mark.slow
def test_what_goes_wrong_is_named_and_one_resubmission_makes_up_for_it(
    login: Cluster, project: Path, faults: Path, tmp_path: Path
) -> None:
    """Of 14 runs, Expert Iteration from seven policies that are fine-tuned first:"""
    orders = {
        "sft 0": "exception",
        "sft 1": "wait",  # for its node to crash
        "sft 6": "wait",  # for a warning
        "sft 3": "memory",
        "sft 5": "wait",  # to be cancelled
        "ei 2": "segfault",
        "ei 4": "overstay",
        "ei 6": "exit",
    }
    matrix = ["algorithm=ei", "seed=range(0,7)", "hydra.launcher.mem_gb=2"]
    partition(login, "DOWN")
    (faults / "launcher").write_text("2")  # it dies before its second sbatch
    train(project, *matrix, check=False)
    sweep = sweep_of(project)
    names = {short(member.name): member.name for member in sweep.runs}
    assert Counter(verdicts(sweep).values()) == {"queued": 7, "to do": 7}
    train(project, *matrix)
    assert Counter(verdicts(sweep).values()) == {"queued": 7, "waiting": 7}
    for run, order in orders.items():
        (faults / names[run]).write_text(order)
    # From now on nobody reads what is in the project.
    (project / "reasonrl" / "__init__.py").write_text("raise RuntimeError")
    (project / "conf" / "init" / "sft.yaml").write_text("name: broken")
    job = {short(r.member.name): r.job for r in look(sweep)}
    partition(login, "UP")
    login.run("scontrol", "update", f"JobId={job['sft 1']}", "Requeue=0")
    login.run("scontrol", "update", f"JobId={job['ei 4']}", "TimeLimit=1")
    for run in ("sft 1", "sft 5", "sft 6"):
        login.wait((faults / f"{names[run]}.waiting").exists, f"{run} waits", WAIT)
    login.run("scancel", "--signal=USR2", job["sft 6"])  # the array's last
    login.run("scancel", job["sft 5"])
    ended = {
        "sft 0": "failed",
        "ei 0": "blocked",
        "sft 1": "running",
        "ei 1": "waiting",
        "sft 2": "done",
        "ei 2": "crashed",
        "sft 3": "out of memory",
        "ei 3": "blocked",
        "sft 4": "done",
        "ei 4": "timed out",
        "sft 5": "cancelled",
        "ei 5": "blocked",
        "sft 6": "done",
        "ei 6": "failed",
    }
    wait_for(sweep, ended)
    node = login.run("squeue", "-h", "-j", job["sft 1"], "-o", "%N")
    login.crash(node)
    wait_for(sweep, ended := {**ended, "sft 1": "node failure", "ei 1": "blocked"})
    login.restore(node)
    assert verdicts(sweep) == ended
    reasons = {short(r.member.name): r.reason for r in look(sweep)}
    assert reasons["sft 0"] == "RuntimeError: injected"
    assert reasons["ei 0"] == f"needs {names['sft 0']}"
    assert reasons["ei 2"] == "Segmentation fault"
    assert reasons["ei 6"] == "SystemExit: 4"
    assert read_status(sweep.run(names["sft 6"])).attempt == 2

    finished = [sweep.run(names[run]).path for run, verdict in ended.items() if verdict == "done"]
    before = {path: path.stat().st_mtime_ns for run in finished for path in run.rglob("*")}
    resubmit = [sys.executable, "-m", "reasonrl.sweep", "resubmit", str(sweep.path), "--yes"]
    both = [subprocess.Popen(resubmit, cwd=ROOT) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    wait_until(sweep, all_done)
    assert {path: path.stat().st_mtime_ns for run in finished for path in run.rglob("*")} == before
    attempts = {run: read_status(sweep.run(name)).attempt for run, name in names.items()}
    assert attempts == dict.fromkeys(names, 1) | dict.fromkeys(orders, 2)

    for seed in range(7):
        undisturbed = small_config(tmp_path / "undisturbed", f"seed={seed}")
        run = ensure_done(plan(undisturbed), Progress())
        assert outcome(sweep.run(run.path.name)) == outcome(run)


def test_a_run_gives_way_to_a_more_important_job_and_goes_on_after_it(
    login: Cluster, project: Path, faults: Path, tmp_path: Path
) -> None:
    undisturbed = ensure_done(
        plan(small_config(tmp_path / "undisturbed", "algorithm=sft")), Progress()
    )
    name = undisturbed.path.name
    (faults / name).write_text("wait")
    less = ["hydra.launcher.partition=low", "hydra.launcher.mem_gb=2"]
    train(project, "algorithm=sft", *less)
    sweep = sweep_of(project)
    login.wait((faults / f"{name}.waiting").exists, "it has begun", WAIT)
    everything = ["--partition=high", "--nodes=3", "--exclusive"]
    more = login.submit(*everything, script="sleep 3")
    login.wait_for(more, "RUNNING", WAIT)
    assert verdicts(sweep) == {"sft 0": "preempted"}
    wait_until(sweep, all_done)
    assert read_status(sweep.run(name)).attempt == 2
    assert outcome(sweep.run(name)) == outcome(undisturbed)


@pytest.mark.usefixtures("login")
def test_a_launcher_that_waits_tells_what_failed(project: Path, faults: Path) -> None:
    waiting = ["algorithm=sft", "hydra.launcher.wait=true", "hydra.launcher.mem_gb=2"]
    name = plan(small_config(project, "algorithm=sft")).run.path.name
    (faults / name).write_text("exception")
    shown = train(project, *waiting, check=False)
    assert "RuntimeError: injected" in shown
    assert "must be done; 1 of its 1 runs aren't" in shown
    assert "1 run: 1 done" in train(project, *waiting)


def wait_for(sweep: Sweep, expected: dict[str, str]) -> None:
    wait_until(sweep, lambda found: {short(name): v for name, v in found.items()} == expected)


def partition(cluster: Cluster, state: str) -> None:
    """DOWN: jobs wait; UP: they begin."""
    cluster.run("scontrol", "update", "PartitionName=high", f"State={state}")
