"""What became of a run, judged by what it says, what Slurm says and its log. Nothing is read."""

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
    "done",  # the run says so itself
    "running",
    "queued",
    "waiting",  # it is queued, and what it needs isn't done
    "preempted",  # it is queued again after it saved
    "failed",  # the run says so itself, with its error
    "crashed",  # it ended without saying anything
    "out of memory",
    "timed out",
    "node failure",
    "cancelled",  # also if it left the queue before it began
    "blocked",  # what it needs ended without being done
    "to do",  # it was never submitted
]

ALIVE: tuple[Verdict, ...] = ("running", "queued", "waiting", "preempted")
UNFINISHED: tuple[Verdict, ...] = tuple(
    verdict for verdict in get_args(Verdict) if verdict not in ("done", *ALIVE)
)

# Slurm itself writes these into a job's log. "JOB REQUEUE" and "PREEMPTION" don't end a run.
_CANCELLED = re.compile(r"\*\*\* (?:JOB|STEP) \S+ ON \S+ CANCELLED AT \S+(?: DUE TO (.+?))? \*\*\*")
_NODE_FAILURE = re.compile(
    r" CANCELLED AT \S+ DUE TO NODE FAILURE|^srun: error: Node failure on ", re.MULTILINE
)
_MEMORY = re.compile(
    r"(?:slurmstepd\S*|srun): .*(?:oom[-_]kill|Out Of Memory|exceeded memory limit)"
)
# These are written by bash ("Killed" or "job.sh: line 9: 1234 Killed   python"), by srun, and by
# Python's faulthandler.
_SIGNAL = re.compile(
    r"(?:^|: task \S+ |: +\d+ |Python error: )"
    r"(Segmentation fault|Bus error|Aborted|Illegal instruction|Floating point exception|Killed)",
    re.MULTILINE,
)
# A job has a task on each node. When one ends badly srun says so, and ends the others.
_ON_ANOTHER_NODE = re.compile(
    r"^srun: error: (\S+): tasks? (?!0:)\S+: (?:Exited with exit code (\d+)|(.+))$", re.MULTILINE
)
_ENDS_THE_OTHERS = re.compile(r"^srun: (?:\S+ \S+ )?Terminating StepId=", re.MULTILINE)
_QUEUED_AGAIN = re.compile(rf"^(?:.* DUE TO JOB REQUEUE \*\*\*|{re.escape(BACK)})$", re.MULTILINE)
_OF_A_JOB = re.compile(r"^(?!srun: |slurmstepd)\S", re.MULTILINE)  # a line that isn't Slurm's
_ERROR = re.compile(r"^\w[\w.]*(?:: .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Evidence:
    """All that is known about what became of a run."""

    own: Status | None = None  # what the run says itself
    submitted: str | None = None  # when it was submitted last; None if never
    job: bool = False  # whether Slurm took it then
    alive: str | None = None  # the state of its job or its process here, in Slurm's words
    stuck: bool = False  # whether its job stays in the queue for ever
    unlaunched: bool = False  # whether its job is in the queue because it couldn't be begun
    beats: bool = False  # whether its heartbeat is recent
    works_here: bool = False  # whether it is alive for sure, as a process of this machine
    ended: Ended | None = None  # what Slurm says of its last job
    log: str = ""  # the end of that job's log
    needs: Mapping[str, Verdict] = field(default_factory=dict)  # the verdicts on its prerequisites


def judge(evidence: Evidence) -> tuple[Verdict, str]:
    """The verdict on a run, and its reason in one line, or an empty one.

    1. If the run says that it is done, it is.
    2. If it says that it failed since it was submitted last, and no job of it is alive, it has,
       unless that is only what it saw of the death of one of its processes.
    3. If it is alive, its state in the queue decides: what the run said before may be about an
       earlier job, and the clocks of hosts differ.
    4. Else Slurm's word and the log tell how it died, if they can.
    5. Else what it needs, or the last that it said, decides.
    """
    own = evidence.own
    said = own.state if own is not None else None
    fresh = own is not None and (evidence.submitted is None or own.heartbeat >= evidence.submitted)
    error = (own.error if own is not None else None) or ""
    bad = [need for need, verdict in evidence.needs.items() if verdict in UNFINISHED]
    if said == "done":
        return "done", ""
    if said == "failed" and fresh and evidence.alive in {None, "COMPLETING"}:
        return _death_of_a_part(evidence) or ("failed", error)
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
    """The part of a log that the last attempt printed; only that tells how it ended.

    All attempts append to the same log, and each begins by saying so. If one dies before that, its
    part is what follows the line that says that the job was queued again.
    """
    log = log[max(log.rfind(ATTEMPT), 0) :]
    *_, last = [0, *(found.end() for found in _QUEUED_AGAIN.finditer(log))]
    return log[last:] if _OF_A_JOB.search(log, last) else log


def _death_of_a_part(evidence: Evidence) -> tuple[Verdict, str] | None:
    """How some of a run's processes died; None if nothing tells that any did.

    Those that live on only see that they lost the others.
    """
    death = _death(evidence, [], saved=False)
    there = _ON_ANOTHER_NODE.search(_causes(evidence.log))
    if death and (death[0] in ("out of memory", "node failure") or (there and there[3])):
        return death
    return None


def _causes(log: str) -> str:
    """What a log says of the last attempt's end, without what srun made follow from it."""
    return _ENDS_THE_OTHERS.split(last_attempt(log))[0]


def _death(evidence: Evidence, bad: list[str], *, saved: bool) -> tuple[Verdict, str] | None:
    """How a run ended that isn't alive and doesn't say so itself; None if nothing tells."""
    whole, log = last_attempt(evidence.log), _causes(evidence.log)
    cuts = [cut or "" for cut in _CANCELLED.findall(log)]
    cut = cuts[-1] if cuts else None
    state, reason, code = "", "", 0
    if (ended := evidence.ended) is not None:
        state, reason, code = ended.state, ended.reason, ended.exit_code
    if state == "OUT_OF_MEMORY" or _MEMORY.search(whole):
        return "out of memory", ""
    if state in {"TIMEOUT", "DEADLINE"} or cut == "TIME LIMIT":
        return "timed out", "saved before" if saved else ""
    if state in {"NODE_FAIL", "BOOT_FAIL"} or _NODE_FAILURE.search(whole):
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
    if there := _ON_ANOTHER_NODE.search(log):
        node, status, signalled = there.groups()
        how = f"exit status {status}" if status else signalled.replace("Killed", "killed (SIGKILL)")
        return f"{how} on {node}"
    if words := _SIGNAL.findall(log):
        return "killed (SIGKILL)" if words[-1] == "Killed" else str(words[-1])
    _, traceback, text = log.rpartition("\nTraceback (most recent call last):\n")
    if traceback and (error := _ERROR.search(text)):
        return error[0]
    status, number = code >> 8, code & 0x7F
    if status > 128:  # a shell says so of a command that died of a signal
        status, number = 0, status - 128
    if number:
        with suppress(ValueError):
            return f"killed ({signal.Signals(number).name})"
    return f"exit status {status}" if status else ""


def _needs(names: list[str]) -> str:
    return f"needs {', '.join(names)}"
