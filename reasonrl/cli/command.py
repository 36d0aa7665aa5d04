"""What the commands on many runs share: a parser, and finding the sweep or run of a name."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from reasonrl.runs.folder import RunFolder
from reasonrl.sweep.manifest import MANIFEST, Member, Sweep, short_names
from reasonrl.sweep.overrides import readable_names, with_setting
from reasonrl.util.errors import UserError

Function = Callable[[argparse.Namespace], int]  # does what a command says; its exit status


class AddCommand(Protocol):
    def __call__(self, name: str, *, what: str, function: Function) -> argparse.ArgumentParser: ...


def run(
    program: str,
    about: str,
    groups: Sequence[Callable[[AddCommand], None]],
    arguments: Sequence[str] | None,
) -> int:
    """Parses the arguments and does what they say; returns the exit status.

    program: what people type in front of a command.
    about: what ``--help`` says; its first paragraph stands above the list of commands, the rest
        below it.
    groups: functions that add commands.
    """
    above, _, below = about.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog=program,
        description=above,
        epilog=below,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    def add(name: str, *, what: str, function: Function) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(
            name, help=what, description=what[0].upper() + what[1:] + "."
        )
        added.set_defaults(function=function)
        return added

    for add_commands in groups:
        add_commands(add)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        status: int = given.function(given)
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # such as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def takes_outputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--outputs", type=folder_or_file, default=Path("outputs"), help="folder of sweeps and runs"
    )


def folder_or_file(text: str) -> Path:
    """The path; ``--outputs=~/runs`` reaches Python with its ``~``, unlike ``--outputs ~/runs``."""
    return Path(text).expanduser()


def takes_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="the newest, if none is given")


def takes_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="[SWEEP] [RUN]", help="all runs, if none")


def find_sweep(outputs: Path, name: str | None) -> Sweep:
    """The sweep in this folder, or of this name, or the newest. Raises UserError without one."""
    manifests = list((outputs / "sweeps").glob(f"*/{MANIFEST}"))
    if name is not None:
        folder = sweep_folder(outputs, name)
        if folder is None:
            known = ", ".join(sorted(file.parent.name for file in manifests)) or "none"
            raise UserError(
                f"sweep={name} must be a sweep's folder or its name in {outputs / 'sweeps'}, "
                f"which has: {known}."
            )
        return Sweep.read(folder)
    if not manifests:
        raise UserError(
            f"outputs={outputs} must hold sweeps; there are none. Make one with "
            "python train.py -m, or name the folder with --outputs."
        )
    return Sweep.read(max(manifests, key=lambda file: file.stat().st_mtime).parent)


def find_run(outputs: Path, text: str, key: str = "run") -> RunFolder:
    """The run in this folder, of this name or a part of it, or of a setting in the newest sweep.

    Raises UserError without one.

    key: what the text was given as.
    """
    if not text.strip():
        raise UserError(f"{key} must name a run; got nothing. Pass a part of a run's name.")
    folder = Path(text)
    if not RunFolder(folder).config.exists():
        runs = outputs / "runs"
        known = sorted(f.name for f in runs.iterdir() if f.is_dir()) if runs.is_dir() else []
        swept = [*(outputs / "sweeps").glob(f"*/{MANIFEST}")]
        folder = runs / _match(text, known, find_sweep(outputs, None).runs if swept else (), key)
    return RunFolder(folder)


def find_runs_of_sweep(outputs: Path, names: Sequence[str]) -> tuple[Sweep, list[str]]:
    """The sweep and the whole names of the runs that ``[SWEEP] [RUN ...]`` mean."""
    if names and sweep_folder(outputs, names[0]):
        sweep, names = find_sweep(outputs, names[0]), names[1:]
    else:
        sweep = find_sweep(outputs, None)
    known = [member.name for member in sweep.runs]
    return sweep, [_match(name, known, sweep.runs) for name in names]


def sweep_folder(outputs: Path, name: str) -> Path | None:
    """The folder of this sweep, which may be its name; None if it is no sweep."""
    candidates = (Path(name), outputs / "sweeps" / name)
    return next((folder for folder in candidates if (folder / MANIFEST).exists()), None)


def _match(text: str, names: Iterable[str], members: Sequence[Member], key: str = "run") -> str:
    """The name that the text is, or is a part of. Raises UserError unless exactly one is.

    members: of a sweep, whose runs may be named too by what differs: ``learning_rate=0.001``.
    """
    part = Path(text).name
    names = list(names)
    matches = (
        [name for name in names if name == part]
        or [name for name, short in short_names(names).items() if short == part]
        or [name for name in names if part in name]
        or with_setting(members, text)
        or [name for name, said in readable_names(members).items() if text in said]
    )
    if len(matches) == 1:
        return matches[0]
    listed = ", ".join((matches or names)[:10]) or "none"
    raise UserError(
        f"{key}={text} must be a run's folder, or a part of exactly one run's name; "
        f"it is of {len(matches)}. Choose from: {listed}{', …' if len(names) > 10 else ''}."
    )
