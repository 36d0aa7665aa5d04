"""Sweeps on this machine: several runs at a time, and whatever is killed, the same command goes on.

Each is of four runs: for two seeds, completions are sampled from a policy that is fine-tuned first.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reasonrl.pipeline.planner import plan
from reasonrl.runs.folder import RunFolder, read_config, read_status
from reasonrl.sweep.manifest import Sweep
from reasonrl.sweep.status import look
from tests.helpers.configs import ROOT, SMALL, small_config

SWEEP = [*SMALL, "algorithm=sample", "init=sft", "runtime.checkpoint_seconds=0"]  # after each step

# Holds a run up after its first checkpoint, for as long as there is a file with its name.
HOLD = """
import os, sys, time
from pathlib import Path

folder = Path(os.environ["HOLD"])

def watch(event, arguments):
    if event == "os.rename" and "/step-" in str(arguments[1]):
        file = folder / Path(arguments[1]).parents[2].name
        if file.exists():
            file.with_suffix(".held").touch()
        while file.exists():
            time.sleep(0.05)

sys.addaudithook(watch)
"""


class Stage:
    """A sweep's outputs, its command, and its runs by the names sft0, sample0, sft1, sample1."""

    def __init__(self, folder: Path) -> None:
        self.outputs, self.hold_folder = folder / "outputs", folder / "hold"
        self.hold_folder.mkdir()
        (self.hold_folder / "sitecustomize.py").write_text(HOLD)
        self.runs: dict[str, RunFolder] = {}
        for seed in (0, 1):
            one = small_config(self.outputs, *SWEEP, f"seed={seed}")
            first = small_config(self.outputs, "algorithm=sft", f"seed={seed}")
            self.runs |= {f"sft{seed}": plan(first).run, f"sample{seed}": plan(one).run}

    def launch(self, processes: int, project: Path = ROOT) -> subprocess.Popen[str]:
        where = ["hydra.launcher.cluster=local", f"hydra.launcher.processes={processes}"]
        command = [*SWEEP, "seed=0,1", f"runtime.outputs={self.outputs}", *where, "tracking=wandb"]
        folder = str(self.hold_folder)
        environment = {"PYTHONPATH": folder, "HOLD": folder, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "train.py", "-m", *command, "tracking.mode=disabled"],
            cwd=project,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # As from a terminal, also where these tests run in the background of a shell.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def hold(self, *runs: str) -> None:
        for run in runs:
            file = self.hold_folder / self.runs[run].path.name
            file.with_suffix(".held").unlink(missing_ok=True)
            file.touch()

    def release(self, *runs: str) -> None:
        for run in runs:
            (self.hold_folder / self.runs[run].path.name).unlink()

    def wait_until_held(self, *runs: str) -> None:
        names = [self.runs[run].path.name for run in runs]
        wait_until(lambda: all((self.hold_folder / f"{name}.held").exists() for name in names))

    def state(self, run: str) -> str | None:
        status = read_status(self.runs[run])
        return status.state if status else None

    def attempts(self) -> dict[str, int]:
        """Of runs that were begun."""
        found = {name: read_status(run) for name, run in self.runs.items()}
        return {name: status.attempt for name, status in found.items() if status}

    def sweep(self) -> Sweep:
        (manifest,) = self.outputs.glob("sweeps/*/sweep.json")
        return Sweep.read(manifest.parent)

    def verdicts(self) -> dict[str, str]:
        found = {finding.member.name: str(finding.verdict) for finding in look(self.sweep())}
        return {name: found[run.path.name] for name, run in self.runs.items()}


def wait_until(holds: Callable[[], bool], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def ends(launcher: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit status, and what it printed, in one line."""
    printed, _ = launcher.communicate(timeout=120)
    return launcher.returncode, " ".join(printed.split())


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    shutil.rmtree(made.hold_folder)  # what a failed test has left held goes on, and ends


ONCE = {"sft0": 1, "sample0": 1, "sft1": 1, "sample1": 1}


@pytest.mark.slow
def test_runs_side_by_side_with_the_code_and_configuration_of_the_command(
    stage: Stage, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    for name in ("reasonrl", "hydra_plugins", "conf"):
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, project / name, ignore=skip)
    shutil.copy(ROOT / "train.py", project)
    (project / "models").symlink_to(ROOT / "models")
    stage.hold("sft0")
    launcher = stage.launch(processes=2, project=project)
    stage.wait_until_held("sft0")
    for file in (project / "reasonrl").rglob("*.py"):
        file.write_text("raise RuntimeError('edited')")
    shutil.rmtree(project / "conf")
    wait_until(lambda: stage.state("sample1") == "done")  # meanwhile, beside it
    assert stage.verdicts() == {
        "sft0": "running",
        "sample0": "waiting",
        "sft1": "done",
        "sample1": "done",
    }
    stage.release("sft0")
    status, printed = ends(launcher)
    assert status == 0, printed
    assert stage.attempts() == ONCE
    groups = {read_config(run).tracking.group for run in stage.runs.values()}  # type: ignore[attr-defined]
    assert groups == {stage.sweep().name}
    assert "edited" not in "".join(log.read_text() for log in stage.outputs.rglob("*.log"))

    status, printed = ends(stage.launch(processes=2))
    assert status == 0, printed
    assert stage.attempts() == ONCE
    assert "making" not in printed


@pytest.mark.slow
def test_after_a_kill_of_the_launcher_the_same_command_waits_for_what_still_runs(
    stage: Stage,
) -> None:
    stage.hold("sft0")
    killed = stage.launch(processes=1)
    stage.wait_until_held("sft0")
    killed.kill()  # not reaped: to see whether a zombie passes for a launcher
    both = [stage.launch(processes=1) for _ in range(2)]
    wait_until(lambda: stage.state("sample1") == "done")
    assert stage.verdicts()["sft0"] == "running"
    assert stage.state("sample0") is None
    stage.release("sft0")
    outcomes = [ends(launcher) for launcher in both]
    killed.wait()
    assert [status for status, _ in outcomes] == [0, 0], outcomes
    assert stage.attempts() == ONCE
    made = [printed.count("making ") for _, printed in outcomes]
    assert sorted(made) == [0, 3]


@pytest.mark.slow
def test_what_is_interrupted_or_killed_is_made_by_the_same_command(stage: Stage) -> None:
    stage.hold("sft0", "sft1")
    launcher = stage.launch(processes=2)
    stage.wait_until_held("sft0", "sft1")
    launcher.send_signal(signal.SIGINT)
    time.sleep(2)  # for the launcher to tell them
    stage.release("sft0", "sft1")
    status, printed = ends(launcher)
    assert status == 2
    assert "error: interrupted. The same command goes on from here." in printed
    assert [stage.state(run) for run in stage.runs] == ["preempted", None, "preempted", None]

    stage.hold("sft1")
    launcher = stage.launch(processes=2)
    stage.wait_until_held("sft1")
    own = read_status(stage.runs["sft1"])
    assert own is not None
    os.kill(own.pid, signal.SIGKILL)
    status, printed = ends(launcher)
    assert status == 2
    names = {name: run.path.name for name, run in stage.runs.items()}
    assert f"ended: {names['sft1']}, with exit status -9" in printed
    assert f"{names['sample1']} isn't begun: it needs {names['sft1']}" in printed
    assert f"error: sweep={stage.sweep().name} must be done; 2 of its 4 runs aren't." in printed
    assert "give the same command again" in printed
    assert stage.verdicts() == {
        "sft0": "done",
        "sample0": "done",
        "sft1": "crashed",
        "sample1": "blocked",
    }

    stage.release("sft1")
    status, printed = ends(stage.launch(processes=2))
    assert status == 0, printed
    assert stage.attempts() == {"sft0": 2, "sample0": 1, "sft1": 3, "sample1": 1}
