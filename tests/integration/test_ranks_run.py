"""Whole runs of two processes, by each way to start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reasonrl.runs.folder import RunFolder, read_status
from reasonrl.runs.metrics_log import read_metrics
from tests.helpers.configs import ROOT, SMALL

EI = [*SMALL, "algorithm=ei", "algorithm.rounds=1", "algorithm.num_samples_per_prompt=[4]"]


def succeeds(outputs: Path, *command: str) -> str:
    """What the command printed, which must succeed."""
    done = subprocess.run(
        [sys.executable, *command, f"runtime.outputs={outputs}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def check(outputs: Path, names: list[str]) -> None:
    """Each run is done, was made by two processes, and has told each step once."""
    runs = [RunFolder(folder) for folder in sorted(outputs.glob("runs/*"))]
    assert [run.path.name.partition("-")[0] for run in runs] == names
    for run in runs:
        status = read_status(run)
        assert status is not None
        assert (status.state, status.attempt) == ("done", 1)
        (attempt,) = json.loads(run.provenance.read_text())["attempts"]
        assert (attempt["processes"], attempt["threads"]) == (2, 1)
        losses = [line["step"] for line in read_metrics(run.metrics) if "sft/loss" in line]
        assert losses == sorted({*losses})
        assert not run.work.exists()
        assert not [*run.path.glob("rank-*.log")]


@pytest.mark.slow
def test_expert_iteration_by_two_ranks(tmp_path: Path) -> None:
    said = succeeds(tmp_path, "train.py", *EI, "runtime.processes=2")
    check(tmp_path, ["ei", "sft"])
    assert said.count("round 1: sampling: 48 of 48") == 1
    assert said.count("gain, paired") == 1
    assert "done: " in succeeds(tmp_path, "train.py", *EI, "runtime.processes=2")
    (run,) = tmp_path.glob("runs/ei-*")
    evaluation = ["evaluation.num_samples_per_prompt=2", "runtime.threads=1", f"run={run}"]
    said = succeeds(tmp_path, "evaluate.py", *evaluation, "runtime.processes=2")
    assert said.count("maj@2") == 1
    assert (run / "evaluation" / "test-n10-k2-t0.7" / "after" / "metrics.json").exists()


@pytest.mark.slow
def test_a_launcher_may_start_the_processes(tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    said = succeeds(tmp_path, *torchrun, "train.py", *SMALL, "algorithm=sft", "init=pretrained")
    check(tmp_path, ["sft"])
    assert said.count("fine-tuning on reference solutions: 4 of 4") == 1
    assert said.count("gain, paired") == 1
