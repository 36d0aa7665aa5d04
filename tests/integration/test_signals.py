"""A plain command that is told to stop saves; given again, it ends as if it was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from reasonrl.cli.evaluate import evaluate_and_show as evaluate
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.planner import plan
from reasonrl.runs.folder import RunFolder, read_status
from reasonrl.util.progress import Progress
from tests.helpers.configs import ROOT, SMALL, small_config
from tests.helpers.kill_and_resume import differences

TERM, CTRL_C = signal.SIGTERM, signal.SIGINT

# Each phase takes long enough to be stopped in, and nothing is saved but because of a signal.
PPO = [
    *SMALL,
    "runtime.checkpoint_seconds=1e9",
    "dataset.train_size=24",
    "dataset.reward_train_size=24",
    "dataset.num_references=24",
    "dataset.test_size=60",
    "evaluation.num_samples_per_prompt=8",
    "init=sft",
    "init.sft.batch_size=2",
    "init.sft.epochs=8",
    "algorithm=ppo",
    "algorithm.iterations=1",
    "algorithm.rollouts_per_iteration=96",
    "algorithm.num_samples_per_prompt=4",
    "algorithm.batch_size=4",
    "algorithm.epochs=4",
]
EVALUATION = [
    "model=tiny",
    "runtime.threads=1",
    "dataset.test_size=60",
    "dataset.max_new_tokens=48",
    "evaluation.num_samples_per_prompt=8",
]


def start(program: str, overrides: list[str], outputs: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, program, f"runtime.outputs={outputs}", *overrides]
    with open(outputs.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            # In the background of a script it would be started to ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(CTRL_C, signal.default_int_handler),
        )


def ends(process: subprocess.Popen[bytes], outputs: Path) -> str:
    """Waits until it has succeeded; what it and its predecessors printed."""
    code = process.wait(timeout=300)
    said = outputs.with_suffix(".log").read_text()
    assert code == 0, said[-3000:]
    return said


def stop(
    process: subprocess.Popen[bytes],
    number: signal.Signals,
    outputs: Path,
    reached: Callable[[], bool],
) -> None:
    """Tells it to stop when it has come so far, and looks at how it ends."""
    log = outputs.with_suffix(".log")
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    assert process.wait(timeout=300) == 75, log.read_text()[-3000:]
    last = log.read_text().splitlines()[-1]
    assert last == f"stopped by {number.name}. The same command goes on from here."


def run_of(algorithm: str, outputs: Path) -> RunFolder:
    found = [*outputs.glob(f"runs/{algorithm}-*")]
    return RunFolder(found[0] if found else outputs / "none")


def lines(run: RunFolder, metric: str) -> int:
    return run.metrics.read_text().count(metric) if run.metrics.exists() else 0


def newest_checkpoint(folder: Path) -> tuple[int, dict]:
    """Its number of steps, and what it says of its loop."""
    newest = max(folder.glob("step-*"))
    return int(newest.name.removeprefix("step-")), json.loads((newest / "state.json").read_text())[
        "state"
    ]


def told(run: RunFolder) -> str:
    status = read_status(run)
    assert status is not None
    return status.state


@pytest.mark.slow
def test_a_run_that_is_stopped_in_every_phase_ends_as_if_left_alone(tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    ensure_done(plan(small_config(straight, *PPO)), Progress())

    def until(number: signal.Signals, reached: Callable[[], bool]) -> None:
        stop(start("train.py", PPO, stopped), number, stopped, reached)

    # In fine-tuning.
    until(TERM, lambda: lines(run_of("sft", stopped), "sft/loss") >= 4)
    sft = run_of("sft", stopped)
    assert told(sft) == "preempted"
    steps, _ = newest_checkpoint(sft.work / "policy.checkpoints")
    assert steps == lines(sft, "sft/loss") < 96

    # In PPO's sampling: the first line is that of the validation before the first iteration.
    until(CTRL_C, lambda: lines(run_of("ppo", stopped), "maj@1") == 1)
    ppo = run_of("ppo", stopped)
    assert (told(sft), told(ppo)) == ("done", "preempted")
    assert not [*ppo.rollouts.glob("*.parquet")]

    # In PPO's learning, of 4 epochs of 24 minibatches.
    until(TERM, lambda: lines(ppo, "pg/approx_kl") >= 4)
    assert told(ppo) == "preempted"
    steps, loop = newest_checkpoint(ppo.work / "checkpoints")
    assert steps == loop["state"]["taken"] == lines(ppo, "pg/approx_kl") < 96

    # In its evaluation.
    after = ppo.evaluated("test-n60-k8-t0.7") / "after"
    until(CTRL_C, after.exists)
    assert told(ppo) == "preempted"
    assert not (after / "metrics.json").exists()

    said = ends(start("train.py", PPO, stopped), stopped)
    assert "saving at the next opportunity. Ctrl-C again ends at once, without.\n" in said
    status = read_status(ppo)
    assert status is not None
    assert (status.state, status.attempt, status.error) == ("done", 4, None)
    assert differences(straight, stopped) == []


@pytest.mark.slow
def test_an_evaluation_that_is_stopped_goes_on(tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        evaluate(compose("evaluate", [f"runtime.outputs={straight}", *EVALUATION]))
    evaluation = start("evaluate.py", EVALUATION, stopped)
    stop(evaluation, CTRL_C, stopped, lambda: any(stopped.glob("evaluations/*")))
    assert not [*stopped.glob("evaluations/*/metrics.json")]
    ends(start("evaluate.py", EVALUATION, stopped), stopped)
    assert differences(straight, stopped) == []
