"""GSM8K: 8.8K grade-school word problems (Cobbe et al., 2021), and what others made of its test."""

from __future__ import annotations

from reasonrl.config.dataset.gsm8k import GSM8KConfig
from reasonrl.grading.answers import canonical_number, strip_annotations
from reasonrl.grading.strict import Strict
from reasonrl.problems.sources import Row, hub_rows, json_lines, local_file, readable
from reasonrl.types import Problem
from reasonrl.util.errors import UserError

GOLD = Strict(next_question="")  # the grader that reads the files' own solutions
VALIDATION_SIZE = 256  # the last of the training file, as in the code of the paper's first author

# The hub id and configuration of each split that is evaluated only. All have a split test there.
PERTURBED = {
    # The test problems without the ambiguous ones, answers checked anew (Vendrow et al., 2025).
    "platinum": ("madrylab/gsm8k-platinum", "main"),
    # Eight perturbations of each test problem (Li et al., 2024).
    "plus": ("qintongli/GSM-Plus", None),
    # Fifty instances of each of a hundred templates (Mirzadeh et al., 2024); of p1 and p2 each has
    # one and two clauses more.
    "symbolic": ("apple/GSM-Symbolic", "main"),
    "symbolic_p1": ("apple/GSM-Symbolic", "p1"),
    "symbolic_p2": ("apple/GSM-Symbolic", "p2"),
}


def read(dataset: GSM8KConfig, split: str, size: int | None) -> list[Problem]:  # noqa: ARG001
    """The problems of a split, as the settings say."""
    return load(split, path=dataset.path, hub=dataset.hub, annotations=dataset.annotations)


def load(split: str, *, path: str | None, hub: str, annotations: bool) -> list[Problem]:
    """The problems of a split.

    split: train (all but the last 256 of the training file), validation (those 256), test (1,319)
        or one of `PERTURBED`.
    path: a folder with train.jsonl, test.jsonl and, for each of `PERTURBED` that is asked for, a
        file of that name; None reads ``hub``, and their own places for the latter.
    annotations: whether the reference solutions keep the calculator annotations ``<<48/2=24>>``.
    """
    source = "train" if split == "validation" else split
    if path is not None:
        rows = list(json_lines(local_file(path, f"{source}.jsonl")))
    elif split in PERTURBED:
        place, config = PERTURBED[split]
        rows = hub_rows(place, "test", config=config)
    else:
        rows = hub_rows(hub, source, config="main")
    numbered = [(row, f"gsm8k-{source}-{i}") for i, row in enumerate(rows)]
    if split == "plus":
        found = [_plus(row, problem_id) for row, problem_id in numbered]
        return readable(found, "GSM-Plus have no number as their answer")
    problems = [_problem(row, problem_id, annotations) for row, problem_id in numbered]
    if split == "train":
        return problems[:-VALIDATION_SIZE]
    return problems[-VALIDATION_SIZE:] if split == "validation" else problems


def _problem(row: Row, problem_id: str, annotations: bool) -> Problem:
    solution = row.text("answer")
    answer = GOLD.answer(solution)
    if answer is None:
        raise UserError(f"{row.place}: answer must end in a line '#### NUMBER'.")
    return Problem(
        id=problem_id,
        question=row.text("question").strip(),
        answer=answer,
        solution=(solution if annotations else strip_annotations(solution)).strip(),
    )


def _plus(row: Row, problem_id: str) -> Problem | None:
    """A problem of GSM-Plus; None if its answer is no number.

    Where a perturbation took away what the answer depends on, the answer is None.
    """
    answer = canonical_number(str(row.values.get("answer")))
    if answer is None:
        return None
    solution = f"{row.text('solution').strip()}\n#### {answer}"
    return Problem(problem_id, row.text("question").strip(), answer, solution)
