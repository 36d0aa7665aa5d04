"""A sweep's folder as jobs would leave it, from literals."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reasonrl.runs.folder import RunFolder
from reasonrl.sweep.manifest import Member, Submission, Submitted, Sweep
from tests.helpers.slurm_logs import SUBMITTED

# An estimate's value, low and high.
Estimates = Mapping[str, tuple[float, float, float]]


def make_run(
    outputs: Path,
    name: str,
    *,
    lines: Sequence[str] = (),
    state: str | None = "done",
    error: str | None = None,
    evaluations: Mapping[str, Estimates] | None = None,
    correct: Mapping[str, bool] | None = None,
    text: str = " 2+3=5\n#### 5",
) -> RunFolder:
    """name: ``ALGORITHM-REWARD-MODEL-INIT-sSEED``, and perhaps a hash.

    lines: of metrics.jsonl. state: None if it was never begun. evaluations: by folder.
    correct: by problem, of the greedy completions of evaluation/after, each of this text.
    """
    run = RunFolder(outputs / "runs" / name)
    algorithm, reward, model, init, seed, *_ = name.split("-")
    run.config.parent.mkdir(parents=True)
    groups = {"algorithm": algorithm, "reward": reward, "model": model, "init": init}
    names = [f"{group}: {{name: {value}}}\n" for group, value in groups.items()]
    run.config.write_text("".join(names) + f"dataset: {{name: stories}}\nseed: {seed[1:]}\n")
    if lines:
        run.metrics.write_text("\n".join(lines) + "\n")
    if state is not None:
        status = {"state": state, "attempt": 2, "host": "node1", "pid": 7, "error": error}
        times = dict.fromkeys(("started", "heartbeat"), "2026-01-02T03:04:05+00:00")
        run.status.write_text(json.dumps(status | times))
    for folder, estimates in (evaluations or {}).items():
        write_estimates(run.evaluation / folder / "metrics.json", estimates)
    if correct:
        rows = [
            {"problem_id": problem, "text": text, "answer": "5", "correct": right}
            for problem, right in correct.items()
        ]
        pq.write_table(pa.Table.from_pylist(rows), run.evaluation / "after" / "greedy.parquet")
    return run


def write_estimates(file: Path, estimates: Estimates) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        name: {"value": value, "low": low, "high": high, "n": 4}
        for name, (value, low, high) in estimates.items()
    }
    file.write_text(json.dumps({"estimates": values, "problems": 4}))


def make_sweep(outputs: Path, members: Sequence[Member]) -> Sweep:
    sweep = Sweep(
        path=outputs / "sweeps" / "ei-ppo-1a2b3c4d",
        command=["train.py", "-m", "algorithm=ei,ppo"],
        folder=str(outputs.parent),
        created="2026-01-02T03:04:05+00:00",
        cluster="local",
        code="",
        at_once=1,
        runs=list(members),
    )
    sweep.write()
    return sweep


def made_up_sweep(
    folder: Path, names: list[str], cluster: str = "slurm"
) -> tuple[Sweep, Submitted]:
    """Submitted at 10:00 as job 17, nothing of it begun."""
    code, path = str(folder / "code" / "1a2b3c4d"), folder / "sweeps" / "ei-1a2b3c4d"
    members = [Member(name, []) for name in names]
    sweep = Sweep(path, ["train.py"], ".", SUBMITTED, cluster, code, 1, members)  # type: ignore[arg-type]
    sweep.write()
    job = "17" if cluster == "slurm" else None
    batch = Submitted(
        path / "batches" / "0001",
        cluster,  # type: ignore[arg-type]
        names,
        code,
        SUBMITTED,
        socket.gethostname(),
        2**22 + 1,  # above the largest process number
        {},
        job,
    )
    batch.write()
    for task, name in enumerate(names):
        Submission(str(batch.path), task).write(sweep.run(name))
    return sweep, batch
