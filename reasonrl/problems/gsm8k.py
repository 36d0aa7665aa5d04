"""GSM8K: 8.8K grade-school word problems (Cobbe et al., 2021)."""

from __future__ import annotations

from reasonrl.config.dataset.gsm8k import GSM8KConfig
from reasonrl.grading.answers import strip_annotations
from reasonrl.grading.strict import Strict
from reasonrl.problems.sources import Row, hub_rows, json_lines, local_file
from reasonrl.types import Problem
from reasonrl.util.errors import UserError

GOLD = Strict(next_question="")  # the grader that reads the files' own solutions
SOURCES = {"train": "train", "validation": "train", "test": "test"}  # the file of each split
VALIDATION_SIZE = 256  # the last of the training file, as in the code of the paper's first author


def read(dataset: GSM8KConfig, split: str, size: int | None) -> list[Problem]:  # noqa: ARG001
    """The problems of a split, as the settings say."""
    return load(split, path=dataset.path, hub=dataset.hub, annotations=dataset.annotations)


def load(split: str, *, path: str | None, hub: str, annotations: bool) -> list[Problem]:
    """The problems of a split.

    split: train (all but the last 256 of the training file), validation (those 256) or test
        (1,319).
    path: a folder with train.jsonl and test.jsonl; None reads ``hub``.
    annotations: whether the reference solutions keep the calculator annotations ``<<48/2=24>>``.
    """
    source = SOURCES[split]
    rows = (
        hub_rows(hub, source, config="main")
        if path is None
        else list(json_lines(local_file(path, f"{source}.jsonl")))
    )
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
