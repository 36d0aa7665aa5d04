"""What a recorded evaluation says of each problem, for evaluations to be compared by problem.

The scores are computed again from the graded completions on disk, by the functions that the
evaluation itself used, and neither a model nor the problems are needed for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from reasonrl.grading.metrics import majority_vote, pass_at_k, reported_k
from reasonrl.runs.result import GREEDY, SAMPLES
from reasonrl.util.errors import UserError

GOLD = "the gold answer"  # stands for every right answer, however it is written, in a vote


@dataclass(frozen=True)
class Scores:
    """Each metric of an evaluation by problem."""

    problem_ids: tuple[str, ...]  # sorted
    values: dict[str, np.ndarray]  # by metric, (problems,)


def read_scores(evaluation: Path) -> Scores:
    """The scores of the evaluation in this folder: maj@1, maj@K, and pass@k.

    Raises UserError if it isn't whole.
    """
    greedy = _columns(evaluation / GREEDY, ["problem_id", "correct"])
    ids, correct = greedy
    order = np.argsort(np.array(ids, dtype=object), kind="stable")
    problem_ids = tuple(ids[i] for i in order)
    values = {"maj@1": np.array(correct, dtype=float)[order]}
    ids, correct, answers = _columns(evaluation / SAMPLES, ["problem_id", "correct", "answer"])
    rows: dict[str, list[int]] = {problem_id: [] for problem_id in problem_ids}
    for place, problem_id in enumerate(ids):
        rows[problem_id].append(place)
    flags = np.array([[correct[i] for i in rows[p]] for p in problem_ids], dtype=bool)
    num_samples = flags.shape[1]
    if num_samples > 1:
        votes = [[GOLD if correct[i] else answers[i] for i in rows[p]] for p in problem_ids]
        values[f"maj@{num_samples}"] = majority_vote(votes, [GOLD] * len(votes))
    for k in reported_k(num_samples):
        values[f"pass@{k}"] = pass_at_k(flags, k)
    return Scores(problem_ids, values)


def _columns(file: Path, names: Sequence[str]) -> list[list[Any]]:
    try:
        table = pq.read_table(file, columns=list(names))
    except (OSError, ValueError) as error:
        raise UserError(
            f"evaluation={file.parent} must be whole; {file.name} can't be read: "
            f"{' '.join(str(error).split())[:200]}. Evaluate its run again."
        ) from None
    return [table[name].to_pylist() for name in names]
