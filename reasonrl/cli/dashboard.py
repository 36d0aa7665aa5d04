"""The commands that show many runs: a page of a sweep, and Weights & Biases.

``python -m reasonrl.dashboard`` has these alone, ``reasonrl`` has all commands. Nothing here
imports torch, so that it can be used on login nodes. Plotly and W&B take long to import, so they
are only imported when they are needed.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from reasonrl.cli import command
from reasonrl.cli.command import (
    AddCommand,
    find_run,
    find_sweep,
    folder_or_file,
    takes_outputs,
    takes_sweep,
)
from reasonrl.config.tracking.wandb import WandbConfig
from reasonrl.runs.folder import RunFolder, is_done, read_config, run_folder
from reasonrl.sweep.manifest import Member, Sweep
from reasonrl.sweep.overrides import settings
from reasonrl.sweep.slurm import SlurmError
from reasonrl.sweep.status import look
from reasonrl.util.atomic import write_text
from reasonrl.util.errors import UserError

PAGE = "index.html"
PROJECT = "reasonrl"
WITHOUT = WandbConfig("wandb", "auto", PROJECT, None, None, tags=[], timeout_seconds=60)


def write_page(folder: Path, output: Path | None) -> Path:
    """Makes the page of a sweep, however far it is; returns the file.

    Raises UserError if there is no sweep in the folder.

    output: the file; None: ``index.html`` in the sweep's folder.
    """
    from reasonrl.report.page import page
    from reasonrl.report.run_data import RunData, read_run

    sweep = Sweep.read(folder)
    verdicts: dict[str, tuple[str, str]] = {}
    note = ""
    try:
        verdicts = {
            finding.member.name: (finding.verdict, finding.reason) for finding in look(sweep)
        }
    except SlurmError as error:
        note = f"States are the runs' own word, and may be out of date: {error}"

    differs = settings(sweep.runs)

    def read(member: Member) -> RunData:
        name, run = member.name, sweep.run(member.name)
        data = read_run(run, member.overrides, member.needs, verdicts.get(name))
        return replace(data, settings=differs.get(name, []))

    with ThreadPoolExecutor() as pool:  # a cluster's file system answers slowly, but many at once
        runs = list(pool.map(read, sweep.runs))
    protocols = sorted({data.protocol for data in runs if data.protocol})
    if protocols:
        note = " ".join([note, f"Policies are evaluated by {', '.join(protocols)}."]).strip()
    made = datetime.now(UTC).isoformat(timespec="seconds")
    file = output or folder / PAGE
    write_text(file, page(sweep.name, pasteable(sweep.command), sweep.created, made, runs, note))
    return file


def pasteable(command: Sequence[str]) -> str:
    """A sweep's command for a shell, without Hydra's own settings except for the sweeper's.

    The sweeper's decide what runs there are. The others decide nothing of the results, and some,
    such as a job's setup, may hold what isn't for everybody.
    """
    kept = [
        argument
        for argument in command
        if not re.match(r"[+~]*hydra[./=@]", argument)
        or re.match(r"[+~]*hydra[./]sweeper\b", argument)
    ]
    return shlex.join(["python", *kept])


def mirror(run: RunFolder, **given: str | None) -> None:
    """Shows a finished run in W&B as if it had been mirrored all along; offline without a login.

    This is for runs that were made without W&B, or whose mirror broke. Raises UserError if the run
    isn't done, or if W&B doesn't take it.

    given: entity, project and group, instead of those that the run was made with.
    """
    from reasonrl.problems import load_problems
    from reasonrl.report.wandb_mirror import mirrored

    config = read_config(run)
    if not is_done(run):
        raise UserError(f"run={run.path} must be done; it isn't. Give its command again.")
    run = replace(run, protocol=run_folder(config).protocol)
    tracking: Any = config.tracking if config.tracking.name == WITHOUT.name else WITHOUT
    named: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    config = replace(config, tracking=replace(tracking, mode="auto", **named))
    problems = load_problems(config.dataset, config.evaluation.split)
    with mirrored(run, config) as mirroring:
        mirroring.complete({problem.id: problem.question for problem in problems})
    if not mirroring.works:
        raise UserError(
            f"run={run.path} must be taken by W&B; it wasn't. See above, or unset WANDB_MODE."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what ``python -m reasonrl.dashboard`` is told; returns the exit status."""
    about = "Shows many runs side by side. See also: reasonrl --help."
    groups = [partial(add_commands, page="html")]
    return command.run("python -m reasonrl.dashboard", about, groups, arguments)


def add_commands(add: AddCommand, page: str = "page") -> None:
    text = "write a page of a sweep that any browser opens, also offline"
    html = add(page, what=text, function=_page)
    takes_sweep(html)
    html.add_argument(
        "--output", type=folder_or_file, metavar="FILE", help=f"instead of SWEEP/{PAGE}"
    )

    text = "show finished runs in W&B that were made without it"
    mirroring = add("mirror", what=text, function=_mirror)
    mirroring.add_argument(
        "runs", nargs="+", metavar="RUN", help="its folder, or a part of its name"
    )
    mirroring.add_argument("--group", metavar="NAME", help="as it was made, unless given")

    text = "save a workspace for these runs in W&B, as a new view"
    pushing = add("push", what=text, function=_push)

    for parser, project in ((pushing, PROJECT), (mirroring, None)):
        whose = "you" if project else "as it was made"
        parser.add_argument("--entity", metavar="TEAM", help=f"{whose}, unless given")
        text = f"{project or 'as it was made'}, unless given"
        parser.add_argument("--project", default=project, metavar="NAME", help=text)
    for parser in (html, mirroring):
        takes_outputs(parser)


def _page(given: argparse.Namespace) -> int:
    print(write_page(find_sweep(given.outputs, given.sweep).path, given.output))
    return 0


def _mirror(given: argparse.Namespace) -> int:
    for run in given.runs:
        named = {"entity": given.entity, "project": given.project, "group": given.group}
        mirror(find_run(given.outputs, run), **named)
    return 0


def _push(given: argparse.Namespace) -> int:
    from reasonrl.report.workspace import push

    print(push(given.entity, given.project))
    return 0
