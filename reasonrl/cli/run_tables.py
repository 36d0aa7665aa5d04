"""What the commands on runs print, and what they remove."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reasonrl.cli.command import find_run, find_sweep, sweep_folder
from reasonrl.config.identity import prerequisites
from reasonrl.report.budget import NOT_COMPARED, TOLERANCE, unequal
from reasonrl.report.catalogue import (
    MAIN,
    SEED,
    Entry,
    by_seed,
    chosen,
    differing,
    read_catalogue,
    short_keys,
    telling,
    text_of,
)
from reasonrl.report.comparison import Row, compared, results
from reasonrl.report.export import Cell, export
from reasonrl.report.fitting import WIDEST, fitting_table, word_of
from reasonrl.runs.folder import run_folder
from reasonrl.runs.provenance import differences, hardware, software
from reasonrl.sweep.manifest import Sweep
from reasonrl.util.atomic import remove_folder
from reasonrl.util.errors import UserError


def list_runs(given: argparse.Namespace) -> int:
    entries = _entries(given)
    if not entries and given.format == "table":
        print("No run is meant.")
        return 0
    groups = by_seed(entries) if given.seeds else [[entry] for entry in entries]
    _show(results(groups, given.metrics), _shared(entries), given)
    return 0


def compare_runs(given: argparse.Namespace) -> int:
    entries = _entries(given)
    groups = by_seed(entries) if given.seeds else [[entry] for entry in entries]
    if len(groups) < 2:
        together = " after runs of several seeds were put together" if given.seeds else ""
        raise UserError(
            f"compare must mean two runs or more, by their names or by --where; got {len(groups)}"
            f"{together}."
        )
    differs = unequal({entry.name: entry.budget for entry in entries})
    if refused := [text for name, text in differs.items() if name not in given.may_differ]:
        raise UserError(
            f"compare must be given runs with equal budgets, to {TOLERANCE:.0%}; these differ in "
            f"{'; '.join(refused)}. To compare them all the same, add --may-differ "
            f"{' '.join(differs)}."
        )
    _show(compared(groups, given.metrics), _shared(entries), given)
    if given.format == "table":
        console = Console(highlight=False)
        console.print(
            "Differences are paired by problem"
            + (" and seed" if given.seeds else "")
            + "; bold: p < 0.05 after Holm's correction for their number.",
            soft_wrap=True,
        )
        if differs:
            console.print(f"Budgets differ in {'; '.join(differs.values())}.", soft_wrap=True)
        machines = {e.name: _made_with(e) for e in entries}
        if said := differences(machines):
            console.print(said, markup=False, soft_wrap=True)
    return 0


def compare_sweep(sweep: Sweep, metrics: Sequence[str]) -> int:
    """As ``reasonrl compare SWEEP`` without options.

    Runs with unequal budgets are listed with their gains on their starts instead, and a line says
    in what they differ.
    """
    given = {"runs": [str(sweep.path)], "where": [], "outputs": sweep.outputs, "protocol": None}
    shown = {"seeds": False, "metrics": metrics, "format": "table", "plot": None}
    asked = argparse.Namespace(**given, **shown, may_differ=[])
    differs = unequal({entry.name: entry.budget for entry in _entries(asked)})
    if not differs:
        return compare_runs(asked)
    list_runs(asked)
    print(NOT_COMPARED.format("; ".join(differs.values())))
    return 0


def diff_runs(given: argparse.Namespace) -> int:
    catalogue = read_catalogue(given.outputs)
    pair = [_find(catalogue, given.outputs, text) for text in (given.one, given.other)]
    table = Table(title=None)
    for head in ("setting", *(entry.name for entry in pair)):
        table.add_column(escape(head), overflow="fold")
    for key, values in differing(pair, lacking=True).items():
        table.add_row(escape(key), *map(escape, values))
    Console(highlight=False).print(table if table.row_count else "They have the same settings.")
    if said := differences({entry.name: _made_with(entry) for entry in pair}):
        print(said)
    return 0


def remove_runs(given: argparse.Namespace) -> int:
    if not (given.runs or given.where):
        raise UserError("remove must be told which runs: a part of each one's name, or --where.")
    catalogue = read_catalogue(given.outputs)
    going = _chosen(catalogue, given)
    names = {entry.name for entry in going}
    for entry in going:
        size = sum(f.stat().st_size for f in entry.run.path.rglob("*") if f.is_file())
        print(f"{entry.name} ({entry.state}), {size / 1e6:,.1f} MB")
    for entry in catalogue:
        needed = _needs(entry) & names
        if entry.name not in names and needed:
            print(f"{entry.name} ({entry.state}) is made from {', '.join(sorted(needed))}")
    if not given.yes:
        print("Nothing is removed yet: add --yes." if going else "No run is meant.")
        return 0
    for entry in going:
        try:
            with FileLock(entry.run.path / ".lock", timeout=0):
                remove_folder(entry.run.path)
        except Timeout:
            raise UserError(
                f"run={entry.name} must not be worked on; a process makes it. Cancel it first."
            ) from None
    print(f"removed: {len(going)}")
    return 0


def _made_with(entry: Entry) -> dict[str, str]:
    return hardware(entry.run.provenance) | software(entry.run.provenance)


def _needs(entry: Entry) -> set[str]:
    """The names of the runs that a run is directly made from."""
    names = {run_folder(config).path.name for config in prerequisites(entry.config).values()}
    for finished in (entry.config.init.run, entry.config.reward.finished_run()):
        if finished is not None:
            names.add(Path(finished).name)
    return names


def _entries(given: argparse.Namespace) -> list[Entry]:
    return _chosen(read_catalogue(given.outputs, given.protocol), given)


def _chosen(catalogue: Sequence[Entry], given: argparse.Namespace) -> list[Entry]:
    named = [entry for text in given.runs for entry in _meant(catalogue, given.outputs, text)]
    return chosen(named if given.runs else catalogue, given.where)


def _meant(catalogue: Sequence[Entry], outputs: Path, text: str) -> list[Entry]:
    """The run that the text names, or of a sweep those asked for that make a policy and began."""
    if sweep_folder(outputs, text) is None:
        return [_find(catalogue, outputs, text)]
    asked = [one.name for one in find_sweep(outputs, text).runs if one.overrides is not None]
    by_name = {entry.name: entry for entry in catalogue if entry.run.protocol is not None}
    return [by_name[name] for name in asked if name in by_name]


def _find(catalogue: Sequence[Entry], outputs: Path, text: str) -> Entry:
    name = find_run(outputs, text).path.resolve().name
    for entry in catalogue:
        if entry.name == name:
            return entry
    raise UserError(f"run={text} must be a run that can be read.")


def _shared(entries: Sequence[Entry]) -> str:
    """A line with what all runs have in common."""
    differs = differing(entries)
    same = [key for key in MAIN if entries and key not in differs and key in entries[0].settings]
    short = short_keys(same)
    return ", ".join(f"{short[key]}={text_of(entries[0].settings[key])}" for key in same)


def _cells(rows: Sequence[Row], seeds: bool) -> list[dict[str, Cell]]:
    """The rows, with what differs between them in front; a run is named by its name's end."""
    firsts = [row.entries[0] for row in rows]
    settings = _settings(rows, seeds)
    protocols = {first.run.protocol for first in firsts} - {None}
    all_done = all(e.state == "done" for row in rows for e in (*row.entries, *row.lacking))
    cells = []
    for place, row in enumerate(rows):
        states = sorted({entry.state for entry in row.entries})
        own: dict[str, Cell] = {"run": firsts[place].name.rpartition("-")[2]}
        own |= settings[place]
        if len(protocols) > 1:
            own["evaluated by"] = firsts[place].run.protocol or ""
        if seeds:
            own["seeds"] = ",".join(str(entry.config.seed) for entry in row.entries)
        if not all_done:
            lacking = [f"seed {entry.config.seed} {entry.state}" for entry in row.lacking]
            own["state"] = ", ".join([*states, *lacking])
        own |= _budget(row)
        cells.append({**own, **row.estimates})
    return cells


def _names(rows: Sequence[Row], seeds: bool) -> list[str]:
    """What differs between the rows, for each; the end of its run's name where nothing does."""
    names = []
    for row, settings in zip(rows, _settings(rows, seeds), strict=True):
        words = " ".join(word_of(key, value) for key, value in settings.items() if value)
        names.append(words or row.entries[0].name.rpartition("-")[2])
    return names


def _settings(rows: Sequence[Row], seeds: bool) -> list[dict[str, str]]:
    """Of each row the settings that tell the rows apart, by their short keys."""
    columns = telling([row.entries[0] for row in rows], without=[SEED] if seeds else [])
    short = short_keys(columns)
    return [{short[k]: v[place] for k, v in columns.items()} for place in range(len(rows))]


def _budget(row: Row) -> dict[str, Cell]:
    """The budget of a row's run, or of the first of its seeds; nothing if it isn't known."""
    budget = row.entries[0].budget
    return {} if budget is None else dict(budget.cells())


def _show(found: Sequence[Row], shared: str, given: argparse.Namespace) -> None:
    """Prints the rows as a table, or in another format, and draws them if that is asked for."""
    if given.plot is not None:
        from reasonrl.report.intervals import draw_intervals  # it takes half a second

        draw_intervals(_names(found, given.seeds), [row.estimates for row in found], given.plot)
    rows = _cells(found, given.seeds)
    if given.format != "table":
        print(export(rows, given.format))
        return
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDEST  # of a file, which has no width
    if shared:
        console.print(f"all: {shared}", markup=False, soft_wrap=True)
    console.print(fitting_table(rows, console))
