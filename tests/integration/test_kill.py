"""SIGKILL at random moments changes nothing about a run but how long it takes.

Each algorithm's run is made by two ranks, and killed once: its parent, one of its ranks, or all.

    REASONRL_KILLS=10 pytest tests/integration/test_kill.py

kills each of them ten times. ``python -m tests.helpers.kill_and_resume`` does so with any other.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.planner import plan
from reasonrl.util.progress import Progress
from tests.helpers.configs import SMALL, small_config
from tests.helpers.kill_and_resume import (
    differences,
    kill_again_and_again,
    progress,
    results,
    snapshot,
)

KILLS = int(os.environ.get("REASONRL_KILLS", "1"))

# Checkpoints come faster than the work goes.
BY_TWO = ["init=pretrained", "runtime.processes=2", "runtime.checkpoint_seconds=0"]
BY_TWO += ["dataset.test_size=4", "evaluation.num_samples_per_prompt=2"]
LEARNER = ["algorithm.batch_size=8", "algorithm.epochs=2"]
OVERRIDES = {
    "ei": ["algorithm.rounds=2", "algorithm.num_samples_per_prompt=[4]", *LEARNER],
    "ppo": [
        "algorithm.iterations=2",
        "algorithm.rollouts_per_iteration=16",
        "algorithm.validate_every=1",
        "reward=dense",
        *LEARNER,
    ],
    "vineppo": [
        "algorithm.iterations=2",
        "algorithm.rollouts_per_iteration=8",
        "algorithm.num_continuations=2",
        "algorithm.validate_every=1",
        *LEARNER,
    ],
    "rcrl": [
        "algorithm.policy=null",
        "algorithm.sample.temperature=0.5",
        "algorithm.num_continuations=2",
        *LEARNER,
    ],
    "orm": LEARNER,
}
LEFT = {
    "ei": {"round-1.parquet", "round-2.parquet", "rounds.json", "model.safetensors"},
    "ppo": {"iteration-00001.parquet", "iteration-00002.parquet", "model.safetensors"},
    "vineppo": {"iteration-00001.parquet", "iteration-00002.parquet", "model.safetensors"},
    "rcrl": {"model.safetensors", "greedy.parquet", "samples.parquet"},
    "orm": {"model.safetensors", "calibration.png"},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "seed"), [("ei", 7), ("ppo", 1), ("vineppo", 3), ("rcrl", 4), ("orm", 11)]
)
def test_killed_it_ends_as_if_left_alone(algorithm: str, seed: int, tmp_path: Path) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    overrides = [f"algorithm={algorithm}", *BY_TWO, *OVERRIDES[algorithm]]
    alone = plan(small_config(straight, *overrides, "runtime.processes=1"))
    for first in alone.prerequisites.values():  # completions, which are the same by any number
        ensure_done(first, Progress())
    if straight.exists():
        shutil.copytree(straight, killed)
    ensure_done(plan(small_config(straight, *overrides)), Progress())
    assert {"metrics.jsonl", *LEFT[algorithm]} <= {Path(name).name for name in results(straight)}

    whole = progress(straight)
    assert kill_again_and_again(killed, [*SMALL, *overrides], kills=KILLS, seed=seed, whole=whole)
    last = plan(small_config(killed, *overrides))
    ensure_done(last, Progress())
    assert differences(straight, killed) == []
    before = snapshot(killed)
    ensure_done(last, Progress())
    assert snapshot(killed) == before
