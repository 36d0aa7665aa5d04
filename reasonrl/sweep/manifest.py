"""A sweep's folder: the runs it is made of, and what was submitted of them, and when.

    outputs/sweeps/ei-ppo-rcrl_7b-13b-1a2b3c4d/
      sweep.json          the command, and the runs with what each needs first
      batches/0001/       what was submitted at once, as one array of jobs
        batch.json        where to, with which code, and which run each task is
        17_0_0_log.out    what a task printed
    outputs/runs/NAME/
      submission.json     the last batch that a run was part of

All of this the launcher writes and no job does; a run's own word is its status.json.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from reasonrl.runs.folder import RunFolder
from reasonrl.util.atomic import write_json
from reasonrl.util.errors import UserError

Cluster = Literal["slurm", "local"]

MANIFEST, BATCH, SUBMISSION = "sweep.json", "batch.json", "submission.json"


@dataclass(frozen=True)
class Member:
    """A run of a sweep.

    name: its folder's. overrides: what the command said of it; None for a run that only others
    need. needs: the names of the runs that must be done before it can start. options: of its job on
    Slurm, see ``reasonrl.sweep.options.JobOptions``.
    """

    name: str
    overrides: list[str] | None
    needs: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    protocol: str | None = None  # how its policy is to be evaluated; None: it makes none


@dataclass(frozen=True)
class Sweep:
    """Contents of sweep.json, and where it lies.

    command: and the folder it was given in, on which relative paths in configurations depend.
    created: UTC, ISO 8601. code: the folder of the code that the runs are made with. at_once: how
    many of a batch may be made at a time. runs: none before those it needs.
    """

    path: Path
    command: list[str]
    folder: str
    created: str
    cluster: Cluster
    code: str
    at_once: int
    runs: list[Member]

    @classmethod
    def read(cls, path: Path) -> Sweep:
        """Raises UserError if there is no sweep in this folder."""
        path = path.resolve()  # jobs are told of it, and they have a working directory of their own
        try:
            values = json.loads((path / MANIFEST).read_bytes())
            runs = [Member(**member) for member in values.pop("runs")]
            return cls(path=path, runs=runs, **values)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"sweep={path} must be a sweep's folder, with a {MANIFEST}; got "
                f"{type(error).__name__}: {error}. Look into outputs/sweeps."
            ) from None

    def write(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        values = asdict(self)
        del values["path"]
        write_json(self.path / MANIFEST, values)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def outputs(self) -> Path:
        return self.path.parent.parent

    @property
    def batches(self) -> Path:
        return self.path / "batches"

    @cached_property
    def _protocols(self) -> dict[str, str | None]:
        return {member.name: member.protocol for member in self.runs}

    def run(self, name: str) -> RunFolder:
        """The folder of a run, to be evaluated as the sweep's command says."""
        return RunFolder(self.outputs / "runs" / name, self._protocols.get(name))


@dataclass(frozen=True)
class Submitted:
    """A batch: runs that were submitted at once, as batch.json says, and where that lies."""

    path: Path
    cluster: Cluster
    runs: list[str]  # their names; task k of the array is runs[k]
    code: str  # the folder of the code they run with
    submitted: str  # UTC, ISO 8601
    host: str  # of the launcher, which on this machine has to live for the runs to go on
    pid: int  # of the launcher
    options: dict[str, Any]  # of the launcher: memory, time, partition and so on
    # Slurm's id of the array. None on this machine, and if the launcher died before it knew: the
    # jobs' comment then still leads from them to this folder.
    job: str | None = None

    @classmethod
    def read(cls, path: Path) -> Submitted | None:
        """None if there is no readable batch in this folder."""
        try:
            return cls(path=path, **json.loads((path / BATCH).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        values = asdict(self)
        del values["path"]
        write_json(self.path / BATCH, values)

    @property
    def comment(self) -> str:
        """Of the Slurm jobs: it leads from a job in the queue to this folder."""
        return f"reasonrl:{self.path.resolve()}"

    @property
    def outputs(self) -> Path:
        """Of the sweep that it is of."""
        return self.path.resolve().parents[3]

    def can_begin(self, job: str) -> bool:
        """Whether this Slurm job finds what it is to do, which submitit writes after sbatch.

        False for ever if the launcher died between the two.
        """
        return self.job is not None or (self.path / f"{job}_submitted.pkl").exists()

    def job_of(self, task: int) -> str | None:
        """Slurm's id of a task: ``17_3``, or ``17`` if it is the only one."""
        if self.job is None or len(self.runs) == 1:
            return self.job
        return f"{self.job}_{task}"

    def log(self, task: int) -> Path:
        """What a task printed, all its attempts; of a job whose id isn't known, no such file."""
        name = f"{task}.log" if self.cluster == "local" else f"{self.job_of(task)}_0_log.out"
        return self.path / name


@dataclass(frozen=True)
class Submission:
    """Contents of a run's submission.json: where in which batch it was submitted last."""

    batch: str
    task: int

    @classmethod
    def read(cls, run: RunFolder) -> Submission | None:
        try:
            return cls(**json.loads((run.path / SUBMISSION).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, run: RunFolder) -> None:
        write_json(run.path / SUBMISSION, asdict(self))
