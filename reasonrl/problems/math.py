r"""MATH: 12.5K competition problems with answers in LaTeX (Hendrycks et al., 2021), and AIME's.

Its rows have problem and solution, in whose last ``\boxed{…}`` the answer stands; of the splits
that are evaluated only, rows have problem and answer, and some a solution.
"""

from __future__ import annotations

import hashlib
import re

from reasonrl.config.dataset.math import MATHConfig
from reasonrl.grading.boxed import Boxed
from reasonrl.problems.sources import Row, hub_rows, json_lines, local_file, readable
from reasonrl.types import Problem
from reasonrl.util.errors import UserError

GOLD = Boxed(next_question="")  # the grader that reads the files' own solutions
SUBJECTS = (  # each a configuration on the hub
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
# The hub id, and the split there, of each split that is evaluated only.
EVALUATED = {
    "math500": ("HuggingFaceH4/MATH-500", "test"),
    "aime24": ("HuggingFaceH4/aime_2024", "train"),
    "aime25": ("MathArena/aime_2025", "train"),
}
VALIDATION_SIZE = 500
# Boxes that some solutions have in another form: \fbox{2}, \boxed 2.
_FRAMED = re.compile(r"\\fbox\s*\{")
_BARE = re.compile(r"\\boxed\s+([^\s${}\\.]+)")


def read(dataset: MATHConfig, split: str, size: int | None) -> list[Problem]:  # noqa: ARG001
    """The problems of a split, as the settings say."""
    return load(split, path=dataset.path, hub=dataset.hub)


def load(split: str, *, path: str | None, hub: str) -> list[Problem]:
    """The problems of a split.

    Those of MATH's own are in the order of a hash of their question, which mixes the subjects; of
    the training problems the first 500 are validation.

    split: train, validation, test or one of `EVALUATED`.
    path: a folder with train.jsonl, test.jsonl and, for each of `EVALUATED` that is asked for, a
        file of that name; None reads ``hub``, and their own places for the latter.
    """
    source = "train" if split == "validation" else split
    if path is not None:
        rows = list(json_lines(local_file(path, f"{source}.jsonl")))
    elif split in EVALUATED:
        rows = hub_rows(*EVALUATED[split])
    else:
        rows = [row for subject in SUBJECTS for row in hub_rows(hub, source, config=subject)]
    numbered = [(row, f"math-{source}-{i}") for i, row in enumerate(rows)]
    if split in EVALUATED:
        return [_answered(row, problem_id) for row, problem_id in numbered]
    found = [_solved(row, problem_id) for row, problem_id in numbered]
    problems = sorted(readable(found, "MATH have no readable answer"), key=_order)
    if split == "train":
        return problems[VALIDATION_SIZE:]
    return problems[:VALIDATION_SIZE] if split == "validation" else problems


def _order(problem: Problem) -> bytes:
    return hashlib.sha256(problem.question.encode()).digest()


def _solved(row: Row, problem_id: str) -> Problem | None:
    """A problem whose solution has its answer; None if it has none."""
    solution = _BARE.sub(r"\\boxed{\1}", _FRAMED.sub(r"\\boxed{", row.text("solution"))).strip()
    answer = GOLD.answer(solution)
    if answer is None:
        return None
    return Problem(problem_id, row.text("problem").strip(), answer, solution)


def _answered(row: Row, problem_id: str) -> Problem:
    answer = GOLD.read(row.text("answer"))
    if answer is None:
        raise UserError(f"{row.place}: answer must be an answer; got {row.text('answer')!r}.")
    solution = str(row.values.get("solution") or "").strip()
    if GOLD.answer(solution) != answer:
        solution = f"{solution}\n\\boxed{{{answer}}}".strip()
    return Problem(problem_id, row.text("problem").strip(), answer, solution)
