"""Folders of finished runs with evaluations that a test makes up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reasonrl.runs.folder import GAIN, RunFolder, Status, run_folder, write_config, write_status
from reasonrl.util.atomic import write_json
from tests.helpers.configs import small_config

# By problem: whether the greedy answer is right, and the samples' answers; "7" is right.
Answers = Mapping[str, tuple[bool, Sequence[str | None]]]


def finished(
    outputs: Path, *overrides: str, after: Answers, before: Answers | None = None
) -> RunFolder:
    """A done run with these overrides, evaluated by its protocol."""
    config = small_config(outputs, *overrides)
    run = run_folder(config)
    write_config(run, config)
    write_status(run, Status.here("done", 1))
    folder = run.evaluated(config.protocol)
    write_answers(folder / "after", after)
    if before is not None:
        write_answers(folder / "before", before)
    write_json(folder / GAIN, {"estimates": {}})
    return run


def write_answers(folder: Path, answers: Answers) -> None:
    folder.mkdir(parents=True)
    greedy = {"problem_id": list(answers), "correct": [right for right, _ in answers.values()]}
    rows = [(name, answer) for name, (_, given) in answers.items() for answer in given]
    samples = {
        "problem_id": [name for name, _ in rows],
        "correct": [answer == "7" for _, answer in rows],
        "answer": pa.array([answer for _, answer in rows], pa.string()),
    }
    pq.write_table(pa.table(greedy), folder / "greedy.parquet")
    pq.write_table(pa.table(samples), folder / "samples.parquet")
