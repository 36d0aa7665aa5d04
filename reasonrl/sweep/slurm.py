"""What Slurm knows of our jobs; its commands are asked for it.

Slurm knows which jobs are alive. It forgets after minutes what became of a job, unless there is an
accounting database, and it may be wrong about it in both directions: a run's own status.json is the
truth.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reasonrl.util.errors import UserError

COMMENT = "reasonrl:"  # in front of the batch's folder, in the comment of each of our jobs
TIMEOUT = 60.0  # seconds; a busy controller takes many, a dead one is noticed by the commands in 4
IDS_AT_ONCE = 500  # on a command line
OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}

# Variables that people set for themselves (SQUEUE_FORMAT, SCANCEL_INTERACTIVE) would change what is
# read here.
_PERSONAL = ("SQUEUE_", "SCANCEL_", "SACCT_")


class SlurmError(UserError):
    """Says that one of Slurm's commands failed or didn't answer."""


@dataclass(frozen=True)
class SlurmJob:
    """A job of ours that is alive: pending, running, suspended or completing."""

    id: str  # 17_3, task 3 of array 17, or 17, which is task 0
    array: str
    task: int
    state: str
    reason: str  # why it is pending
    seconds_left: int | None  # until its time limit, all of it while pending; None without one
    batch: Path  # the folder in its comment; task k is the k-th run in there

    @property
    def needs_in_vain(self) -> bool:
        return self.reason == "DependencyNeverSatisfied"

    @property
    def launch_failed(self) -> bool:
        """Whether Slurm holds the job because it couldn't be begun: its node failed just then."""
        reason = self.reason.replace(" ", "_")  # versions differ
        return reason in {"launch_failed_requeued_held", "JobHoldMaxRequeue"}

    @property
    def held(self) -> bool:
        """Whether somebody holds the job, with ``scontrol hold``."""
        return self.reason in {"JobHeldUser", "JobHeldAdmin"}


@dataclass(frozen=True)
class Ended:
    """What became of a job, in Slurm's words."""

    state: str
    reason: str
    exit_code: int  # a raw wait status: 256 for exit 1


def available() -> bool:
    return shutil.which("sbatch") is not None


def queue() -> list[SlurmJob]:
    """This user's jobs with our comment that are alive. Raises SlurmError."""
    output = _run("squeue", "--array", "--noheader", _me(), "--format=%i|%F|%K|%T|%r|%L|%k")
    jobs = []
    for line in output.splitlines():
        id, array, task, state, reason, left, comment = line.split("|", maxsplit=6)
        if comment.startswith(COMMENT):
            jobs.append(
                SlurmJob(
                    id,
                    array,
                    int(task) if task.isdigit() else 0,
                    state,
                    reason,
                    _seconds(left),
                    _batch(comment),
                )
            )
    return jobs


def ended() -> dict[tuple[Path, str], Ended]:
    """Our ended jobs by batch and job id, as far as the controller remembers them.

    It does so for five minutes by default. The id alone isn't enough, because a controller that was
    set up anew begins again with the same ids. Raises SlurmError.
    """
    fields = "JobArrayID:|,State:|,Reason:|,exit_code:|,Comment:"
    output = _run("squeue", "--array", "--noheader", _me(), "--states=all", f"--Format={fields}")
    jobs = {}
    for line in output.splitlines():
        id, state, reason, code, comment = line.strip().split("|", maxsplit=4)
        if state in OVER and comment.startswith(COMMENT):
            jobs[_batch(comment), id] = Ended(state, reason, int(code))
    return jobs


def accounting(ids: Sequence[str]) -> dict[str, Ended]:
    """Those of these jobs that have ended, by id; none where the cluster keeps no accounts."""
    jobs: dict[str, Ended] = {}
    if shutil.which("sacct"):
        for some in _chunks(ids):
            try:
                jobs |= parse_accounting(
                    _run("sacct", "-P", "-n", "-X", "-oJobID,State,ExitCode,Reason", f"-j{some}")
                )
            except SlurmError:  # "accounting storage is disabled"
                return {}
    return jobs


def parse_accounting(text: str) -> dict[str, Ended]:
    """The ended jobs in what ``sacct -P -n -X -o JobID,State,ExitCode,Reason`` prints, by id."""
    jobs = {}
    for line in text.splitlines():
        id, state, code, reason = line.split("|", maxsplit=3)
        state = state.split()[0]  # CANCELLED by 1000
        if "[" not in id and state in OVER:
            status, signal = map(int, code.split(":"))
            jobs[id] = Ended(state, reason, status << 8 | signal)
    return jobs


def cancel(ids: Sequence[str]) -> None:
    """Ends these jobs; those that have already ended are no error. Raises SlurmError."""
    for some in _chunks(ids):
        _run("scancel", "--quiet", *some.split(","))


def requeue(id: str) -> bool:
    """Puts a job back into the queue, unless it is being ended. Raises SlurmError.

    A job that was only warned is still RUNNING. A job that was cancelled, that has reached its time
    limit or that Slurm puts back by itself isn't any more.
    """
    if _run("squeue", "--noheader", f"--jobs={id}", "--format=%T").strip() != "RUNNING":
        return False
    _run("scontrol", "requeue", id)
    return True


def max_array_size() -> int:
    """How many tasks an array may have; its largest index is one less. Raises SlurmError."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _run("scontrol", "show", "config"), re.M)
    if found is None:
        raise SlurmError("scontrol show config must name MaxArraySize; it doesn't.")
    return max(int(found[1]), 1)  # 0 allows no arrays, but a single run is none


def _batch(comment: str) -> Path:
    return Path(comment.removeprefix(COMMENT))


def _me() -> str:
    return f"--user={os.getuid()}"


def _chunks(ids: Sequence[str]) -> Iterator[str]:
    for start in range(0, len(ids), IDS_AT_ONCE):
        yield ",".join(ids[start : start + IDS_AT_ONCE])


def _seconds(text: str) -> int | None:
    """The seconds of ``1-02:03:04``, ``02:03:04`` or ``03:04``.

    UNLIMITED, NOT_SET and INVALID give None.
    """
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _run(*command: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_PERSONAL)}
    environment = {**kept, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            env=environment,
            timeout=TIMEOUT,
            capture_output=True,
            text=True,
            errors="surrogateescape",
        )
    except FileNotFoundError:
        reason = "no such program. Do this where Slurm is, on a login node"
    except subprocess.TimeoutExpired:
        reason = f"nothing in {TIMEOUT:g} s. Try again later"
    else:
        if done.returncode == 0:
            return done.stdout
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        said = lines[-1]
        reason = f"{said.rstrip('.')}. Try again, or ask whoever runs the cluster"
    raise SlurmError(f"{command[0]} must answer; got {reason}.")
