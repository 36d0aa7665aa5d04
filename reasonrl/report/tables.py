"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from reasonrl.metrics import Estimate


def estimates_table(title: str, estimates: Mapping[str, Estimate]) -> Table:
    """Metrics with their 95% bootstrap intervals over problems."""
    table = Table(title=title, title_justify="left")
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
) -> Table:
    """Before, after, and the paired difference; bold where its interval excludes 0."""
    table = Table(title=title, title_justify="left")
    for column in ("metric", "before", "after", "gain, paired [95% interval]"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, gain in gains.items():
        style = "bold" if gain.excludes_zero() else ""
        table.add_row(name, str(before[name]), str(after[name]), f"{gain}", style=style)
    return table
