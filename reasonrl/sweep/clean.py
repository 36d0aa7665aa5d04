"""What a sweep leaves on the disk that nobody needs any more, and its removal.

1. ``work/`` of a run that is done holds checkpoints if the run's end was cut short.
2. ``work/`` of a run that ended long ago without being done is removed on demand; the run will then
   start over.
3. Copies of the code may be there with which no unfinished run of any sweep is made.
4. Temporary files may be there whose writers died.

A result is never removed, and neither is anything of a run that is alive.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock, Timeout

from reasonrl.runs.folder import RunFolder, is_done
from reasonrl.sweep.manifest import MANIFEST, Submission, Submitted, Sweep
from reasonrl.sweep.status import Finding
from reasonrl.sweep.verdict import ALIVE
from reasonrl.util.atomic import remove_folder, writing

TEMPORARY = ".*~*~*~*.tmp"  # see reasonrl.util.atomic
DAY = 24 * 3600.0  # older temporary files are nobody's, and so is older code that no sweep mentions


@dataclass(frozen=True)
class Leftover:
    """A file or folder to remove."""

    path: Path
    why: str
    size: int  # in bytes
    run: RunFolder | None = None  # the run that it belongs to, if any


def leftovers(
    sweep: Sweep, findings: Sequence[Finding], *, failed: bool, days: float
) -> list[Leftover]:
    """The files and folders to remove.

    failed: whether checkpoints go too of runs that ended `days` ago or earlier without being done.
    """
    found = []
    for finding in findings:
        if finding.verdict in ALIVE:
            continue
        work = finding.run.work
        if work.exists() and finding.verdict == "done":
            found.append(Leftover(work, "checkpoints of a finished run", _size(work), finding.run))
        elif work.exists() and failed and _ended_before(finding, days):
            why = f"checkpoints of a run that is: {finding.verdict}"
            found.append(Leftover(work, why, _size(work), finding.run))
        found += [
            Leftover(path, "abandoned", _size(path), finding.run)
            for path in finding.run.path.rglob(TEMPORARY)
            if work not in path.parents and _age(path) > DAY
        ]
    needed = set(_code_needed(sweep.outputs))
    for code in sorted((sweep.outputs / "code").glob("*")):
        if code.resolve() not in needed and _age(code) > DAY:
            found.append(Leftover(code, "code of finished sweeps", _size(code)))
    return found


def remove(leftover: Leftover) -> bool:
    """Removes a leftover, unless somebody works in its run at this moment; returns whether it did.

    Raises UserError where it can't be removed.
    """
    lock = FileLock(leftover.run.path / ".lock", timeout=0) if leftover.run else nullcontext()
    try:
        with lock, writing(leftover.path):
            if leftover.path.is_dir():
                remove_folder(leftover.path)
            else:
                leftover.path.unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def _code_needed(outputs: Path) -> Iterator[Path]:
    """Yields the folders of code that unfinished runs are made with.

    Raises UserError for a sweep that can't be read, as nobody knows what it needs.
    """
    for manifest in (outputs / "sweeps").glob(f"*/{MANIFEST}"):
        sweep = Sweep.read(manifest.parent)
        unfinished = [run for m in sweep.runs if not is_done(run := sweep.run(m.name))]
        if unfinished:
            yield Path(sweep.code).resolve()
        submissions = filter(None, map(Submission.read, unfinished))
        for folder in {submission.batch for submission in submissions}:
            if batch := Submitted.read(Path(folder)):
                yield Path(batch.code).resolve()


def _ended_before(finding: Finding, days: float) -> bool:
    if finding.status is None:
        return False
    age = datetime.now(UTC) - datetime.fromisoformat(finding.status.heartbeat)
    return age > timedelta(days=days)


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files)
