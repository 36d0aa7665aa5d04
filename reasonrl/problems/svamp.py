"""SVAMP: 1,000 short word problems, each a variation of one of a hundred (Patel et al., 2021).

Its golds are integers stored as floats, and its only solutions are equations such as
``( ( 5.0 + 3.0 ) - 2.0 )``; they are written out here as one calculation a line.

The paper trained on 700 questions and tested on 300. Neighbours in the file are variations of the
same problem, so the split is by place: 1-700 train (its last 70 validation), 701-1000 test.

Platinum (Vendrow et al., 2025) is a part of the file with answers checked anew. Its rows have the
file's own fields, ``platinum_target`` (a list with the answer) and ``cleaning_status``.
"""

from __future__ import annotations

import ast
import logging
from fractions import Fraction

from reasonrl.config.dataset.svamp import SVAMPConfig
from reasonrl.grading.answers import OPERATORS, canonical_number
from reasonrl.problems.sources import Row, hub_rows, json_array, json_lines, local_file
from reasonrl.types import Problem
from reasonrl.util.errors import UserError

logger = logging.getLogger(__name__)

TRAIN = slice(0, 630)
VALIDATION = slice(630, 700)
TEST = slice(700, 1000)
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
PLATINUM = "madrylab/platinum-bench"

# Answers that contradict their own question and equation, with the right one: (4 - 2) + 3 apples.
ERRATA = {("chal-680", "1.0"): "5"}


def read(dataset: SVAMPConfig, split: str, size: int | None) -> list[Problem]:  # noqa: ARG001
    """The problems of a split, as the settings say."""
    return load(split, path=dataset.path, hub=dataset.hub)


def load(split: str, *, path: str | None, hub: str) -> list[Problem]:
    """The problems of a split.

    split: train, validation, test, or platinum: what that has of the test problems.
    path: a folder with SVAMP.json and, for its split, platinum.jsonl; None reads ``hub``, whose own
        split is undone, and `PLATINUM` for the latter.
    """
    if split == "platinum":
        return _platinum(
            hub_rows(PLATINUM, "test", config="svamp")
            if path is None
            else list(json_lines(local_file(path, "platinum.jsonl")))
        )
    if path is None:
        rows = sorted([*hub_rows(hub, "train"), *hub_rows(hub, "test")], key=_place_in_file)
    else:
        rows = json_array(local_file(path, "SVAMP.json"))
    return [_problem(row) for row in rows[SPLITS[split]]]


def _place_in_file(row: Row) -> int:
    number = row.text("ID").removeprefix("chal-")
    if not number.isdecimal():
        raise UserError(f"{row.place}: ID must be chal-NUMBER; got {row.text('ID')!r}.")
    return int(number)


def _platinum(rows: list[Row]) -> list[Problem]:
    """The problems that weren't rejected and are none of the training or validation problems.

    Of the solution only the answer is there: the published equation may give another.
    """
    kept = [row for row in rows if row.values.get("platinum_target") is not None]
    test = [row for row in kept if TEST.start < _place_in_file(row) <= TEST.stop]
    logger.info(
        "%d of %d problems of SVAMP-Platinum are left out: %d rejected ones, and %d of the "
        "training and validation problems",
        len(rows) - len(test),
        len(rows),
        len(rows) - len(kept),
        len(kept) - len(test),
    )
    problems = []
    for row in test:
        answers = [canonical_number(str(one)) for one in row.values["platinum_target"]]
        if len(set(answers)) != 1 or answers[0] is None:
            raise UserError(
                f"{row.place}: platinum_target must be one number; got "
                f"{row.values['platinum_target']}."
            )
        problems.append(
            Problem(
                id=f"svamp-{row.text('ID')}",
                question=_question(row),
                answer=answers[0],
                solution=f"#### {answers[0]}",
            )
        )
    return problems


def _question(row: Row) -> str:
    body = row.text("Body").strip()
    separator = " " if body.endswith((".", "?", "!", ",")) else ". "
    return body + separator + row.text("Question").strip()


def _problem(row: Row) -> Problem:
    published = row.text("Answer")
    answer = canonical_number(ERRATA.get((row.text("ID"), published), published))
    if answer is None:
        raise UserError(f"{row.place}: Answer must be a number; got {published!r}.")
    try:
        steps, value = written_out(row.text("Equation"))
    except (SyntaxError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{row.place}: Equation must be arithmetic on numbers; {error}.") from None
    if _number(value) != answer:
        raise UserError(f"{row.place}: Equation must give Answer={answer}; got {_number(value)}.")
    return Problem(
        id=f"svamp-{row.text('ID')}",
        question=_question(row),
        answer=answer,
        solution="\n".join([*steps, f"#### {answer}"]),
    )


def written_out(equation: str) -> tuple[list[str], Fraction]:
    """``( ( 5.0 + 3.0 ) - 2.0 )`` as (["5 + 3 = 8", "8 - 2 = 6"], 6), innermost first."""
    steps: list[str] = []

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.Constant(value=int() | float() as number):
                return Fraction(str(number))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                symbol, function = OPERATORS[type(op)]
                a, b = value(left), value(right)
                result: Fraction = function(a, b)
                steps.append(f"{_number(a)} {symbol} {_number(b)} = {_number(result)}")
                return result
        raise ValueError(f"{ast.unparse(node)} is no calculation")

    return steps, value(ast.parse(equation.strip(), mode="eval").body)


def _number(value: Fraction) -> str:
    text = canonical_number(str(value))
    if text is None:
        raise ValueError(f"{value} has no canonical form")
    return text
