"""Submits those runs of a sweep that are neither done nor alive, each once. No torch is imported.

All decisions are made under one lock for all sweeps of an outputs folder. Slurm is asked which runs
are alive, because a record could be wrong whenever a launcher was killed. A batch is written down
before it is submitted, and its jobs carry its folder in their comment.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from submitit.core.utils import FailedJobError, FailedSubmissionError

from reasonrl.config.schema import TrainConfig
from reasonrl.runs.folder import read_config, write_config
from reasonrl.runs.provenance import now
from reasonrl.sweep import local, slurm
from reasonrl.sweep.array import Executor, only_asking_for
from reasonrl.sweep.manifest import Member, Submission, Submitted, Sweep
from reasonrl.sweep.options import OTHER_MEMORY, check_processes
from reasonrl.sweep.status import Finding, doomed, look
from reasonrl.sweep.verdict import ALIVE, UNFINISHED
from reasonrl.sweep.worker import work
from reasonrl.util.atomic import writing
from reasonrl.util.errors import UserError

logger = logging.getLogger(__name__)

LOCK = ".submitting.lock"
NOTICE_SECONDS = 5.0


def submit(sweep: Sweep, configs: Mapping[str, TrainConfig]) -> list[str]:
    """Submits a sweep with these configurations; returns the names of the runs it submitted.

    On this machine it returns when all runs are made, also those that other processes make.
    """
    with _alone(sweep):
        with _locked(sweep.outputs / LOCK):
            findings = look(sweep)
            todo = [finding.member for finding in findings if finding.verdict in UNFINISHED]
            _check_needs(sweep, todo, findings)
            for member in todo:
                write_config(sweep.run(member.name), configs[member.name])
            sweep.write()  # it comes last, so that a written sweep has all its configurations
            batches = _submit(sweep, todo, findings)
        _make_here(sweep, todo, batches)
        if sweep.cluster == "local":
            local.wait_for(sweep.run(member.name) for member in sweep.runs)
    return [member.name for member in todo]


def resubmit(sweep: Sweep, names: Iterable[str], changes: Mapping[str, Any]) -> list[str]:
    """Submits these runs of a sweep again, and what they need, as they were first configured.

    Returns the names of the runs it submitted. Raises UserError if they can't be made so.

    changes: other options for their jobs, which are kept for later submissions too.
    """
    if changes and sweep.cluster != "slurm":
        raise UserError(
            f"{', '.join(changes)} must be asked of Slurm; the runs of {sweep.name} are made on "
            "this machine. Leave it out."
        )
    with _alone(sweep):
        with _locked(sweep.outputs / LOCK):
            sweep = Sweep.read(sweep.path)  # another launcher may have changed it meanwhile
            findings = look(sweep)
            wanted = {*names}
            for finding in reversed(findings):
                if finding.member.name in wanted:
                    wanted |= {*finding.member.needs}
            todo = [
                replace(finding.member, options={**finding.member.options, **changes})
                for finding in findings
                if finding.member.name in wanted and finding.verdict in UNFINISHED
            ]
            _check_needs(sweep, todo, findings)
            if not {"nodes", "gpus_per_node"}.isdisjoint(changes):
                for member in todo:
                    check_processes(read_config(sweep.run(member.name)), member.options)
            if changes:
                changed = {member.name: member for member in todo}
                runs = [changed.get(member.name, member) for member in sweep.runs]
                replace(sweep, runs=runs).write()
            batches = _submit(sweep, todo, findings)
        _make_here(sweep, todo, batches)
    return [member.name for member in todo]


def _alone(sweep: Sweep) -> AbstractContextManager[None]:
    """A lock for a sweep on this machine, which has one launcher at a time until it is made."""
    return _locked(sweep.path / LOCK) if sweep.cluster == "local" else nullcontext()


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=NOTICE_SECONDS)
        except Timeout:
            logger.info("waiting for another launcher, which holds %s", file)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_needs(sweep: Sweep, todo: Sequence[Member], findings: Sequence[Finding]) -> None:
    """Raises UserError if a run needs one that waits elsewhere, and so can't be waited for."""
    by_name = {finding.member.name: finding for finding in findings}
    for member in todo:
        for need in map(by_name.__getitem__, member.needs):
            waits = need.verdict in ALIVE and need.verdict != "running"
            if waits and (need.job is None) == (sweep.cluster == "slurm"):
                where = f"job {need.job} of Slurm" if need.job else "of a sweep on one machine"
                raise UserError(
                    f"run={member.name} must be made where what it needs is; "
                    f"{need.member.name} waits for its turn as {where}. Wait until that begins, or "
                    "cancel it. Nothing is submitted."
                )


def _make_here(sweep: Sweep, todo: Sequence[Member], batches: Sequence[Submitted]) -> None:
    for batch in batches:
        if batch.cluster == "local":
            local.make(sweep, batch, todo)


def _submit(sweep: Sweep, todo: Sequence[Member], findings: Sequence[Finding]) -> list[Submitted]:
    if sweep.cluster == "slurm":
        return _submit_to_slurm(sweep, todo, findings)
    return [_new_batch(sweep, todo, {})] if todo else []


def _submit_to_slurm(
    sweep: Sweep, todo: Sequence[Member], findings: Sequence[Finding]
) -> list[Submitted]:
    """Submits one array for each different choice of options and prerequisites to wait for.

    A job waits only for prerequisites that are alive: a dependency on one that Slurm has forgotten
    would count as satisfied.
    """
    names = {member.name for member in todo}
    stuck = [r.job for r in findings if r.member.name in names and r.slurm == "PENDING" and r.job]
    slurm.cancel([*stuck, *doomed(sweep.outputs)])
    ids = {r.member.name: r.job for r in findings if r.verdict in ALIVE and r.job}
    size = slurm.max_array_size()
    batches = []
    for level in _levels(todo):
        arrays = defaultdict(list)
        for member in level:
            wait_for = sorted(ids[need] for need in member.needs if need in ids)
            arrays[json.dumps([member.options, wait_for], sort_keys=True)].append(member)
        for key, members in arrays.items():
            options, wait_for = json.loads(key)
            for start in range(0, len(members), size):
                batch = _new_batch(sweep, members[start : start + size], options)
                batch = _submit_array(sweep, batch, wait_for)
                ids |= {name: str(batch.job_of(task)) for task, name in enumerate(batch.runs)}
                batches.append(batch)
    return batches


def _levels(todo: Sequence[Member]) -> Iterator[list[Member]]:
    """Yields first the runs that need none of the others, then those that need only these, …"""
    while todo:
        names = {member.name for member in todo}
        yield [member for member in todo if not names.intersection(member.needs)]
        todo = [member for member in todo if names.intersection(member.needs)]


def _new_batch(sweep: Sweep, members: Sequence[Member], options: dict[str, Any]) -> Submitted:
    number = 1 + max((int(folder.name) for folder in sweep.batches.glob("[0-9]*")), default=0)
    batch = Submitted(
        path=sweep.batches / f"{number:04d}",
        cluster=sweep.cluster,
        runs=[member.name for member in members],
        code=sweep.code,
        submitted=now(),
        host=socket.gethostname(),
        pid=os.getpid(),
        options=options,
    )
    batch.write()
    for task, name in enumerate(batch.runs):
        Submission(str(batch.path), task).write(sweep.run(name))
    return batch


def _submit_array(sweep: Sweep, batch: Submitted, wait_for: Sequence[str]) -> Submitted:
    """Submits a batch as one array; returns the batch with the array's id.

    Raises UserError if sbatch refuses it.
    """
    executor = Executor(folder=batch.path)
    parameters = _sbatch_parameters(sweep, batch, wait_for)
    executor.update_parameters(**parameters)
    folders = [str(sweep.run(name).path) for name in batch.runs]
    try:
        with only_asking_for({*parameters, *parameters["additional_parameters"]}):
            jobs = executor.map_array(work, folders, [batch.options["max_requeues"]] * len(folders))
    except (FailedJobError, FailedSubmissionError) as error:
        raise UserError(
            f"sbatch must take the jobs of {batch.path}; got {' '.join(str(error).split())}. "
            "Change hydra.launcher.* and give the command again: what is in the queue stays there."
        ) from None
    batch = replace(batch, job=jobs[0].job_id.partition("_")[0])
    batch.write()
    return batch


def _job_name(sweep: Sweep, batch: Submitted) -> str:
    """The run's name, or of several their algorithms with the hash of the sweep."""
    if len(batch.runs) == 1:
        return batch.runs[0]
    algorithms = dict.fromkeys(name.partition("-")[0] for name in batch.runs)
    return "-".join([*algorithms, sweep.name.rpartition("-")[2]])


def _sbatch_parameters(sweep: Sweep, batch: Submitted, wait_for: Sequence[str]) -> dict[str, Any]:
    """The parameters of sbatch, under submitit's names.

    A job has one task a node. If one of them ends badly srun ends the others, which would wait for
    it. The site's setup comes before ours, because a module may set PYTHONPATH.
    """
    options = dict(batch.options)
    additional = {
        "chdir": sweep.folder,
        "requeue": True,
        "kill-on-invalid-dep": "yes",  # else jobs that wait in vain stay in the queue for ever
        **options.pop("additional_parameters"),
    }
    memory = options.pop("mem_gb")
    if {name.replace("_", "-") for name in additional} & OTHER_MEMORY:
        memory = 0
    code = f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(batch.code)}"
    # Some versions of srun don't take the number of cores from sbatch, and the run would have one.
    # Where the site keeps the login node's variables from jobs, srun would keep ours from tasks.
    srun = "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK SLURM_EXPORT_ENV=ALL"
    parameters = {
        "job_name": _job_name(sweep, batch),
        "comment": batch.comment,
        "dependency": f"afterok:{':'.join(wait_for)}" if wait_for else None,
        "array_parallelism": sweep.at_once,
        "stderr_to_stdout": True,
        "time": options.pop("timeout_min"),
        "nodes": options.pop("nodes", 1),  # older sweeps say nothing of it
        "ntasks_per_node": 1,
        "srun_args": ["--kill-on-bad-exit=1"],
        "mem": f"{memory}GB" if memory else None,
        "gpus_per_node": options.pop("gpus_per_node") or None,
        "setup": [*options.pop("setup"), f"{code}${{PYTHONPATH:+:$PYTHONPATH}}", srun],
        "additional_parameters": {k: v for k, v in additional.items() if v is not False},
    }
    del options["max_requeues"]
    return {name: value for name, value in (parameters | options).items() if value is not None}
