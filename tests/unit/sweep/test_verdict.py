"""What is said of a run."""

import pytest

from reasonrl.sweep.slurm import Ended
from reasonrl.sweep.verdict import Evidence, judge
from tests.helpers.slurm_logs import (
    ABORTED_STEP,
    BEGIN,
    EXIT_HERE,
    EXIT_THERE,
    IMPORT_ERROR,
    KILLED,
    KILLED_STEP,
    KILLED_THERE,
    MEMORY_THERE,
    NODE_FAILURE,
    NODE_FAILURE_THERE,
    OOM,
    OOM_STEP,
    OVER_MEMORY,
    PREEMPTION,
    REQUEUE,
    SCANCEL,
    SCANCEL_STEP,
    SEGFAULT,
    SEGFAULT_STEP,
    SETUP,
    STOPPED,
    SUBMITTED,
    TIMEOUT,
    TIMEOUT_STEP,
    own,
)


def evidence(state: str | None = None, **known: object) -> Evidence:
    """Of a run submitted to Slurm at 10:00, which began at 10:05 if it ever did."""
    values = {"own": own(state) if state else None, "submitted": SUBMITTED, "job": True}
    return Evidence(**(values | known))  # type: ignore[arg-type]


FAILED = Ended("FAILED", "NonZeroExitCode", 256)  # 1 * 256: exit 1
ENDED = Ended("FAILED", "NonZeroExitCode", 137 * 256)  # 128 + 9: the other node's task was killed
LOST = "rank 1: RuntimeError: Connection reset by peer"  # all that is seen of it on another node

# what is known of a run, the verdict, and the reason given
CASES = {
    "never submitted": (Evidence(), "to do", ""),
    "launcher died before sbatch": (evidence(job=False), "to do", ""),
    "done": (evidence("done"), "done", ""),
    "done, says the run; Slurm: TIMEOUT": (
        evidence("done", ended=Ended("TIMEOUT", "TimeLimit", 0), log=TIMEOUT),
        "done",
        "",
    ),
    "done, its job is ending": (evidence("done", alive="COMPLETING"), "done", ""),
    "done before it was submitted": (
        Evidence(own=own("done", "09:00:00"), submitted=SUBMITTED),
        "done",
        "",
    ),
    "exception": (
        evidence(own=own("failed", error="ValueError: boom"), ended=FAILED),
        "failed",
        "ValueError: boom",
    ),
    "sys.exit": (
        evidence(own=own("failed", error="SystemExit: 4"), ended=Ended("FAILED", "x", 4 * 256)),
        "failed",
        "SystemExit: 4",
    ),
    "exception, Slurm: COMPLETED": (
        evidence(own=own("failed", error="E: x"), ended=Ended("COMPLETED", "None", 0)),
        "failed",
        "E: x",
    ),
    "failed before, queued again": (
        evidence(own=own("failed", "09:00:00", error="E: x"), alive="PENDING"),
        "queued",
        "",
    ),
    "failed before, starting": (
        evidence(own=own("failed", "09:00:00", error="E: x"), alive="RUNNING"),
        "running",
        "",
    ),
    "failed before, then killed before it began": (
        evidence(own=own("failed", "09:00:00", error="E: x"), log=SEGFAULT),
        "crashed",
        "Segmentation fault",
    ),
    "failed before, nothing known since": (
        evidence(own=own("failed", "09:00:00", error="E: x"), job=False),
        "failed",
        "E: x",
    ),
    "failed, its job is ending": (
        evidence(own=own("failed", error="E: x"), alive="COMPLETING"),
        "failed",
        "E: x",
    ),
    # The clock of the node where it failed is ahead.
    "failed, queued again in the past": (
        evidence(own=own("failed", error="E: x"), alive="PENDING"),
        "queued",
        "",
    ),
    "failed, begun again in the past": (
        evidence(own=own("failed", error="E: x"), alive="RUNNING"),
        "running",
        "",
    ),
    "queued": (evidence(alive="PENDING"), "queued", ""),
    "running": (evidence("running", alive="RUNNING"), "running", ""),
    "running, loading": (evidence(alive="RUNNING"), "running", ""),
    "ending": (evidence("running", alive="COMPLETING"), "running", ""),
    "requeued after its node failed": (evidence("running", alive="PENDING"), "queued", ""),
    "preempted": (evidence("preempted", alive="PENDING", log=REQUEUE), "preempted", ""),
    "preempted and on again": (evidence("preempted", alive="RUNNING"), "running", ""),
    "waiting": (
        evidence(alive="PENDING", needs={"sft": "running", "orm": "done"}),
        "waiting",
        "needs sft",
    ),
    "what it needs is done": (evidence(alive="PENDING", needs={"sft": "done"}), "queued", ""),
    "never to start": (
        evidence(alive="PENDING", stuck=True, needs={"sft": "failed"}),
        "blocked",
        "needs sft",
    ),
    "never to start, but Slurm doesn't know yet": (
        evidence(alive="PENDING", needs={"sft": "failed", "orm": "done"}),
        "blocked",
        "needs sft",
    ),
    "its node failed as it was to begin": (
        evidence("running", alive="PENDING", unlaunched=True),
        "node failure",
        "its job could not be launched, and Slurm holds it",
    ),
    "cancelled with what it needs": (
        evidence(ended=Ended("CANCELLED", "DependencyNeverSatisfied", 0), needs={"sft": "crashed"}),
        "blocked",
        "needs sft",
    ),
    "the same, forgotten by Slurm": (evidence(needs={"sft": "crashed"}), "blocked", "needs sft"),
    "cancelled while it waited": (
        evidence(ended=Ended("CANCELLED", "Dependency", 0), needs={"sft": "done"}),
        "cancelled",
        "",
    ),
    "cancelled while pending, forgotten": (
        evidence(),
        "cancelled",
        "left the queue before it began",
    ),
    "segfault": (evidence("running", log=SEGFAULT), "crashed", "Segmentation fault"),
    "segfault under srun": (
        evidence("running", log=SEGFAULT_STEP),
        "crashed",
        "Segmentation fault",
    ),
    "segfault, log lost": (
        # bash's 128 + 11, times 256
        evidence("running", ended=Ended("FAILED", "NonZeroExitCode", 35584)),
        "crashed",
        "killed (SIGSEGV)",
    ),
    "abort": (evidence("running", log=ABORTED_STEP), "crashed", "Aborted"),
    "kill -9": (evidence("running", log=KILLED), "crashed", "killed (SIGKILL)"),
    "kill -9 under srun": (evidence("running", log=KILLED_STEP), "crashed", "killed (SIGKILL)"),
    "kill -9 of the script": (
        evidence("running", ended=Ended("FAILED", "JobLaunchFailure", 9)),
        "crashed",
        "killed (SIGKILL)",
    ),
    "out of memory": (evidence("running", log=OOM), "out of memory", ""),
    "out of memory under srun, Slurm: FAILED": (
        evidence("running", log=OOM_STEP, ended=FAILED),
        "out of memory",
        "",
    ),
    "out of memory without cgroups": (evidence("running", log=OVER_MEMORY), "out of memory", ""),
    "out of memory, log lost": (
        evidence("running", ended=Ended("OUT_OF_MEMORY", "OutOfMemory", 253)),
        "out of memory",
        "",
    ),
    "timed out": (evidence("running", log=TIMEOUT), "timed out", ""),
    "timed out under srun": (evidence("running", log=TIMEOUT_STEP), "timed out", ""),
    "timed out, log lost": (
        evidence("running", ended=Ended("TIMEOUT", "TimeLimit", 0)),
        "timed out",
        "",
    ),
    "timed out after it saved": (evidence("preempted", log=TIMEOUT), "timed out", "saved before"),
    "node failure": (
        evidence("running", log=BEGIN, ended=Ended("NODE_FAIL", "NodeDown", 0)),
        "node failure",
        "",
    ),
    "node failure, its daemon lived": (evidence("running", log=NODE_FAILURE), "node failure", ""),
    "node failure, forgotten by Slurm": (
        evidence("running", log=BEGIN),
        "crashed",
        "no trace: killed, or its node failed",
    ),
    "scancel": (evidence("running", log=SCANCEL), "cancelled", ""),
    "scancel under srun": (evidence("running", log=SCANCEL_STEP), "cancelled", ""),
    "scancel, saved in time": (
        evidence("preempted", log=SCANCEL, ended=Ended("CANCELLED", "None", 15)),
        "cancelled",
        "",
    ),
    "told to stop, requeued often enough": (
        evidence("preempted", log=BEGIN, ended=Ended("FAILED", "NonZeroExitCode", 75 * 256)),
        "cancelled",
        "saved when it was told to stop, and not queued again",
    ),
    "queued again, then its setup fails": (
        evidence(
            "preempted",
            log=STOPPED + SETUP,
            ended=Ended("FAILED", "NonZeroExitCode", 127 * 256),
        ),
        "crashed",
        "exit status 127",
    ),
    "queued again, then no torch": (
        evidence("preempted", log=STOPPED + IMPORT_ERROR.removeprefix(BEGIN)),
        "crashed",
        "ModuleNotFoundError: No module named 'torch'",
    ),
    "queued again, then scancel": (
        evidence("preempted", log=STOPPED, ended=Ended("CANCELLED", "None", 0)),
        "cancelled",
        "while it was queued again",
    ),
    "requeued, then segfault": (
        evidence("running", log=REQUEUE + SEGFAULT),
        "crashed",
        "Segmentation fault",
    ),
    "out of memory once, then scancel": (evidence("running", log=OOM + SCANCEL), "cancelled", ""),
    "scancel while queued again": (
        evidence("running", log=REQUEUE),
        "cancelled",
        "while it was queued again",
    ),
    "preempted by Slurm, not queued again": (
        evidence("running", log=PREEMPTION),
        "cancelled",
        "to make room for another job, and not queued again",
    ),
    "setup lines fail": (
        evidence(log=SETUP, ended=Ended("FAILED", "NonZeroExitCode", 127 * 256)),
        "crashed",
        "exit status 127",
    ),
    "no torch": (
        evidence(log=IMPORT_ERROR, ended=FAILED),
        "crashed",
        "ModuleNotFoundError: No module named 'torch'",
    ),
    "cancelled, then made by hand on this machine": (
        evidence("running", beats=True, works_here=True, log=SCANCEL),
        "running",
        "outside of this sweep's jobs",
    ),
    "cancelled a moment ago on another": (
        evidence("running", beats=True, log=SCANCEL),
        "cancelled",
        "",
    ),
    "killed on another node": (
        evidence("running", log=KILLED_THERE, ended=ENDED),
        "crashed",
        "killed (SIGKILL) on ne709-2",
    ),
    "killed on another node, says the run: lost": (
        evidence(own=own("failed", error=LOST), log=KILLED_THERE, ended=ENDED),
        "crashed",
        "killed (SIGKILL) on ne709-2",
    ),
    "failed, then killed on another node for it": (
        evidence(own=own("failed", error="rank 0: E: x"), log=EXIT_HERE, ended=ENDED),
        "failed",
        "rank 0: E: x",
    ),
    "failed on another node": (
        evidence(own=own("failed", error="rank 2: E: x"), log=EXIT_THERE, ended=ENDED),
        "failed",
        "rank 2: E: x",
    ),
    "exit on another node before there was a rank": (
        evidence(log=EXIT_THERE, ended=ENDED),
        "crashed",
        "exit status 3 on ne709-2",
    ),
    "out of memory on another node": (
        evidence(own=own("failed", error=LOST), log=MEMORY_THERE, ended=FAILED),
        "out of memory",
        "",
    ),
    "a rank out of memory": (
        evidence(own=own("failed", error="rank 0: killed by SIGKILL"), log=OOM_STEP, ended=FAILED),
        "out of memory",
        "",
    ),
    "failure of another node": (
        evidence("running", log=NODE_FAILURE_THERE),
        "node failure",
        "",
    ),
    "failure of another node, says the run: lost": (
        evidence(own=own("failed", error=LOST), ended=Ended("NODE_FAIL", "NodeDown", 15)),
        "node failure",
        "",
    ),
    "a deadline": (evidence("running", ended=Ended("DEADLINE", "Deadline", 0)), "timed out", ""),
    "exit status 128, which is no signal's": (
        evidence("running", ended=Ended("FAILED", "NonZeroExitCode", 128 * 256)),
        "crashed",
        "exit status 128",
    ),
    "cut twice in one attempt, the last time by its time limit": (
        evidence("running", log=PREEMPTION + TIMEOUT.removeprefix(BEGIN)),
        "timed out",
        "",
    ),
    "made by hand meanwhile": (
        evidence("running", beats=True),
        "running",
        "outside of this sweep's jobs",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict(case: str) -> None:
    known, verdict, reason = CASES[case]
    assert judge(known) == (verdict, reason)
