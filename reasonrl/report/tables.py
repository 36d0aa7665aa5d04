"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from reasonrl.grading.estimates import Estimate
from reasonrl.report.budget import QUANTITIES, Budget
from reasonrl.report.export import words_of


def estimates_table(title: str, estimates: Mapping[str, Estimate]) -> Table:
    """A table of metrics with their 95% intervals over problems."""
    table = Table(title=escape(title), title_justify="left")
    table.add_column("metric")
    table.add_column("value [95% interval]", justify="right")
    for name, estimate in estimates.items():
        table.add_row(name, str(estimate))
    return table


def gains_table(
    title: str,
    before: Mapping[str, Estimate],
    after: Mapping[str, Estimate],
    gains: Mapping[str, Estimate],
    columns: tuple[str, str] = ("before", "after"),
) -> Table:
    """A table of before, after, and their paired difference.

    A row is bold where the difference is established: ``Estimate.is_established``.
    """
    table = Table(title=escape(title), title_justify="left")
    for column in ("metric", *map(escape, columns), "gain, paired [95% interval]"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, gain in gains.items():
        style = "bold" if gain.is_established() else ""
        table.add_row(name, str(before[name]), str(after[name]), f"{gain}", style=style)
    return table


def comparison_table(title: str, rows: Mapping[str, Mapping[str, Estimate]]) -> Table:
    """A table of runs, a row each; a gain or gap is bold where it is established.

    rows: the estimates of each run, by its name; a cell is blank where a run lacks the metric.
    """
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    table = Table(title=escape(title), title_justify="left", show_lines=True)
    table.add_column("run", no_wrap=True)  # where it is narrow, the numbers give way
    for column in columns:
        table.add_column(column.replace(": ", "\n"), justify="right", overflow="fold")
    for name, cells in rows.items():
        table.add_row(escape(name), *(_cell(column, cells.get(column)) for column in columns))
    return table


def budgets_table(budgets: Mapping[str, Budget | None]) -> Table:
    """A table of what runs were given to learn from, a row each; blank where it isn't known."""
    table = Table(title="what each was given, with what it is made from", title_justify="left")
    table.add_column("run", overflow="fold")
    for quantity in QUANTITIES:
        table.add_column(quantity, justify="right")
    for name, budget in budgets.items():
        table.add_row(escape(name), *map(words_of, budget.cells().values() if budget else ()))
    return table


def _cell(column: str, estimate: Estimate | None) -> str:
    """The text of a cell; a column named METRIC: WHAT holds gains."""
    if estimate is None:
        return ""
    text = str(estimate).replace(" [", "\n\\[")  # the interval below; no markup
    return f"[bold]{text}[/]" if ":" in column and estimate.is_established() else text
