"""What became of a run, judged by its own word, Slurm's and its log's. Nothing is read here."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, get_args

from reasonrl.runs.folder import Status
from reasonrl.runs.preemption import STOPPED
from reasonrl.sweep.slurm import Ended
from reasonrl.sweep.worker import ATTEMPT, BACK

Verdict = Literal[
    "done",
    "running",
    "queued",
    "waiting",
    "preempted",
    "failed",
    "crashed",
    "out of memory",
    "timed out",
    "node failure",
    "cancelled",
    "blocked",
    "to do",
]
"""
done, failed (with its error): the run's own word.
queued; waiting: queued, and what it needs isn't done; preempted: queued again after it saved.
crashed: it ended without a word. cancelled: also if it left the queue before it began.
blocked: what it needs ended without being done. to do: never submitted.
"""

ALIVE: tuple[Verdict, ...] = ("running", "queued", "waiting", "preempted")
UNFINISHED: tuple[Verdict, ...] = tuple(
    verdict for verdict in get_args(Verdict) if verdict not in ("done", *ALIVE)
)

# What Slurm itself writes into a job's log. "JOB REQUEUE" and "PREEMPTION" are no end.
_CANCELLED = re.compile(r"\*\*\* (?:JOB|STEP) \S+ ON \S+ CANCELLED AT \S+(?: DUE TO (.+?))? \*\*\*")
_MEMORY = re.compile(
    r"(?:slurmstepd\S*|srun): .*(?:oom[-_]kill|Out Of Memory|exceeded memory limit)"
)
# Of bash ("Killed" or "job.sh: line 9: 1234 Killed   python"), of srun, of Python's faulthandler.
_SIGNAL = re.compile(
    r"(?:^|: task \S+ |: +\d+ |Python error: )"
    r"(Segmentation fault|Bus error|Aborted|Illegal instruction|Floating point exception|Killed)",
    re.MULTILINE,
)
_QUEUED_AGAIN = re.compile(rf"^(?:.* DUE TO JOB REQUEUE \*\*\*|{re.escape(BACK)})$", re.MULTILINE)
_OF_A_JOB = re.compile(r"^(?!srun: |slurmstepd)\S", re.MULTILINE)  # and not of Slurm
_ERROR = re.compile(r"^\w[\w.]*(?:: .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Evidence:
    """All that is known about what became of a run."""

    own: Status | None = None  # its own word
    submitted: str | None = None  # when it was last; None if never
    job: bool = False  # whether Slurm took it then
    alive: str | None = None  # Slurm's state of its job or, alike, of a process of this machine
    stuck: bool = False  # whether it is in the queue for ever
    unlaunched: bool = False  # whether it is there because it couldn't be begun
    beats: bool = False  # whether its heartbeat is recent
    works_here: bool = False  # whether it is alive for sure, as a process of this machine
    ended: Ended | None = None  # what Slurm says of its last job
    log: str = ""  # the end of that job's log
    needs: Mapping[str, Verdict] = field(default_factory=dict)  # the verdicts on its prerequisites


def judge(evidence: Evidence) -> tuple[Verdict, str]:
    """What became of a run, and why, in one line where there is something to say.

    Done is the run's own word. Then whether it is alive: what it said before may be of an earlier
    job, and clocks of hosts differ. Then failed, if that is of what was submitted last; then how it
    died.
    """
    own = evidence.own
    said = own.state if own is not None else None
    fresh = own is not None and (evidence.submitted is None or own.heartbeat >= evidence.submitted)
    error = (own.error if own is not None else None) or ""
    bad = [need for need, verdict in evidence.needs.items() if verdict in UNFINISHED]
    if said == "done":
        return "done", ""
    if said == "failed" and fresh and evidence.alive in {None, "COMPLETING"}:
        return "failed", error
    if evidence.stuck or (evidence.alive == "PENDING" and bad):
        return "blocked", _needs(bad)
    if evidence.unlaunched:
        return "node failure", "its job could not be launched, and Slurm holds it"
    if evidence.alive in {"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "CONFIGURING"}:
        waits = [need for need, verdict in evidence.needs.items() if verdict != "done"]
        if waits:
            return "waiting", _needs(waits)
        return ("preempted" if said == "preempted" else "queued"), ""
    if evidence.alive:
        return "running", ""
    outside: tuple[Verdict, str] = ("running", "outside of this sweep's jobs")
    if evidence.works_here:
        return outside
    if death := _death(evidence, bad, saved=fresh and said == "preempted"):
        return death
    if evidence.beats:
        return outside
    if bad:
        return "blocked", _needs(bad)
    if said == "failed":
        return "failed", error
    if said == "preempted":
        return "cancelled", "saved when it was told to stop, and not queued again"
    if said == "running":
        return "crashed", "no trace: killed, or its node failed"
    if evidence.job:
        return "cancelled", "left the queue before it began"
    return "to do", ""


def last_attempt(log: str) -> str:
    """Logs are appended to: only what the last attempt printed tells how it ended.

    One that dies before it says that it has begun is known by what follows its being queued again.
    """
    log = log[max(log.rfind(ATTEMPT), 0) :]
    *_, last = [0, *(found.end() for found in _QUEUED_AGAIN.finditer(log))]
    return log[last:] if _OF_A_JOB.search(log, last) else log


def _death(evidence: Evidence, bad: list[str], *, saved: bool) -> tuple[Verdict, str] | None:
    """How a run ended that isn't alive and has no last word of its own, if anything tells."""
    log = last_attempt(evidence.log)
    cuts = [cut or "" for cut in _CANCELLED.findall(log)]
    cut = cuts[-1] if cuts else None
    state, reason, code = "", "", 0
    if (ended := evidence.ended) is not None:
        state, reason, code = ended.state, ended.reason, ended.exit_code
    if state == "OUT_OF_MEMORY" or _MEMORY.search(log):
        return "out of memory", ""
    if state in {"TIMEOUT", "DEADLINE"} or cut == "TIME LIMIT":
        return "timed out", "saved before" if saved else ""
    if state in {"NODE_FAIL", "BOOT_FAIL"} or (cut or "").startswith("NODE FAILURE"):
        return "node failure", ""
    if state == "CANCELLED" and reason.startswith("Dependency") and bad:
        return "blocked", _needs(bad)
    if state == "CANCELLED" and reason == "DependencyNeverSatisfied":
        return "blocked", "what it needs was not done then"
    if state == "PREEMPTED" or cut == "PREEMPTION":
        return "cancelled", "to make room for another job, and not queued again"
    if cut == "JOB REQUEUE":
        return "cancelled", "while it was queued again"
    if state == "CANCELLED" or cut is not None:
        return "cancelled", ""
    crash = _crash(log, code)
    if saved and (code == STOPPED << 8 or not crash):
        return None  # its exit status says no more than that
    if crash:
        return "crashed", crash
    if state:
        return "crashed", "without a word" if state == "COMPLETED" else f"Slurm says {state}"
    return None


def _crash(log: str, code: int) -> str:
    if words := _SIGNAL.findall(log):
        return "killed (SIGKILL)" if words[-1] == "Killed" else str(words[-1])
    _, traceback, text = log.rpartition("\nTraceback (most recent call last):\n")
    if traceback and (error := _ERROR.search(text)):
        return error[0]
    status, number = code >> 8, code & 0x7F
    if status > 128:  # of a shell whose command died of a signal
        status, number = 0, status - 128
    if number:
        with suppress(ValueError):
            return f"killed ({signal.Signals(number).name})"
    return f"exit status {status}" if status else ""


def _needs(names: list[str]) -> str:
    return f"needs {', '.join(names)}"
