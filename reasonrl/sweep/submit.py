"""Submits those runs of a sweep that are neither done nor alive, each once. Imports no torch.

All decisions are made under one lock for all sweeps of an outputs folder, and what is alive is
asked of Slurm: a record could be wrong whenever a launcher was killed. A batch is written down
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

import submitit
from filelock import FileLock, Timeout

from reasonrl.config.schema import TrainConfig
from reasonrl.runs.folder import write_config
from reasonrl.runs.provenance import now
from reasonrl.sweep import local, slurm
from reasonrl.sweep.manifest import Member, Submission, Submitted, Sweep
from reasonrl.sweep.status import Finding, doomed, look
from reasonrl.sweep.verdict import ALIVE, UNFINISHED
from reasonrl.sweep.worker import work
from reasonrl.util.atomic import writing
from reasonrl.util.errors import UserError

logger = logging.getLogger(__name__)

LOCK = ".submitting.lock"
NOTICE_SECONDS = 5.0
OF_CLUSTER = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"}  # which to ask, not of a job


def submit(sweep: Sweep, configs: Mapping[str, TrainConfig]) -> list[str]:
    """Submits a sweep anew: all its runs, with these configurations. Returns what was submitted.

    On this machine it returns when the runs are made, also those that other processes make.
    """
    with _alone(sweep):
        with _locked(sweep.outputs / LOCK):
            findings = look(sweep)
            todo = [finding.member for finding in findings if finding.verdict in UNFINISHED]
            _check_needs(sweep, todo, findings)
            for member in todo:
                write_config(sweep.run(member.name), configs[member.name])
            sweep.write()  # the last, so that a sweep that is there has all its configurations
            batches = _submit(sweep, todo, findings)
        _make_here(sweep, todo, batches)
        if sweep.cluster == "local":
            local.wait_for(sweep.run(member.name) for member in sweep.runs)
    return [member.name for member in todo]


def resubmit(sweep: Sweep, names: Iterable[str], changes: Mapping[str, Any]) -> list[str]:
    """Submits these runs of a sweep again, and what they need, as they were first configured.

    changes: of the options of their jobs, kept for later. Returns what was submitted.
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
            if changes:
                changed = {member.name: member for member in todo}
                runs = [changed.get(member.name, member) for member in sweep.runs]
                replace(sweep, runs=runs).write()
            batches = _submit(sweep, todo, findings)
        _make_here(sweep, todo, batches)
    return [member.name for member in todo]


def _alone(sweep: Sweep) -> AbstractContextManager[None]:
    """On this machine a sweep has one launcher at a time, until its runs are made."""
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
    """Raises UserError where a run needs one that waits elsewhere: it couldn't wait for that."""
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
    """As few arrays as there are different options and prerequisites to wait for.

    A job waits for those alone that are alive: of one that Slurm has forgotten it would say that it
    has succeeded.
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
    """First those that need none of the others, then those that need only these, and so on."""
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
    """The batch with the id of its array. Raises UserError if sbatch refuses it."""
    executor = submitit.SlurmExecutor(folder=batch.path)
    executor.update_parameters(**_sbatch_parameters(sweep, batch, wait_for))
    folders = [str(sweep.run(name).path) for name in batch.runs]
    try:
        with _outside_of_jobs():
            jobs = executor.map_array(work, folders, [batch.options["max_requeues"]] * len(folders))
    except submitit.core.utils.FailedJobError as error:
        raise UserError(
            f"sbatch must take the jobs of {batch.path}; got {' '.join(str(error).split())}. "
            "Change hydra.launcher.* and give the command again: what is in the queue stays there."
        ) from None
    batch = replace(batch, job=jobs[0].job_id.partition("_")[0])
    batch.write()
    return batch


@contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Inside a job its variables would become the new jobs': its memory, its place in an array."""
    inner = {}
    if "SLURM_JOB_ID" in os.environ:
        named = [
            name for name in os.environ if name.startswith("SLURM_") and name not in OF_CLUSTER
        ]
        inner = {name: os.environ.pop(name) for name in named}
    try:
        yield
    finally:
        os.environ |= inner


def _sbatch_parameters(sweep: Sweep, batch: Submitted, wait_for: Sequence[str]) -> dict[str, Any]:
    """In submitit's names. The site's setup comes before ours: a module may set PYTHONPATH."""
    options = dict(batch.options)
    additional = {
        "chdir": sweep.folder,
        "requeue": True,
        "kill-on-invalid-dep": "yes",  # else they stay in the queue for ever
        **options.pop("additional_parameters"),
    }
    code = f"export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(batch.code)}"
    # Some versions of srun don't take it from sbatch: the run would have a single core.
    cores = "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"
    parameters = {
        "job_name": sweep.name,
        "comment": batch.comment,
        "dependency": f"afterok:{':'.join(wait_for)}" if wait_for else None,
        "array_parallelism": sweep.at_once,
        "stderr_to_stdout": True,
        "time": options.pop("timeout_min"),
        "mem": f"{options.pop('mem_gb')}GB",
        "gpus_per_node": options.pop("gpus_per_node") or None,
        "setup": [*options.pop("setup"), f"{code}${{PYTHONPATH:+:$PYTHONPATH}}", cores],
        "additional_parameters": {k: v for k, v in additional.items() if v is not False},
    }
    del options["max_requeues"]
    return {name: value for name, value in (parameters | options).items() if value is not None}
