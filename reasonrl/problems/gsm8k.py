"""GSM8K: 8.8K grade-school word problems (Cobbe et al., 2021)."""

from __future__ import annotations

from reasonrl.config.dataset.gsm8k import GSM8KConfig
from reasonrl.grading.answers import strip_annotations
from reasonrl.grading.strict import Strict
from reasonrl.problems.sources import Row, hub_rows, json_lines, local_file
from reasonrl.types import Problem
from reasonrl.util.errors import UserError

GOLD = Strict(next_question="")  # the grader that reads the files' own solutions
# The file of each split.
SOURCES = {"train": "train", "validation": "train", "test": "test", "platinum": "platinum"}
# The test problems without the ambiguous ones, answers checked anew (Vendrow et al., 2025). They
# have a place of their own on the hub, where they are the only split.
PLATINUM = "madrylab/gsm8k-platinum"
VALIDATION_SIZE = 256  # the last of the training file, as in the code of the paper's first author


def read(dataset: GSM8KConfig, split: str, size: int | None) -> list[Problem]:  # noqa: ARG001
    """The problems of a split, as the settings say."""
    return load(split, path=dataset.path, hub=dataset.hub, annotations=dataset.annotations)


def load(split: str, *, path: str | None, hub: str, annotations: bool) -> list[Problem]:
    """The problems of a split.

    split: train (all but the last 256 of the training file), validation (those 256), test (1,319)
        or platinum (1,209 of these, with answers that were checked anew).
    path: a folder with train.jsonl, test.jsonl and, for its split, platinum.jsonl; None reads
        ``hub``, and `PLATINUM` for the latter.
    annotations: whether the reference solutions keep the calculator annotations ``<<48/2=24>>``.
    """
    source = SOURCES[split]
    if path is not None:
        rows = list(json_lines(local_file(path, f"{source}.jsonl")))
    elif split == "platinum":
        rows = hub_rows(PLATINUM, "test", config="main")
    else:
        rows = hub_rows(hub, source, config="main")
    problems = [_problem(row, f"gsm8k-{source}-{i}", annotations) for i, row in enumerate(rows)]
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
