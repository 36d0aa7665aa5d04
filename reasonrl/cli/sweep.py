"""The commands that say what became of a sweep, and do something about it.

``python -m reasonrl.sweep`` has these alone, ``reasonrl`` has all.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from reasonrl.cli import command
from reasonrl.cli.command import (
    AddCommand,
    find_run,
    find_runs_of_sweep,
    find_sweep,
    takes_names,
    takes_outputs,
    takes_sweep,
)
from reasonrl.sweep import slurm
from reasonrl.sweep.manifest import Batch, Submission
from reasonrl.sweep.status import Report, look, tail
from reasonrl.sweep.table import graph, short_names, status_table, summary, watch
from reasonrl.sweep.verdict import ALIVE, UNFINISHED
from reasonrl.util.errors import UserError

FOLLOW_SECONDS = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what ``python -m reasonrl.sweep`` is told; returns the exit status."""
    about = "Says what became of sweeps, and goes on with them. See also: reasonrl --help."
    return command.run("python -m reasonrl.sweep", about, [add_commands], arguments)


def add_commands(add: AddCommand) -> None:
    status = add("status", what="say what became of each run of a sweep", function=_status)
    takes_sweep(status)
    how = status.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="until all runs have ended")
    how.add_argument("--json", action="store_true", help="for programs")
    how.add_argument("--graph", action="store_true", help="which run needs which")

    logs = add("logs", what="show what a run printed", function=_logs)
    logs.add_argument("run", metavar="RUN", help="its folder, or a part of its name")
    logs.add_argument("--lines", type=int, default=40, help="the last so many; 40 by default")
    logs.add_argument("--follow", action="store_true", help="and what is added, until Ctrl-C")

    resubmit = add(
        "resubmit", what="submit again what ended without being done", function=_resubmit
    )
    takes_names(resubmit)
    resubmit.add_argument("--state", help="only these, with commas: failed,timed-out")
    resubmit.add_argument("--memory-gb", type=int, help="of each job, from now on")
    resubmit.add_argument("--hours", type=float, help="of each job, from now on")
    resubmit.add_argument("--partition", help="of each job, from now on")

    cancel = add(
        "cancel", what="end what waits or runs; runs save what they have", function=_cancel
    )
    takes_names(cancel)

    clean = add(
        "clean", what="remove checkpoints and copies of code that nobody needs", function=_clean
    )
    takes_sweep(clean)
    clean.add_argument(
        "--failed", action="store_true", help="also of runs that ended without being done"
    )
    clean.add_argument("--days", type=float, default=7, help="since they ended; 7 by default")
    for parser in (status, logs, resubmit, cancel, clean):
        takes_outputs(parser)
    for changing in (resubmit, cancel, clean):
        changing.add_argument("--yes", action="store_true", help="do it")


def _status(given: argparse.Namespace) -> int:
    sweep = find_sweep(given.outputs, given.sweep)
    console = Console(highlight=False)
    if sweep.cluster == "slurm" and not slurm.available():
        print("There is no Slurm here: no job is taken to be alive.", file=sys.stderr)
    reports = watch(sweep, console) if given.watch else look(sweep)
    if given.json:
        values = {"sweep": str(sweep.path), "runs": [report.values() for report in reports]}
        print(json.dumps(values, indent=2, ensure_ascii=False))
    elif given.graph:
        console.print(graph(reports), soft_wrap=True)
        console.print(summary(reports), style="bold")
    else:
        console.print(status_table(sweep.name, reports), soft_wrap=True)
    return int(any(report.verdict in UNFINISHED for report in reports))


def _logs(given: argparse.Namespace) -> int:
    run = find_run(given.outputs, given.run)
    files = [run.log]
    submission = Submission.read(run)
    if submission and (batch := Batch.read(Path(submission.batch))):
        files.append(batch.log(submission.task))
    files = [file for file in files if file.exists()]
    if not files:
        raise UserError(f"run={run.path} must have begun; it has printed nothing.")
    for file in files:
        print(f"==> {file} <==")
        print("\n".join(tail(file, 1 << 20).splitlines()[-given.lines :]), flush=True)
    if given.follow:
        _follow(files[-1])
    return 0


def _follow(file: Path) -> None:
    with open(file, errors="replace") as text:
        text.seek(0, os.SEEK_END)
        while True:
            print(text.read(), end="", flush=True)
            time.sleep(FOLLOW_SECONDS)


def _resubmit(given: argparse.Namespace) -> int:
    for name, value in (("--memory-gb", given.memory_gb), ("--hours", given.hours)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} must be positive; got {value}.")
    changes: dict[str, Any] = {
        "mem_gb": given.memory_gb,
        "timeout_min": None if given.hours is None else max(1, round(60 * given.hours)),
        "partition": given.partition,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    sweep, names = find_runs_of_sweep(given.outputs, given.names)
    reports = look(sweep)
    chosen = _chosen(reports, names, given.state)
    by_name = {report.member.name: report for report in reports}
    for report in reversed(reports):  # what they need, too, unless it is done or alive
        if report.member.name in chosen:
            chosen |= {n for n in report.member.needs if by_name[n].verdict in UNFINISHED}
    if not chosen:
        print(f"Nothing to submit. {summary(reports)}")
        return 0
    console = Console(highlight=False)
    shown = [report for report in reports if report.member.name in chosen]
    console.print(status_table(sweep.name, shown, logs=False), soft_wrap=True, end="")
    if changes:
        print("with " + ", ".join(f"{name}={value}" for name, value in changes.items()))
    if not given.yes:
        print("Nothing is submitted yet: add --yes.")
        return 0
    from reasonrl.sweep.submit import resubmit  # slower to import

    submitted = resubmit(sweep, [r.member.name for r in shown], changes)
    print(f"submitted: {len(submitted)}")
    return 0


def _chosen(reports: Sequence[Report], names: Sequence[str], states: str | None) -> set[str]:
    """The names of the runs to submit again. Raises UserError for those that can't be."""
    wanted = UNFINISHED if states is None else tuple(states.replace("-", " ").split(","))
    for state in wanted:
        if state not in UNFINISHED:
            options = ", ".join(known.replace(" ", "-") for known in UNFINISHED)
            raise UserError(f"state={state.replace(' ', '-')} must be one of {options}.")
    for report in reports:
        if report.member.name in names and report.verdict not in UNFINISHED:
            raise UserError(
                f"run={report.member.name} must have ended without being done; it is "
                f"{report.verdict}. Leave it out"
                + (", or cancel it first." if report.verdict in ALIVE else ".")
            )
    return {
        report.member.name
        for report in reports
        if report.verdict in wanted and (not names or report.member.name in names)
    }


def _cancel(given: argparse.Namespace) -> int:
    sweep, names = find_runs_of_sweep(given.outputs, given.names)
    if sweep.cluster == "slurm":
        slurm.queue()  # raises where there is no Slurm to be asked
    reports = [report for report in look(sweep) if report.verdict in ALIVE]
    chosen = [report for report in reports if not names or report.member.name in names]
    if not chosen:
        print("Nothing to cancel: none of them waits or runs.")
        return 0
    short = short_names([member.name for member in sweep.runs])
    for report in chosen:
        where = f"job {report.job}" if report.job else "on this machine"
        print(f"{short[report.member.name]}: {report.verdict}, {where}")
    if not given.yes:
        print("Nothing is cancelled yet: add --yes.")
        return 0
    slurm.cancel([report.job for report in chosen if report.job])
    here = [report for report in chosen if not report.job]
    # First the launchers, lest they begin the next. To end one run of many, it has to go on.
    if not names:
        for batch in {r.batch.path: r.batch for r in here if r.batch}.values():
            _stop(batch.host, batch.pid, batch.submitted, f"launcher of {sweep.name}")
    for report in here:
        if report.verdict == "running" and report.status:
            status = report.status
            _stop(status.host, status.pid, status.started, short[report.member.name])
        elif names:
            print(f"{short[report.member.name]} hasn't begun: cancel the whole sweep instead.")
    print(f"told to stop: {len(chosen)}")
    return 0


def _stop(host: str, pid: int, since: str, what: str) -> None:
    """SIGTERM for a process of this host, unless its number is by now another's."""
    import psutil

    if host != socket.gethostname():
        raise UserError(f"{what} must be on this host; got host={host}. Do this there.")
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.create_time() <= datetime.fromisoformat(since).timestamp() + 1:
            process.send_signal(signal.SIGTERM)


def _clean(given: argparse.Namespace) -> int:
    from reasonrl.sweep.clean import leftovers, remove

    sweep = find_sweep(given.outputs, given.sweep)
    if sweep.cluster == "slurm":
        slurm.queue()  # raises where there is no Slurm: nobody would know what is alive
    found = leftovers(sweep, look(sweep), failed=given.failed, days=given.days)
    freed = 0
    for leftover in found:
        if given.yes and not remove(leftover):
            print(f"{leftover.path}: left, somebody works in this run")
            continue
        freed += leftover.size
        print(f"{leftover.size / 1e6:10,.1f} MB  {leftover.path} ({leftover.why})")
    print(f"{freed / 1e6:10,.1f} MB in all" + ("" if given.yes else ": add --yes to remove them"))
    return 0
