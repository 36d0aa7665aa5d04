"""Sweeps on a real SLURM: what goes wrong is named, and one resubmission makes up for it."""

import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from reasonrl.pipeline import obtain, plan
from reasonrl.progress import Progress
from reasonrl.runs import RunFolder, read_status
from reasonrl.sweep.manifest import Sweep
from reasonrl.sweep.status import look
from reasonrl.tracking import read_metrics
from tests.conftest import ROOT, SMALL, small_config
from tests.slurm.cluster import Cluster

FAULTS = Path(__file__).parent / "faults"
SMALL_RUNS = [
    *SMALL,
    "runtime.checkpoint_seconds=0",  # after each step
    "algorithm.batch_size=4",
]
MINUTE = 60.0


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the code, to be edited while jobs wait."""
    folder = tmp_path / "project"
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("reasonrl", "hydra_plugins", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=skip)
    shutil.copy(ROOT / "train.py", folder)
    (folder / "models").symlink_to(ROOT / "models")
    return folder


@pytest.fixture
def on_cluster(slurm: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    """Commands, and what the jobs inherit, as in a shell on the cluster's login node."""
    faults = tmp_path / "faults"
    faults.mkdir()
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, slurm.env[name])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("REASONRL_FAULTS", str(faults))
    return slurm


def train(project: Path, *overrides: str, check: bool = True) -> str:
    """What ``python train.py -m …`` prints."""
    command = [sys.executable, "train.py", "-m", "runtime.outputs=outputs", *SMALL_RUNS, *overrides]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def sweep_of(project: Path) -> Sweep:
    (manifest,) = (project / "outputs" / "sweeps").glob("*/sweep.json")
    return Sweep.read(manifest.parent)


def verdicts(sweep: Sweep) -> dict[str, str]:
    """By ``sft 0``."""
    return {short(report.member.name): report.verdict for report in look(sweep)}


def short(name: str) -> str:
    algorithm, *_, seed, _ = name.split("-")
    return f"{algorithm} {seed[1:]}"


def wait_until(sweep: Sweep, done: dict[str, str] | set[str], seconds: float = 4 * MINUTE) -> None:
    """Until the runs have these verdicts, or all have one of these."""
    end = time.monotonic() + seconds
    while True:
        now = verdicts(sweep)
        if {*now.values()} <= done if isinstance(done, set) else now.items() >= done.items():
            return
        assert time.monotonic() < end, now
        time.sleep(1)


def outcome(run: RunFolder) -> dict[str, object]:
    """What a run has come to, without times."""
    files = [*run.evaluation.rglob("metrics.json"), *run.path.glob("policy/*.safetensors")]
    found: dict[str, object] = {str(f.relative_to(run.path)): f.read_bytes() for f in files}
    assert len(found) >= 2
    lines = read_metrics(run.metrics)
    found["metrics"] = [
        {key: value for key, value in line.items() if not key.startswith("time/")} for line in lines
    ]
    return found


@pytest.mark.slow
def test_what_goes_wrong_is_named_and_one_resubmission_makes_up_for_it(
    on_cluster: Cluster, project: Path, tmp_path: Path
) -> None:
    """Of 14 runs, Expert Iteration from seven policies that are fine-tuned first:"""
    faults = {
        "sft 0": "exception",
        "sft 1": "wait",  # for its node to crash
        "sft 2": "wait",  # for a warning
        "sft 3": "memory",
        "sft 5": "wait",  # to be cancelled
        "ei 2": "segfault",
        "ei 4": "overstay",
        "ei 6": "exit",
    }
    matrix = ["algorithm=ei", "seed=range(0,7)", "hydra.launcher.mem_gb=2"]
    partition(on_cluster, "DOWN")
    (tmp_path / "faults" / "launcher").write_text("2")  # it dies before its second sbatch
    train(project, *matrix, check=False)
    sweep = sweep_of(project)
    names = {short(member.name): member.name for member in sweep.runs}
    assert Counter(verdicts(sweep).values()) == {"queued": 7, "to do": 7}
    train(project, *matrix)
    assert Counter(verdicts(sweep).values()) == {"queued": 7, "waiting": 7}
    for run, fault in faults.items():
        (tmp_path / "faults" / names[run]).write_text(fault)
    # From now on nobody reads what is in the project.
    (project / "reasonrl" / "__init__.py").write_text("raise RuntimeError")
    (project / "conf" / "init" / "sft.yaml").write_text("name: broken")
    job = {short(r.member.name): r.job for r in look(sweep)}
    partition(on_cluster, "UP")
    on_cluster.run("scontrol", "update", f"JobId={job['sft 1']}", "Requeue=0")
    on_cluster.run("scontrol", "update", f"JobId={job['ei 4']}", "TimeLimit=1")
    for run in ("sft 1", "sft 2", "sft 5"):
        on_cluster.wait(
            (tmp_path / "faults" / f"{names[run]}.waiting").exists, f"{run} waits", 2 * MINUTE
        )
    on_cluster.run("scancel", "--signal=USR2", job["sft 2"])
    on_cluster.run("scancel", job["sft 5"])
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
    wait_until(sweep, ended)
    node = on_cluster.run("squeue", "-h", "-j", job["sft 1"], "-o", "%N")
    on_cluster.crash(node)
    wait_until(sweep, ended := {**ended, "sft 1": "node failure", "ei 1": "blocked"})
    on_cluster.restore(node)
    assert verdicts(sweep) == ended
    reasons = {short(r.member.name): r.reason for r in look(sweep)}
    assert reasons["sft 0"] == "RuntimeError: injected"
    assert reasons["ei 0"] == f"needs {names['sft 0']}"
    assert reasons["ei 2"] == "Segmentation fault"
    assert reasons["ei 6"] == "SystemExit: 4"
    assert read_status(sweep.run(names["sft 2"])).attempt == 2

    finished = [sweep.run(names[run]).path for run, verdict in ended.items() if verdict == "done"]
    before = {path: path.stat().st_mtime_ns for run in finished for path in run.rglob("*")}
    resubmit = [sys.executable, "-m", "reasonrl.sweep", "resubmit", str(sweep.path), "--yes"]
    both = [subprocess.Popen(resubmit, cwd=ROOT) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    wait_until(sweep, {"done"})
    assert {path: path.stat().st_mtime_ns for run in finished for path in run.rglob("*")} == before
    attempts = {run: read_status(sweep.run(name)).attempt for run, name in names.items()}
    assert attempts == dict.fromkeys(names, 1) | dict.fromkeys(faults, 2)

    for seed in range(7):
        undisturbed = small_config(tmp_path / "undisturbed", *SMALL_RUNS, f"seed={seed}")
        run = obtain(plan(undisturbed), Progress())
        assert outcome(sweep.run(run.path.name)) == outcome(run)


def partition(cluster: Cluster, state: str) -> None:
    """DOWN: jobs wait; UP: they begin."""
    cluster.run("scontrol", "update", "PartitionName=high", f"State={state}")
