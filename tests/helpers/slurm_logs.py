"""What jobs of Slurm leave behind: logs of real jobs of Slurm 22.05, but for the last four."""

from __future__ import annotations

from reasonrl.runs.folder import Status

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


# Of jobs of two nodes, with a task on each: what is printed on the first.
KILLED_THERE = BEGIN + (
    "srun: error: ne709-2: task 1: Killed\n"
    "srun: launch/slurm: _step_signal: Terminating StepId=10.0\n"
    "slurmstepd-ne709-1: error: *** STEP 10.0 ON ne709-1 CANCELLED AT 2026-11-29T07:17:26 ***\n"
    "srun: error: ne709-1: task 0: Killed\n"
    "srun: Force Terminated StepId=10.0\n"
)
EXIT_THERE = KILLED_THERE.replace("task 1: Killed", "task 1: Exited with exit code 3")
EXIT_HERE = BEGIN + (
    "srun: error: ne709-1: task 0: Exited with exit code 1\n"
    "srun: launch/slurm: _step_signal: Terminating StepId=9.0\n"
    "slurmstepd-ne709-2: error: *** STEP 9.0 ON ne709-1 CANCELLED AT 2026-11-29T07:17:26 ***\n"
    "srun: error: ne709-2: task 1: Killed\n"
)
MEMORY_THERE = BEGIN + (
    "srun: error: ne709-2: task 1: Out Of Memory\n"
    "srun: launch/slurm: _step_signal: Terminating StepId=4.0\n"
)
NODE_FAILURE_THERE = BEGIN + (
    "srun: error: Node failure on ne709-2\n"
    "srun: Job step aborted: Waiting up to 4 seconds for job step to finish.\n"
    "slurmstepd-ne709-1: error: *** STEP 5.0 ON ne709-1 CANCELLED AT 2026-11-29T07:05:17 "
    "DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***\n"
    "slurmstepd-ne709-1: error: *** JOB 5 ON ne709-1 CANCELLED AT 2026-11-29T07:05:17 "
    "DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***\n"
    "srun: got SIGCONT\n"
    "srun: forcing job termination\n"
    "srun: error: Timed out waiting for job step to complete\n"
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
