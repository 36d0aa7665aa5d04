"""A table of estimates for a paper, a spreadsheet or a program."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from reasonrl.grading.estimates import Estimate

Cell = str | int | Estimate
ESTIMATE = ("low", "high", "p_value", "n", "seeds")  # what CSV has of an estimate beside its value


def export(rows: Sequence[Mapping[str, Cell]], kind: str) -> str:
    """The rows as text; a cell that a row lacks is empty.

    kind: ``csv`` and ``json`` have every number to the last digit, as fractions; ``latex`` (for the
        package booktabs) and ``markdown`` have percent, with what is established in bold.
    """
    if kind == "json":
        return json.dumps(
            [{k: asdict(c) if isinstance(c, Estimate) else c for k, c in r.items()} for r in rows],
            indent=2,
            ensure_ascii=False,
        )
    import pandas as pd  # it takes half a second

    if kind == "csv":
        return (
            pd.DataFrame([_numbers(row) for row in rows], dtype=object)
            .to_csv(index=False)
            .rstrip("\n")
        )
    columns = list(dict.fromkeys(column for row in rows for column in row))
    frame = pd.DataFrame(
        [[_TEXT[kind](column, row.get(column, "")) for column in columns] for row in rows],
        columns=[_escaped(c) if kind == "latex" else c for c in columns],
    )
    if kind == "markdown":
        return frame.to_markdown(index=False, disable_numparse=True)
    words = sum(all(isinstance(r.get(c, ""), str) for r in rows) for c in columns)
    layout = "l" * words + "r" * (len(columns) - words)
    return str(frame.to_latex(index=False, escape=False, column_format=layout)).rstrip("\n")


def words_of(cell: Cell) -> str:
    """A cell as people read it: counts with commas, estimates in percent."""
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _numbers(row: Mapping[str, Cell]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for column, cell in row.items():
        if isinstance(cell, Estimate):
            values[column] = cell.value
            values |= {f"{column} {name}": getattr(cell, name) for name in ESTIMATE}
        else:
            values[column] = cell
    return values


def is_bold(column: str, cell: Cell) -> bool:
    """Whether a cell holds an established difference; a difference's column is METRIC: WHAT."""
    return ":" in column and isinstance(cell, Estimate) and cell.is_established()


def _markdown(column: str, cell: Cell) -> str:
    text = words_of(cell).replace("|", "\\|")
    return f"**{text}**" if is_bold(column, cell) else text


def _latex(column: str, cell: Cell) -> str:
    text = _escaped(words_of(cell))
    return f"\\textbf{{{text}}}" if is_bold(column, cell) else text


_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
}


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(character, character) for character in text)


_TEXT = {"markdown": _markdown, "latex": _latex}
