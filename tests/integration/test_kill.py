"""SIGKILL at random moments changes nothing about a run but how long it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.configs import SMALL
from tests.helpers.kill_and_resume import (
    differences,
    results,
    run_killed,
    run_straight,
    snapshot,
    start,
)

# Enough work for every phase to be hit now and then; checkpoints come faster than it goes.
OVERRIDES = [
    *SMALL,
    "runtime.checkpoint_seconds=0.2",
    "dataset.train_size=60",
    "dataset.num_references=50",
    "dataset.test_size=20",
    "algorithm.rounds=2",
    "algorithm.num_samples_per_prompt=[4]",
    "algorithm.batch_size=8",
    "algorithm.epochs=2",
    "init.sft.batch_size=8",
    "init.sft.epochs=4",
]


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_if_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    seconds = run_straight(straight, OVERRIDES)
    names = {Path(name).name for name in results(straight)}
    expected = {"metrics.jsonl", "model.safetensors", "greedy.parquet", "samples.parquet"}
    assert expected | {"round-1.parquet", "round-2.parquet", "rounds.json"} <= names

    # On a machine whose load has fallen since, the run may be done before the later kills.
    phases = run_killed(killed, OVERRIDES, kills=4, seed=0, seconds=seconds)
    assert phases
    assert differences(straight, killed) == []

    before, log = snapshot(killed), tmp_path / "again.log"
    assert start(killed, OVERRIDES, log).wait() == 0
    assert "done: " in log.read_text()
    assert snapshot(killed) == before
