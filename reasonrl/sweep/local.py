"""The runs of a sweep as processes of this machine, a few at a time, none before those it needs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from reasonrl.runs.folder import (
    HEARTBEAT_SECONDS,
    RunFolder,
    Status,
    is_done,
    read_status,
    write_status,
)
from reasonrl.sweep.board import Board
from reasonrl.sweep.manifest import SUBMISSION, Member, Submission, Submitted, Sweep

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
MISSED_BEATS = 6  # after so many in a row a process of another host is taken to be dead


def is_alive(run: RunFolder) -> bool:
    """Whether a process makes this run or, as launcher of a sweep on this machine, is about to.

    A process of another host is taken to be alive if its heartbeat is recent. Jobs that wait on
    Slurm don't count.
    """
    status, submission = read_status(run), Submission.read(run)
    if status is not None and status.state == "running" and _works(run, status):
        return True
    batch = Submitted.read(Path(submission.batch)) if submission else None
    if batch is None or batch.cluster != "local" or batch.host != socket.gethostname():
        return False
    return not has_begun(status, batch) and _lives(batch)


def has_begun(status: Status | None, batch: Submitted) -> bool:
    """Whether a run has begun since it was submitted with this batch."""
    return status is not None and status.started >= batch.submitted


def _lives(batch: Submitted) -> bool:
    """Whether the batch's launcher lives.

    By now its process number may belong to another process, which began later.
    """
    try:
        process = psutil.Process(batch.pid)
        submitted = datetime.fromisoformat(batch.submitted).timestamp()
        in_time = process.create_time() <= submitted + 1
        return in_time and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _works(run: RunFolder, status: Status) -> bool:
    if status.host != socket.gethostname():
        age = datetime.now(UTC) - datetime.fromisoformat(status.heartbeat)
        return age.total_seconds() < MISSED_BEATS * HEARTBEAT_SECONDS
    try:
        with FileLock(run.path / ".lock").acquire(timeout=0):
            return False
    except Timeout:
        return True


def make(sweep: Sweep, batch: Submitted, members: Sequence[Member]) -> None:
    """Makes the runs of a batch.

    If one fails, those that need it aren't begun, and the others continue. A run that they need is
    waited for if another process makes it, such as one whose launcher was killed. If runs are made
    one at a time they print to the terminal; else each prints to a file in the batch's folder.
    Interrupted by Ctrl-C or SIGTERM, it lets the runs save, and raises KeyboardInterrupt.
    """
    with Board(sweep, len(members)) as board:
        _make(sweep, batch, members, board)


def _make(sweep: Sweep, batch: Submitted, members: Sequence[Member], board: Board) -> None:
    waiting = list(members)
    working: dict[str, subprocess.Popen[bytes]] = {}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or working:
            for name in [name for name, process in working.items() if process.poll() is not None]:
                _note_end(sweep.run(name), batch, working.pop(name).returncode, board.end(name))
            unmade = {m.name for m in waiting} | working.keys()
            for member in list(waiting):
                if len(working) == sweep.at_once:
                    break
                # Whether it is alive is asked first: once it isn't, it has said whether it is done.
                if any(n in unmade or is_alive(sweep.run(n)) for n in member.needs):
                    continue
                missing = [need for need in member.needs if not is_done(sweep.run(need))]
                waiting.remove(member)
                if missing:
                    logger.error("%s isn't begun: it needs %s", member.name, ", ".join(missing))
                    (sweep.run(member.name).path / SUBMISSION).unlink(missing_ok=True)
                else:
                    board.begin(member.name)
                    working[member.name] = _start(sweep, batch, member.name)
            time.sleep(POLL_SECONDS)
    except BaseException:
        for process in working.values():
            process.send_signal(signal.SIGTERM)
        for name, process in working.items():
            logger.info("waiting for %s to save", name)
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def wait_for(runs: Iterable[RunFolder]) -> None:
    """Waits until no other process makes any of the runs."""
    for run in runs:
        if not is_done(run) and is_alive(run):
            logger.info("waiting for %s, which another process makes", run.path.name)
            while is_alive(run):
                time.sleep(POLL_SECONDS)


def _start(sweep: Sweep, batch: Submitted, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "reasonrl.sweep.worker", str(sweep.run(name).path)]
    path = os.pathsep.join(filter(None, [batch.code, os.environ.get("PYTHONPATH")]))
    where = {
        "cwd": sweep.folder,
        "env": os.environ | {"PYTHONPATH": path},
        "start_new_session": True,  # Ctrl-C reaches only the launcher, which tells them to save
    }
    if sweep.at_once == 1:
        return subprocess.Popen(command, **where)  # type: ignore[call-overload]
    with open(batch.log(batch.runs.index(name)), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, **where)  # type: ignore[call-overload]


def _note_end(run: RunFolder, batch: Submitted, code: int, place: str) -> None:
    """Logs what became of a run; place: which of the batch it was to end, and how long it took.

    If the run ended before it could write a status, a failure is written for it: else it would
    seem to be still to come.
    """
    status = read_status(run)
    if not is_done(run) and not has_begun(status, batch):
        failed = Status.here("failed", attempt=status.attempt + 1 if status else 1)
        status = replace(failed, error=f"exit status {code} before it began")
        write_status(run, status)
    if is_done(run):
        logger.info("done: %s (%s)", run.path.name, place)
    elif status is not None and status.state == "failed":
        logger.error("failed: %s: %s", run.path.name, status.error)
    else:
        logger.error("ended: %s, with exit status %d", run.path.name, code)
