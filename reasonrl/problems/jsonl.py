"""Problems of one's own, from any table that has a question and an answer in each row."""

from __future__ import annotations

import hashlib

from reasonrl.config.dataset.jsonl import FORMS, HELD_OUT, JSONLConfig
from reasonrl.grading import Grader, grader_of
from reasonrl.problems.sources import Row
from reasonrl.problems.tables import rows_of
from reasonrl.types import Problem
from reasonrl.util.errors import UserError


def read(dataset: JSONLConfig, split: str, size: int | None) -> list[Problem]:  # noqa: ARG001
    """The problems of a split, in the order of its file.

    A split without a file has a part of the training problems, and these are then fewer. Which
    they are depends on the questions alone: equal ones are never on two sides.
    """
    rows = _rows(dataset, split)
    if rows is not None and split != "train":
        return _problems(dataset, split, rows)
    training = _problems(dataset, "train", _training_rows(dataset))
    parts = _parts(dataset, training)
    return [problem for problem in training if parts.get(problem.question, "train") == split]


def _rows(dataset: JSONLConfig, split: str) -> list[Row] | None:
    return rows_of(str(dataset.path), split, dataset.files[split], dataset.subset)


def _training_rows(dataset: JSONLConfig) -> list[Row]:
    rows = _rows(dataset, "train")
    if rows is None:
        raise UserError(
            f"dataset.path={dataset.path} must have training problems; there is no split train. "
            "Pass dataset.files.train=NAME."
        )
    return rows


def _parts(dataset: JSONLConfig, training: list[Problem]) -> dict[str, str]:
    """The split of each question that the training problems give to another split."""
    questions = sorted({p.question for p in training}, key=_order)
    parts: dict[str, str] = {}
    for split in HELD_OUT:
        if _rows(dataset, split) is not None:
            continue
        wanted = dataset.held_out[split]
        number = max(1, round(wanted * len(questions))) if wanted < 1 else int(wanted)
        start = len(parts)
        parts |= dict.fromkeys(questions[start : start + number], split)
    if len(parts) == len(questions):
        raise UserError(
            f"dataset.held_out={dataset.held_out} must leave problems to train on; got "
            f"{len(questions)} different questions in all."
        )
    return parts


def _order(question: str) -> bytes:
    return hashlib.sha256(question.encode()).digest()


def _problems(dataset: JSONLConfig, source: str, rows: list[Row]) -> list[Problem]:
    grader, places, problems = grader_of(dataset), dict[str, str](), []
    for number, row in enumerate(rows):
        problem = problem_of(row, f"{dataset.name}-{source}-{number}", dataset, grader)
        if problem.id in places:
            raise UserError(
                f"{row.place}: {dataset.fields['id']} must differ from row to row; got "
                f"{problem.id!r}, as in {places[problem.id]}."
            )
        places[problem.id] = row.place
        problems.append(problem)
    return problems


def problem_of(row: Row, place: str, dataset: JSONLConfig, grader: Grader) -> Problem:
    """The problem of a row, its solution in the form that the grader reads.

    place: the problem's id where rows have none.

    Raises UserError, with the row's place, for a field that is missing, a gold answer that the
    grader can't read, and a solution that comes to another answer.
    """
    fields = {name: key for name, key in dataset.fields.items() if key is not None}
    for name, key in fields.items():
        if key not in row.values:
            raise UserError(
                f"{row.place}: dataset.fields.{name}={key} must be one of its fields "
                f"{', '.join(row.values)}."
            )
    form = FORMS[dataset.grader]
    written = row.text(fields["answer"]).strip()
    answer = grader.answer(written) or grader.answer(form.format(" ".join(written.split())))
    if answer is None:
        raise UserError(
            f"{row.place}: {fields['answer']} must be an answer that dataset.grader="
            f"{dataset.grader} reads; got {written[:80]!r}. Mend it, or pass another grader."
        )
    solution = row.text(fields["solution"]).strip() if "solution" in fields else ""
    if grader.answer(solution) is None:
        solution = f"{solution}\n{form.format(answer)}".strip()
    if not grader.equal(said := grader.answer(solution), answer):
        raise UserError(
            f"{row.place}: {fields['solution']} must come to the gold answer {answer}; the grader "
            f"reads {said} from it. Mend one of the two."
        )
    return Problem(
        id=row.text(fields["id"]) if "id" in fields else place,
        question=row.text(fields["question"]).strip(),
        answer=answer,
        solution=solution,
    )
