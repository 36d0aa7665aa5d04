"""A table of runs for the terminal, laid out by its width so that no number is cut.

As wide as it wants to be, a setting has a column of its own; where there is less room the settings
are one text, which wraps; where there is still less a run's metrics stand under each other, and in
the end everything does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from reasonrl.grading.estimates import Estimate
from reasonrl.report.catalogue import MAIN
from reasonrl.report.export import Cell, is_bold, words_of

NAMING = ("run", "seeds", "state")  # columns that are no settings
WORDS = 14  # the least width of a column of words that are longer
WIDEST = 10_000


def fitting_table(rows: Sequence[Mapping[str, Cell]], console: Console) -> Table:
    """The rows as the widest table that the console has room for."""
    unlimited = console.options.update(width=WIDEST)
    wide = _table(rows)
    if Measurement.get(console, unlimited, wide).maximum <= console.width:
        return wide
    for layout in (_in_words, _stacked):
        table = _table([layout(row) for row in rows])
        if Measurement.get(console, unlimited, table).minimum <= console.width:
            return table
    return _list(rows)


def word_of(key: str, value: str) -> str:
    """A setting as a word: an option says itself what it is of."""
    return value if f"{key}.name" in MAIN else f"{key}={value}"


def _in_words(row: Mapping[str, Cell]) -> dict[str, Cell]:
    """The row with its settings as one text, which wraps between them where it is narrow."""
    settings = {k: c for k, c in row.items() if isinstance(c, str | int) and k not in NAMING}
    words = " ".join(word_of(k, words_of(cell)) for k, cell in settings.items() if cell != "")
    naming = {key: cell for key, cell in row.items() if key in NAMING}
    numbers = {key: cell for key, cell in row.items() if isinstance(cell, Estimate)}
    return {**naming, "settings": words, **numbers}


def _stacked(row: Mapping[str, Cell]) -> dict[str, Cell | Text]:
    """The row with its metrics under each other: a column for each kind of number."""
    numbers = {c: cell for c, cell in row.items() if isinstance(cell, Estimate)}
    names = [column.partition(": ") for column in numbers]
    metrics = list(dict.fromkeys(metric for metric, _, _ in names))
    stacked: dict[str, Cell | Text] = {"metric": Text("\n".join(metrics))}
    for kind in dict.fromkeys(kind for _, _, kind in names):
        columns = [f"{metric}: {kind}" if kind else metric for metric in metrics]
        lines = (_styled(str(numbers.get(c, "")), c, row.get(c, "")) for c in columns)
        stacked[kind or "value"] = Text("\n").join(lines)
    run, *more = ((k, c) for k, c in row.items() if not isinstance(c, Estimate) and c != "")
    words = " ".join(word_of(key, words_of(cell)) for key, cell in more)
    return {run[0]: run[1], "settings": words, **stacked}


def _list(rows: Sequence[Mapping[str, Cell]]) -> Table:
    """The rows in one column, in which everything wraps."""
    table = Table("runs", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for row in rows:
        words = _in_words(row)
        lines = [Text(" ".join(cell for cell in words.values() if isinstance(cell, str)))]
        for column, cell in words.items():
            if isinstance(cell, Estimate):
                lines.append(_styled(f"  {column}\n    {cell}", column, cell))
        table.add_row(Text("\n").join(lines))
    return table


def _table(rows: Sequence[Mapping[str, Cell | Text]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[_text(column, row.get(column, "")) for column in columns] for row in rows]
    for place, column in enumerate(columns):
        number = any(not isinstance(row.get(column, ""), str) for row in rows)
        head = Text(column.replace(": ", ":\n"))
        parts = [head, *(row[place] for row in cells)]
        widest = max(line.cell_len for part in parts for line in part.split("\n"))
        table.add_column(
            head,
            justify="right" if number else "left",
            no_wrap=number or column == "run",  # where it is narrow, settings give way
            min_width=widest if number else min(widest, WORDS),
            overflow="fold",
        )
    for row in cells:
        table.add_row(*row)
    return table


def _text(column: str, cell: Cell | Text) -> Text:
    if isinstance(cell, Text):
        return cell
    text = str(cell).replace(" [", "\n[") if isinstance(cell, Estimate) else words_of(cell)
    return _styled(text, column, cell)


def _styled(text: str, column: str, cell: Cell) -> Text:
    """A text of a cell: bold where what the cell says is established."""
    return Text(text, "bold" if is_bold(column, cell) else "")
