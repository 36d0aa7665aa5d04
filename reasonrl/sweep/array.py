"""submitit's way of submitting arrays of jobs, without what sites and shells put in between.

A site may wrap sbatch in a program that prints a welcome, and a shell may hold variables by which
sbatch and srun let others win over what a job asks for.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, FailedSubmissionError

OF_CLUSTER = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}  # these say which Slurm to ask
# What a shell may decide for all jobs, by sbatch's names, where our options leave it open.
LEFT_OPEN = ("account", "clusters", "constraint", "export", "partition", "qos", "reservation")


class Executor(submitit.SlurmExecutor):
    """submitit's executor, which reads a job's id where sbatch says it: on the last line."""

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return ["sbatch", "--parsable", str(submission_file_path)]

    @staticmethod
    def _get_job_id_from_submission_command(string: str | bytes) -> str:
        """The id in ``17``, or in ``17;cluster``. Raises FailedSubmissionError for other words."""
        text = string if isinstance(string, str) else string.decode()
        last = (text.split() or [""])[-1].partition(";")[0]
        if not last.isdigit():
            raise FailedSubmissionError(f"sbatch said {text!r}, and no job id")
        return last

    def _internal_process_submissions(
        self, delayed_submissions: list[DelayedSubmission]
    ) -> list[submitit.Job[Any]]:
        """Submits one job, or one array; submitit's own arrays don't know of subclasses."""
        if len(delayed_submissions) == 1:
            return super()._internal_process_submissions(delayed_submissions)
        files = []
        for delayed in delayed_submissions:
            delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
            files.append(Path(self.folder) / f"{uuid.uuid4().hex}.pkl")
            delayed.dump(files[-1])
        self.parameters["map_count"] = len(files)
        array = self._submit_command(self._submitit_command_str)
        tasks = list(range(array.num_tasks))
        jobs: list[submitit.Job[Any]] = [
            self.job_class(folder=self.folder, job_id=f"{array.job_id}_{number}", tasks=tasks)
            for number in range(len(files))
        ]
        for job, file in zip(jobs, files, strict=True):
            job.paths.move_temporary_file(file, "submitted_pickle")
        return jobs


@contextmanager
def only_asking_for(parameters: Collection[str]) -> Iterator[None]:
    """Hides the variables by which a shell would change what jobs ask for.

    They are those of a Slurm job that this process is in, of an earlier one, and those that stand
    for options of sbatch, except for options that are left open.

    parameters: what is asked for, by sbatch's names.
    """
    kept = OF_CLUSTER | {f"SBATCH_{name.upper()}" for name in {*LEFT_OPEN} - {*parameters}}
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name.startswith(("SLURM_", "SBATCH_")) and name not in kept
    }
    try:
        yield
    finally:
        os.environ |= hidden
