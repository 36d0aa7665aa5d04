"""The commands that say what became of a sweep, and do something about it.

``python -m reasonrl.sweep`` has these alone, ``reasonrl`` has all commands.
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
from reasonrl.cli.runs import METRICS
from reasonrl.sweep import slurm
from reasonrl.sweep.manifest import Submission, Submitted, Sweep
from reasonrl.sweep.overrides import readable_names
from reasonrl.sweep.said import tail
from reasonrl.sweep.status import Finding, look
from reasonrl.sweep.table import graph, status_table, summary, watch, width_of
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
    resubmit.add_argument("--memory-gb", type=int, help="of each of its nodes, from now on")
    resubmit.add_argument("--hours", type=float, help="of each job, from now on")
    resubmit.add_argument("--nodes", type=int, help="of each job, from now on")
    resubmit.add_argument("--gpus", type=int, help="of each of its nodes, from now on")
    resubmit.add_argument("--cpus", type=int, help="of each of its nodes, from now on")
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
    findings = watch(sweep, console) if given.watch else look(sweep)
    if given.json:
        values = {"sweep": str(sweep.path), "runs": [finding.values() for finding in findings]}
        print(json.dumps(values, indent=2, ensure_ascii=False))
    elif given.graph:
        console.print(graph(findings), soft_wrap=True)
        console.print(summary(findings), style="bold")
    else:
        table = status_table(sweep.name, findings, width=width_of(console))
        console.print(table, soft_wrap=True)
    return int(any(finding.verdict in UNFINISHED for finding in findings))


def _logs(given: argparse.Namespace) -> int:
    run = find_run(given.outputs, given.run)
    files, followed = [run.log], run.log
    submission = Submission.read(run)
    if submission and (batch := Submitted.read(Path(submission.batch))):
        files += batch.logs(submission.task)
        followed = batch.log(submission.task)
    files = [file for file in files if file.exists()]
    if not files:
        raise UserError(f"run={run.path} must have begun; it has printed nothing.")
    for file in files:
        print(f"==> {file} <==")
        print("\n".join(tail(file, 1 << 20).splitlines()[-given.lines :]), flush=True)
    if given.follow:
        _follow(followed if followed.exists() else files[0])
    return 0


def _follow(file: Path) -> None:
    with open(file, errors="replace") as text:
        text.seek(0, os.SEEK_END)
        while True:
            print(text.read(), end="", flush=True)
            time.sleep(FOLLOW_SECONDS)


def _resubmit(given: argparse.Namespace) -> int:
    for name in ("memory_gb", "hours", "nodes", "gpus", "cpus"):
        value = getattr(given, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} must be positive; got {value}.")
    changes: dict[str, Any] = {
        "nodes": given.nodes,
        "gpus_per_node": given.gpus,
        "cpus_per_task": given.cpus,
        "mem_gb": given.memory_gb,
        "timeout_min": None if given.hours is None else max(1, round(60 * given.hours)),
        "partition": given.partition,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    sweep, names = find_runs_of_sweep(given.outputs, given.names)
    findings = look(sweep)
    chosen = _chosen(findings, names, given.state)
    by_name = {finding.member.name: finding for finding in findings}
    for finding in reversed(findings):  # add what they need, unless it is done or alive
        if finding.member.name in chosen:
            chosen |= {n for n in finding.member.needs if by_name[n].verdict in UNFINISHED}
    if not chosen:
        print(f"Nothing to submit. {summary(findings)}")
        return 0
    console = Console(highlight=False)
    shown = [finding for finding in findings if finding.member.name in chosen]
    table = status_table(sweep.name, shown, logs=False, width=width_of(console))
    console.print(table, soft_wrap=True, end="")
    if changes:
        print("with " + ", ".join(f"{name}={value}" for name, value in changes.items()))
    if not given.yes:
        print("Nothing is submitted yet: add --yes.")
        return 0
    from reasonrl.sweep.submit import resubmit  # slower to import

    submitted = resubmit(sweep, [r.member.name for r in shown], changes)
    print(f"submitted: {len(submitted)}")
    if sweep.cluster == "local":  # they are made by now
        return _compare_all(sweep)
    return 0


def _compare_all(sweep: Sweep) -> int:
    """Shows the sweep's runs side by side if all are done, else what became of them."""
    findings = look(sweep)
    asked = [f for f in findings if f.member.overrides is not None and f.member.protocol]
    if any(finding.verdict != "done" for finding in findings):
        print(summary(findings))
        return 1
    if len(asked) > 1:
        from reasonrl.cli.run_tables import compare_sweep  # slower to import

        return compare_sweep(sweep, METRICS)
    return 0


def _chosen(findings: Sequence[Finding], names: Sequence[str], states: str | None) -> set[str]:
    """The names of the runs to submit again. Raises UserError for those that can't be."""
    wanted = UNFINISHED if states is None else tuple(states.replace("-", " ").split(","))
    for state in wanted:
        if state not in UNFINISHED:
            options = ", ".join(known.replace(" ", "-") for known in UNFINISHED)
            raise UserError(f"state={state.replace(' ', '-')} must be one of {options}.")
    for finding in findings:
        if finding.member.name in names and finding.verdict not in UNFINISHED:
            raise UserError(
                f"run={finding.member.name} must have ended without being done; it is "
                f"{finding.verdict}. Leave it out"
                + (", or cancel it first." if finding.verdict in ALIVE else ".")
            )
    return {
        finding.member.name
        for finding in findings
        if finding.verdict in wanted and (not names or finding.member.name in names)
    }


def _cancel(given: argparse.Namespace) -> int:
    sweep, names = find_runs_of_sweep(given.outputs, given.names)
    if sweep.cluster == "slurm":
        slurm.queue()  # raises where there is no Slurm to be asked
    findings = [finding for finding in look(sweep) if finding.verdict in ALIVE]
    chosen = [finding for finding in findings if not names or finding.member.name in names]
    if not chosen:
        print("Nothing to cancel: none of them waits or runs.")
        return 0
    short = readable_names(sweep.runs)
    for finding in chosen:
        where = f"job {finding.job}" if finding.job else "on this machine"
        print(f"{short[finding.member.name]}: {finding.verdict}, {where}")
    if not given.yes:
        print("Nothing is cancelled yet: add --yes.")
        return 0
    slurm.cancel([finding.job for finding in chosen if finding.job])
    here = [finding for finding in chosen if not finding.job]
    # Launchers are stopped first, lest they begin the next run. To end only some of the runs, they
    # have to stay.
    if not names:
        for batch in {r.batch.path: r.batch for r in here if r.batch}.values():
            _stop(batch.host, batch.pid, batch.submitted, f"launcher of {sweep.name}")
    for finding in here:
        if finding.verdict == "running" and finding.status:
            status = finding.status
            _stop(status.host, status.pid, status.started, short[finding.member.name])
        elif names:
            print(f"{short[finding.member.name]} hasn't begun: cancel the whole sweep instead.")
    print(f"told to stop: {len(chosen)}")
    return 0


def _stop(host: str, pid: int, since: str, what: str) -> None:
    """Sends SIGTERM to a process of this host, unless its number is another process's by now."""
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
