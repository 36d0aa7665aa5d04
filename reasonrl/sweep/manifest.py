"""A sweep's folder, which says what runs it is made of and which were submitted, and when.

    outputs/sweeps/ei-ppo-rcrl_7b-13b-1a2b3c4d/
      sweep.json          the command, and the runs with what each needs first
      batches/0001/       what was submitted at once, as one array of jobs
        batch.json        where to, with which code, and which run each task is
        17_0_0_log.out    what a task printed; last comes the number of its node
    outputs/runs/NAME/
      submission.json     the last batch that a run was part of

Only the launcher writes these files; what a run says of itself is in its status.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
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
    """A run of a sweep."""

    name: str  # the name of its folder
    overrides: list[str] | None  # what the command said of it; None: only other runs need it
    needs: list[str] = field(default_factory=list)  # the names of the runs that must be done first
    options: dict[str, Any] = field(default_factory=dict)  # its job's on Slurm, see JobOptions
    protocol: str | None = None  # how its policy is to be evaluated; None: it makes none


@dataclass(frozen=True)
class Sweep:
    """The contents of sweep.json, and the folder in which it lies."""

    path: Path
    command: list[str]
    folder: str  # where the command was given; relative paths in configurations depend on it
    created: str  # UTC, ISO 8601
    cluster: Cluster
    code: str  # the folder of the code that the runs are made with
    at_once: int  # how many runs of a batch may be made at a time
    runs: list[Member]  # none comes before those that it needs

    @classmethod
    def read(cls, path: Path) -> Sweep:
        """Reads a sweep's folder. Raises UserError if it holds no sweep."""
        path = path.resolve()  # jobs get this path, and have a working directory of their own
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
    """A batch of runs that were submitted at once: the contents of batch.json, and its folder."""

    path: Path
    cluster: Cluster
    runs: list[str]  # their names; task k of the array is runs[k]
    code: str  # the folder of the code they run with
    submitted: str  # when, in UTC, ISO 8601
    host: str  # the launcher's; on this machine the launcher has to live until the runs are made
    pid: int  # the launcher's
    options: dict[str, Any]  # the launcher's: memory, time, partition and so on
    # Slurm's id of the array. It is None on this machine, and if the launcher died before it knew
    # the id: the jobs' comment then still leads from them to this folder.
    job: str | None = None

    @classmethod
    def read(cls, path: Path) -> Submitted | None:
        """Reads a batch's folder; None if it holds no readable batch."""
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
        """The comment of the Slurm jobs, which leads from a job in the queue to this folder."""
        return f"reasonrl:{self.path.resolve()}"

    @property
    def outputs(self) -> Path:
        """The outputs folder of the sweep that this batch belongs to."""
        return self.path.resolve().parents[3]

    def can_begin(self, job: str) -> bool:
        """Whether this Slurm job finds what it is to do, which submitit writes after sbatch.

        If the launcher died between the two, it never will.
        """
        return self.job is not None or (self.path / f"{job}_submitted.pkl").exists()

    def job_of(self, task: int) -> str | None:
        """Slurm's id of a task: ``17_3``, or ``17`` if it is the only one."""
        if self.job is None or len(self.runs) == 1:
            return self.job
        return f"{self.job}_{task}"

    def log(self, task: int, node: int = 0) -> Path:
        """The file into which all attempts at a task print on one of its nodes.

        On the first one Slurm prints too. If the job's id isn't known, there is no file of this
        name.
        """
        name = f"{task}.log" if self.cluster == "local" else f"{self.job_of(task)}_{node}_log.out"
        return self.path / name

    def logs(self, task: int) -> list[Path]:
        """The files of all nodes, that of the first one first."""
        return [self.log(task, node) for node in range(self.options.get("nodes", 1))]


@dataclass(frozen=True)
class Submission:
    """The contents of a run's submission.json: the batch with which it was submitted last."""

    batch: str  # the batch's folder
    task: int  # the run's index in the batch

    @classmethod
    def read(cls, run: RunFolder) -> Submission | None:
        """Reads a run's last submission; None if there was none."""
        try:
            return cls(**json.loads((run.path / SUBMISSION).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, run: RunFolder) -> None:
        write_json(run.path / SUBMISSION, asdict(self))


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The names without the hash at their end, where they stay unique without it."""
    short = {name: name.rpartition("-")[0] or name for name in names}
    count = Counter(short.values())
    return {name: short[name] if count[short[name]] == 1 else name for name in names}
