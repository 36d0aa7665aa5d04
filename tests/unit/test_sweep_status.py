"""What is said of a run. The logs are from real jobs of Slurm 22.05, but for the last four."""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from filelock import FileLock

from reasonrl.runs import Status, write_status
from reasonrl.sweep import slurm
from reasonrl.sweep.manifest import Batch, Member, Submission, Sweep
from reasonrl.sweep.slurm import Ended, Job, SlurmError, parse_accounting
from reasonrl.sweep.status import Evidence, doomed, judge, look

ROOT = Path(__file__).parents[2]
BEGIN = "reasonrl: attempt 1 of outputs/runs/a\n"
SUBMITTED = "2026-11-22T10:00:00+00:00"

SEGFAULT = BEGIN + "Segmentation fault\n"
SEGFAULT_STEP = BEGIN + "srun: error: n0621-3: task 0: Segmentation fault\n"
ABORTED_STEP = BEGIN + "srun: error: n0621-1: task 0: Aborted\n"
KILLED = BEGIN + "Killed\n"
KILLED_STEP = BEGIN + "srun: error: n0621-2: task 0: Killed\nsrun: Force Terminated StepId=16.0\n"
OOM = (
    BEGIN + "Killed\nslurmstepd-n0621-2: error: Detected 1 oom-kill event(s) in StepId=17.batch. "
    "Some of your processes may have been killed by the cgroup out-of-memory handler.\n"
)
OOM_STEP = (
    BEGIN + "slurmstepd-n0621-3: error: Detected 1 oom-kill event(s) in StepId=18.0. "
    "Some of your processes may have been killed by the cgroup out-of-memory handler.\n"
    "srun: error: n0621-3: task 0: Out Of Memory\n"
)
TIMEOUT = BEGIN + (
    "slurmstepd-n0621-2: error: *** JOB 33 ON n0621-2 CANCELLED AT 2026-11-22T22:21:42 "
    "DUE TO TIME LIMIT ***\n"
)
TIMEOUT_STEP = BEGIN + (
    "slurmstepd-n0621-3: error: *** JOB 34 ON n0621-3 CANCELLED AT 2026-11-22T22:21:42 "
    "DUE TO TIME LIMIT ***\n"
    "slurmstepd-n0621-3: error: *** STEP 34.0 ON n0621-3 CANCELLED AT 2026-11-22T22:21:42 "
    "DUE TO TIME LIMIT ***\n"
    "srun: got SIGCONT\n"
    "srun: Job step aborted: Waiting up to 4 seconds for job step to finish.\n"
    "srun: forcing job termination\n"
    "srun: error: n0621-3: task 0: Terminated\n"
)
SCANCEL = BEGIN + (
    "slurmstepd-n0621-1: error: *** JOB 23 ON n0621-1 CANCELLED AT 2026-11-22T22:19:47 ***\n"
)
SCANCEL_STEP = BEGIN + (
    "srun: got SIGCONT\n"
    "srun: Job step aborted: Waiting up to 4 seconds for job step to finish.\n"
    "slurmstepd-n0621-2: error: *** STEP 24.0 ON n0621-2 CANCELLED AT 2026-11-22T22:19:47 ***\n"
    "slurmstepd-n0621-2: error: *** JOB 24 ON n0621-2 CANCELLED AT 2026-11-22T22:19:47 ***\n"
    "srun: forcing job termination\n"
    "srun: error: n0621-2: task 0: Terminated\n"
)
REQUEUE = BEGIN + (
    "slurmstepd-n0621-2: error: *** JOB 26 ON n0621-2 CANCELLED AT 2026-11-22T22:19:53 "
    "DUE TO JOB REQUEUE ***\n"
)
PREEMPTION = BEGIN + (
    "slurmstepd-n0621-3: error: *** JOB 30 ON n0621-3 CANCELLED AT 2026-11-22T22:20:11 "
    "DUE TO PREEMPTION ***\n"
)
# What a job prints that is told to stop.
STOPPED = (
    BEGIN
    + "reasonrl: saved, and back in the queue\n"
    + REQUEUE.removeprefix(BEGIN)
    + "srun: Job step aborted: Waiting up to 4 seconds for job step to finish.\n"
    "slurmstepd-n0621-2: error: *** STEP 26.0 ON n0621-2 CANCELLED AT 2026-11-22T22:19:53 "
    "DUE TO JOB REQUEUE ***\n"
    "srun: error: n0621-2: task 0: Exited with exit code 75\n"
)
# Made up; the second and third after Slurm's messages.
IMPORT_ERROR = (
    BEGIN + "Traceback (most recent call last):\n"
    '  File "<string>", line 1, in <module>\n'
    "ModuleNotFoundError: No module named 'torch'\n"
)
OVER_MEMORY = (
    BEGIN + "slurmstepd: error: StepId=5.batch exceeded memory limit (218566656 > 52428800), "
    "being killed\n"
)
NODE_FAILURE = BEGIN + (
    "slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026-11-22T22:20:11 "
    "DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***\n"
)
SETUP = "/var/spool/slurmd/job00007/slurm_script: line 9: module: command not found\n"


def own(state: str, time: str = "10:05:00", error: str | None = None) -> Status:
    """By its own word, an attempt that began at that time."""
    stamp = f"2026-11-22T{time}+00:00"
    return Status(state, 1, "elsewhere", 1, stamp, stamp, error)  # type: ignore[arg-type]


def evidence(state: str | None = None, **known: object) -> Evidence:
    """Of a run submitted to Slurm at 10:00, which began at 10:05 if it ever did."""
    values = {"own": own(state) if state else None, "submitted": SUBMITTED, "job": True}
    return Evidence(**(values | known))  # type: ignore[arg-type]


FAILED = Ended("FAILED", "NonZeroExitCode", 256)  # 1 * 256: exit 1

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
        evidence("running", held=True, beats=True, log=SCANCEL),
        "running",
        "outside of this sweep's jobs",
    ),
    "cancelled a moment ago on another": (
        evidence("running", beats=True, log=SCANCEL),
        "cancelled",
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


def test_accounts_are_read() -> None:
    text = (
        "17_0|COMPLETED|0:0|None\n17_1|CANCELLED by 1000|0:15|None\n17_2|OUT_OF_MEMORY|0:125|None\n"
        "17_3|FAILED|4:0|NonZeroExitCode\n17_4|RUNNING|0:0|None\n17_[5-9%4]|PENDING|0:0|Priority\n"
    )
    assert parse_accounting(text) == {
        "17_0": Ended("COMPLETED", "None", 0),
        "17_1": Ended("CANCELLED", "None", 15),
        "17_2": Ended("OUT_OF_MEMORY", "None", 125),
        "17_3": Ended("FAILED", "NonZeroExitCode", 1024),  # 4 * 256
    }


def made_up_sweep(folder: Path, names: list[str], cluster: str = "slurm") -> tuple[Sweep, Batch]:
    """Submitted at 10:00 as job 17, nothing of it begun."""
    code, path = str(folder / "code" / "1a2b3c4d"), folder / "sweeps" / "ei-1a2b3c4d"
    members = [Member(name, []) for name in names]
    sweep = Sweep(path, ["train.py"], ".", SUBMITTED, cluster, code, 1, members)  # type: ignore[arg-type]
    sweep.write()
    job = "17" if cluster == "slurm" else None
    batch = Batch(
        path / "batches" / "0001",
        cluster,  # type: ignore[arg-type]
        names,
        code,
        SUBMITTED,
        socket.gethostname(),
        2**22 + 1,  # above the largest process number
        {},
        job,
    )
    batch.write()
    for task, name in enumerate(names):
        Submission(str(batch.path), task).write(sweep.run(name))
    return sweep, batch


def verdicts(sweep: Sweep) -> dict[str, str]:
    return {report.member.name: report.verdict for report in look(sweep)}


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "available", lambda: False)


def test_what_slurm_said_outlasts_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, batch = made_up_sweep(tmp_path, ["a", "b"])
    write_status(sweep.run("a"), own("running"))
    write_status(sweep.run("b"), own("done"))
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "accounting", lambda _: {})
    monkeypatch.setattr(slurm, "queue", list)
    end, elsewhere = Ended("NODE_FAIL", "NodeDown", 0), Path("/another/batch")
    monkeypatch.setattr(slurm, "ended", lambda: {(elsewhere, "17_0"): end})  # the same id, reused
    assert verdicts(sweep) == {"a": "crashed", "b": "done"}
    monkeypatch.setattr(slurm, "ended", lambda: {(batch.path, "17_0"): end})
    assert verdicts(sweep) == {"a": "node failure", "b": "done"}
    monkeypatch.setattr(slurm, "ended", dict)
    assert verdicts(sweep) == {"a": "node failure", "b": "done"}
    # Once it is in the queue again, that is past.
    alive = Job("17_0", "17", 0, "PENDING", "BeginTime", None, batch.path)
    monkeypatch.setattr(slurm, "queue", lambda: [alive])
    assert verdicts(sweep)["a"] == "queued"


@pytest.mark.usefixtures("no_slurm")
def test_a_batch_whose_launcher_died_is_known_by_its_logs(tmp_path: Path) -> None:
    sweep, batch = made_up_sweep(tmp_path, ["a", "b"])
    replace(batch, job=None).write()
    (batch.path / "21_1_0_log.out").write_text(SEGFAULT)
    assert verdicts(sweep) == {"a": "to do", "b": "crashed"}
    assert look(sweep)[1].job == "21_1"


@pytest.mark.usefixtures("no_slurm")
def test_also_if_it_is_of_one_run(tmp_path: Path) -> None:
    sweep, batch = made_up_sweep(tmp_path, ["a"])
    replace(batch, job=None).write()
    (batch.path / "21_0_log.out").write_text(OOM)
    assert verdicts(sweep) == {"a": "out of memory"}
    assert look(sweep)[0].job == "21"


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What is in Slurm's queue; nothing has ended."""
    jobs: list[Job] = []
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "accounting", lambda _: {})
    monkeypatch.setattr(slurm, "ended", dict)
    monkeypatch.setattr(slurm, "queue", lambda: jobs)
    return jobs


def test_runs_of_the_same_names_in_other_outputs_are_others(
    tmp_path: Path, queued: list[Job]
) -> None:
    sweep, _ = made_up_sweep(tmp_path / "one", ["a"])
    other, batch = made_up_sweep(tmp_path / "two", ["a"])
    queued.append(Job("17", "17", 0, "PENDING", "Priority", None, batch.path))
    assert verdicts(sweep) == {"a": "cancelled"}
    assert verdicts(other) == {"a": "queued"}


def test_slurm_is_not_asked_about_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent() -> list[Job]:
        raise SlurmError("squeue must answer; got nothing.")

    sweep, _ = made_up_sweep(tmp_path, ["a", "b"])
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "queue", silent)
    write_status(sweep.run("a"), own("done"))
    with pytest.raises(SlurmError):
        look(sweep)
    write_status(sweep.run("b"), own("done"))
    assert verdicts(sweep) == {"a": "done", "b": "done"}


def test_a_job_that_will_never_find_its_orders_is_not_alive(
    tmp_path: Path, queued: list[Job]
) -> None:
    """submitit writes them after sbatch; the launcher died between the two."""
    sweep, batch = made_up_sweep(tmp_path, ["a", "b"])
    replace(batch, job=None).write()
    queued += [Job(f"21_{k}", "21", k, "RUNNING", "None", 60, batch.path) for k in range(2)]
    (batch.path / "21_1_submitted.pkl").write_text("")
    assert verdicts(sweep) == {"a": "to do", "b": "running"}
    assert doomed(sweep.outputs) == ["21_0"]
    replace(batch, job="21").write()
    assert doomed(sweep.outputs) == []


@pytest.mark.parametrize(
    ("held", "verdict", "why"),
    [
        ("launch failed requeued held", "node failure", "its job could not be launched"),
        ("launch_failed_requeued_held", "node failure", "its job could not be launched"),
        ("JobHoldMaxRequeue", "node failure", "its job could not be launched"),
        ("JobHeldUser", "queued", "held: scontrol release 17 lets it begin"),
        ("JobHeldAdmin", "queued", "held: scontrol release 17 lets it begin"),
        ("Priority", "queued", ""),
    ],
)
def test_a_job_that_slurm_holds(
    tmp_path: Path, queued: list[Job], held: str, verdict: str, why: str
) -> None:
    sweep, batch = made_up_sweep(tmp_path, ["a"])
    queued.append(Job("17", "17", 0, "PENDING", held, None, batch.path))
    (report,) = look(sweep)
    assert report.verdict == verdict
    assert report.reason.startswith(why)


def test_a_run_whose_heart_does_not_beat_may_hang(tmp_path: Path, queued: list[Job]) -> None:
    sweep, batch = made_up_sweep(tmp_path, ["a"])
    queued.append(Job("17", "17", 0, "RUNNING", "None", 60, batch.path))
    assert look(sweep)[0].reason == ""  # it loads
    now = datetime.now(UTC)
    for seconds, reason in ((55, ""), (130, "no sign of life for 2 min")):
        beat = (now - timedelta(seconds=seconds)).isoformat(timespec="seconds")
        write_status(sweep.run("a"), Status("running", 1, "node1", 1, beat, beat))
        (report,) = look(sweep)
        assert (report.verdict, report.reason) == ("running", reason)


def test_a_run_made_by_hand_has_no_job(tmp_path: Path, queued: list[Job]) -> None:
    assert not queued
    sweep, batch = made_up_sweep(tmp_path, ["a"])
    batch.log(0).write_text(SCANCEL)
    write_status(sweep.run("a"), Status.here("running", 2))
    with FileLock(sweep.run("a").path / ".lock"):
        (report,) = look(sweep)
    assert (report.verdict, report.reason) == ("running", "outside of this sweep's jobs")
    assert report.job is None
    (report,) = look(sweep)
    assert (report.verdict, report.job) == ("cancelled", "17")


@pytest.mark.usefixtures("no_slurm")
def test_progress_and_metric_come_from_the_end_of_files(tmp_path: Path) -> None:
    sweep, _ = made_up_sweep(tmp_path, ["a", "b", "c"])
    sweep.run("a").metrics.write_text(
        '{"step": 0, "eval/validation_maj@1": 0.25}\n' + '{"step": 1499, "ei/loss": 1e-2}\n' * 9
    )
    sweep.run("b").metrics.write_text('{"step": 1, "ei/loss": 5e-1}\n{"step": 2, "ei/lo')
    a, b, c = look(sweep)
    assert (a.progress, a.metric) == ("step 1,499", "validation 0.250")
    assert (b.progress, b.metric) == ("step 2", "loss 0.500")
    assert (c.progress, c.metric) == ("", "")


def test_on_this_machine_a_run_lives_as_its_process_does(tmp_path: Path) -> None:
    sweep, _ = made_up_sweep(tmp_path, ["a", "b"], cluster="local")
    code = (
        "import sys; from pathlib import Path; from reasonrl.runs import RunFolder, running\n"
        "with running(RunFolder(Path(sys.argv[1]))):\n    print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(sweep.run("a").path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert verdicts(sweep) == {"a": "running", "b": "to do"}
        process.kill()
    assert verdicts(sweep) == {"a": "crashed", "b": "to do"}


@pytest.mark.slow
def test_status_of_a_thousand_runs(tmp_path: Path) -> None:
    """A quarter each done, failed, dead and preempted; without the queue, which takes 0.02 s."""
    names = [f"ei-sparse-tiny-sft-stories-s{n}-{n:08x}" for n in range(1000)]
    sweep, batch = made_up_sweep(tmp_path, names)
    for task, name in enumerate(names):
        run = sweep.run(name)
        state = ("done", "failed", "running", "preempted")[task % 4]
        values = {"state": state, "attempt": 1, "host": "elsewhere", "pid": 1}
        run.status.write_text(
            json.dumps(values | {"started": SUBMITTED, "heartbeat": SUBMITTED, "error": None})
        )
        run.metrics.write_text('{"step": 1, "ei/loss": 0.5, "ei/grad_norm": 0.25}\n' * 1000)
        end = STOPPED if state == "preempted" else SEGFAULT
        batch.log(task).write_text(BEGIN + "a line of a log\n" * 2000 + end)
    # No sbatch on this PATH.
    command = [sys.executable, "-m", "reasonrl.sweep", "status", "--outputs", str(tmp_path)]
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.monotonic() - started
    print(f"status of 1,000 runs: {seconds:.2f} s")
    assert re.search("1000 runs: 250 done, 250 failed, 250 crashed, 250 cancelled", done.stdout)
    assert seconds < 2  # of a machine that is busy with other things; 0.4 s of one that isn't
    shutil.rmtree(tmp_path / "runs")
