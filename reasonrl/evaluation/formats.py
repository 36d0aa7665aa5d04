"""The formats of files of completions that other systems wrote, one JSON object a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonrl.problems.sources import Row, json_lines
from reasonrl.types import FinishReason
from reasonrl.util.errors import UserError


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one row says of a problem."""

    problem_id: str
    gold: str | None  # the right answer, or a solution that gives it; None: the dataset has it
    completions: list[tuple[str, FinishReason]]  # each text, and how it ended


@dataclass(frozen=True, slots=True)
class Format:
    """A format of rows."""

    keys: frozenset[str]  # those by which it is recognised
    description: str  # its keys, for people
    read: Callable[[Row], Prediction]  # raises UserError, with file and line
    repeats: bool = False  # whether a problem may be there again, with the same completions


def predictions_in(file: Path) -> Iterator[tuple[Row, Prediction]]:
    """The rows of a file and what they say, in the format of the first row.

    Raises UserError, with file and line, for an unknown format, a malformed row, a problem that is
    there twice, and an empty file.
    """
    form: Format | None = None
    seen: set[str] = set()
    for row in json_lines(file):
        form = form or _format_of(row)
        prediction = form.read(row)
        name = prediction.problem_id
        if name not in seen:
            seen.add(name)
            yield row, prediction
        elif not form.repeats:
            raise UserError(f"{row.place}: each problem must be there once; {name} is again.")
    if not seen:
        raise UserError(f"predictions={file} must hold predictions; it is empty.")


def _format_of(row: Row) -> Format:
    for form in FORMATS:
        if form.keys <= row.values.keys():
            return form
    known = "; ".join(form.description for form in FORMATS)
    raise UserError(
        f"{row.place}: must be in a known format; got the keys {', '.join(row.values) or '(none)'}."
        f" The known formats have the keys: {known}."
    )


def _completions(row: Row) -> Prediction:
    return _ended(_own_id(row), row.text("answer"), _texts(row, "completions"))


def _single(key: str) -> Callable[[Row], Prediction]:
    def read(row: Row) -> Prediction:
        text = row.values.get(key)
        if not isinstance(text, str):
            raise UserError(f"{row.place}: {key} must be a text.")
        return _ended(_own_id(row), row.text("answer"), [text])

    return read


def _harness(row: Row) -> Prediction:
    """A row of EleutherAI's lm-evaluation-harness; there is one for each filter of its task."""
    doc = row.values.get("doc")
    target = row.values.get("target")
    if target is None and isinstance(doc, dict):
        target = doc.get("answer", doc.get("target"))
    gold = Row({"target": target}, row.place).text("target")
    key = "resps" if "resps" in row.values else "filtered_resps"
    values = row.values[key]
    if isinstance(values, list) and all(isinstance(value, list) for value in values):
        values = [text for texts in values for text in texts]  # one list for each request
    return _ended(row.text("doc_id"), gold, _texts(Row({key: values}, row.place), key))


def _batch(row: Row) -> Prediction:
    """A line of the output of OpenAI's Batch API."""
    response = row.values.get("response")
    if row.values.get("error") or not isinstance(response, dict):
        raise UserError(
            f"{row.place}: a request must have succeeded; got error={row.values.get('error')}. "
            "Send it again, or remove the line."
        )
    try:
        choices = [_choice(choice) for choice in response["body"]["choices"]]
    except (KeyError, TypeError, AttributeError):
        choices = []
    if not choices:
        raise UserError(
            f"{row.place}: response.body.choices must be a list of one message or more; got "
            f"status_code={response.get('status_code')}."
        )
    return Prediction(row.text("custom_id"), None, choices)


def _choice(choice: dict[str, Any]) -> tuple[str, FinishReason]:
    text = choice["message"].get("content") or ""  # null where the model refused
    return str(text), "length" if choice.get("finish_reason") == "length" else "eos"


def _own_id(row: Row) -> str:
    return row.text("id" if "id" in row.values else "question")


def _texts(row: Row, key: str) -> list[str]:
    texts = row.values.get(key)
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise UserError(f"{row.place}: {key} must be a list of one text or more.")
    return texts


def _ended(problem_id: str, gold: str, texts: list[str]) -> Prediction:
    return Prediction(problem_id, gold, [(text, "eos") for text in texts])


# In the order in which they are tried.
FORMATS = (
    Format(frozenset({"completions"}), "id or question, answer, completions", _completions),
    Format(frozenset({"prediction"}), "id or question, answer, prediction", _single("prediction")),
    Format(frozenset({"completion"}), "id or question, answer, completion", _single("completion")),
    Format(
        frozenset({"doc_id", "resps"}),
        "doc_id, target, resps (lm-evaluation-harness)",
        _harness,
        repeats=True,
    ),
    Format(
        frozenset({"doc_id", "filtered_resps"}),
        "doc_id, target, filtered_resps (the same)",
        _harness,
    ),
    Format(
        frozenset({"custom_id", "response"}), "custom_id, response (OpenAI batch output)", _batch
    ),
)
