"""What a job of a sweep does: it makes one run, as the run's folder says.

    python -P -m reasonrl.sweep.worker outputs/runs/NAME

A job is told to stop by SIGUSR2 before its time limit, and by SIGTERM for a job that matters more.
It then saves at its next step boundary and ends with exit status 75; on Slurm it goes back into the
queue. On Slurm each of a job's nodes has one such process: that of the first owns the run, the
others start ranks for it, and leave it to the first to say how it ended. Torch is imported only
when the work begins, because launchers import this module too.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from reasonrl.config.schema import TrainConfig
from reasonrl.runs.folder import RunFolder, is_done, note_failure, read_config, read_status
from reasonrl.runs.machines import Machine
from reasonrl.runs.preemption import STOPPED, Preempted, listening
from reasonrl.sweep import slurm
from reasonrl.sweep.local import is_alive
from reasonrl.sweep.slurm import SlurmError
from reasonrl.util.errors import UserError

ATTEMPT = "reasonrl: attempt"  # begins what an attempt prints; logs are appended to
BACK = "reasonrl: saved, and back in the queue"  # ends what such an attempt prints


def work(folder: str, max_requeues: int = 0) -> None:
    """Makes the run in this folder, whose prerequisites must be done. Raises what goes wrong.

    max_requeues: how often the run's Slurm job may be put back into the queue.
    """
    run = RunFolder(Path(folder))
    os.environ.pop("WANDB_SERVICE", None)  # it leads to W&B's service for the submitting process
    if not Machine.here().is_first:
        # With another exit status than 0 Slurm would end the first node's process before its time.
        with listening(), suppress(Preempted):
            _make(run)
        return
    status = read_status(run)
    print(f"{ATTEMPT} {status.attempt + 1 if status else 1} of {run.path}", flush=True)
    with listening():
        try:
            with note_failure(run):
                _make(run)
        except Preempted:
            if _requeue(max_requeues):
                print(BACK, flush=True)
            sys.exit(STOPPED)


def _make(run: RunFolder) -> None:
    from reasonrl.util.entry_point import set_up_logging

    set_up_logging()  # before transformers is imported
    from reasonrl.pipeline.execute import ensure_done
    from reasonrl.pipeline.outcome import show_outcome
    from reasonrl.pipeline.planner import plan
    from reasonrl.util.progress import Progress

    planned = plan(_as_given(read_config(run)))
    for first in planned.prerequisites.values():
        if not is_done(first.run) and not is_alive(first.run):
            raise UserError(
                f"run={run.path} must have its prerequisites first; {first.run.path} isn't done. "
                "Resubmit the sweep: it begins with them."
            )
    progress = Progress()
    ensure_done(planned, progress, wait=True)
    if Machine.here().is_first:
        show_outcome(planned)


def _as_given(config: TrainConfig) -> TrainConfig:
    """The configuration with the nodes and GPUs of this Slurm job, where it is one of a sweep's."""
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return config
    gpus = int(os.environ.get("SLURM_GPUS_ON_NODE", 0))
    resources = replace(config.model.resources, nodes=Machine.here().count, gpus=gpus)
    return replace(config, model=replace(config.model, resources=resources))


def _requeue(max_requeues: int) -> bool:
    """Puts this Slurm job back into the queue, unless it is being ended for another reason."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_TASK_ID" in os.environ:  # the last task's own id is that of the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None or int(os.environ.get("SLURM_RESTART_COUNT", 0)) >= max_requeues:
        return False
    try:
        return slurm.requeue(job)
    except SlurmError as error:
        print(f"reasonrl: not queued again: {error}", flush=True)
        return False


if __name__ == "__main__":
    try:
        work(sys.argv[1])
    except UserError as error:
        sys.exit(f"error: {error}")
