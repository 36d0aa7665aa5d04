"""Labelled steps of completions, as the run that continues them wrote them down."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from reasonrl.types import Rollout

STEPS_FILE = "steps.parquet"
STEPS = pa.schema(
    {
        "problem_id": pa.string(),
        "sample_index": pa.int32(),
        "number": pa.int32(),
        "token": pa.int32(),
        "correct": pa.int32(),
        "verifying": pa.int32(),
        "good": pa.bool_(),
    }
)


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a completion (``grading.steps``), labelled."""

    number: int  # from 0
    token: int  # the index of the step's last token
    correct: int | None  # right continuations; None for a last step, which its answer labels
    verifying: int | None  # right continuations that also use what the step calculates
    good: bool  # the label


def read_steps(file: Path, rollouts: Sequence[Rollout]) -> list[list[Step]]:
    """The labelled steps of each rollout."""
    steps = defaultdict(list)
    for row in pq.read_table(file, schema=STEPS).to_pylist():
        key = row.pop("problem_id"), row.pop("sample_index")
        steps[key].append(Step(**row))
    return [steps[r.completion.problem_id, r.completion.sample_index] for r in rollouts]
