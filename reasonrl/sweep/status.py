"""What is known of each run of a sweep: what it says itself, what Slurm says, what its files show.

Nothing here prints or imports torch.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reasonrl.runs.folder import (
    HEARTBEAT_SECONDS,
    RunFolder,
    Status,
    is_done,
    read_status,
    state_of,
)
from reasonrl.sweep import local, slurm
from reasonrl.sweep.manifest import Member, Submission, Submitted, Sweep
from reasonrl.sweep.said import end, last_metric, result, tail
from reasonrl.sweep.slurm import Ended, SlurmJob
from reasonrl.sweep.verdict import ALIVE, Evidence, Verdict, judge
from reasonrl.util.atomic import write_json
from reasonrl.util.errors import UserError

REMEMBERED = "ended.json"
_PROGRESS = re.compile(r"reasonrl\.progress: (.+)$", re.MULTILINE)
_STEP = re.compile(rb'{"step": (\d+)')


@dataclass(frozen=True)
class Finding:
    """What was found out about a run."""

    member: Member
    run: RunFolder
    verdict: Verdict
    reason: str  # of the verdict, in one line; empty where there is nothing to say
    status: Status | None  # what the run says itself
    batch: Submitted | None  # the batch with which it was submitted last
    job: str | None  # Slurm's id of its last job; if it is alive, of the job that makes it
    slurm: str | None  # Slurm's state of that job, as long as Slurm has one
    seconds: float | None  # how long the last attempt has taken
    seconds_left: int | None  # until the job's time limit
    log: Path | None  # the file into which the last job prints, which may not exist
    progress: str  # how far it is, for people; may be empty
    metric: str  # the result, or the last value of one metric, for people; may be empty

    def values(self) -> dict[str, Any]:
        """The finding as values for JSON."""
        status = self.status
        return {
            "run": self.member.name,
            "verdict": self.verdict,
            "reason": self.reason,
            "needs": self.member.needs,
            "status": asdict(status) if status else None,
            "job": self.job,
            "slurm": self.slurm,
            "seconds": self.seconds,
            "seconds_left": self.seconds_left,
            "progress": self.progress,
            "metric": self.metric,
            "folder": str(self.run.path),
            "log": str(self.log) if self.log else None,
        }


def look(sweep: Sweep) -> list[Finding]:
    """A finding on each run of a sweep, in the sweep's order. Raises SlurmError.

    What Slurm says of ended jobs is kept in their batches' folders, because Slurm forgets it in
    minutes. Where there is no Slurm, no job is alive. Slurm isn't asked about runs that never had
    to do with it, or that are done.
    """
    batches = Batches()
    # The queue is read first: a job that isn't in it any more has written its last status.
    asks = _on_slurm(sweep, batches) and not all(is_done(sweep.run(m.name)) for m in sweep.runs)
    jobs = jobs_by_run(sweep.outputs, batches) if asks else {}
    last = {member.name: _Last.of(sweep.run(member.name), batches) for member in sweep.runs}
    known = _ended([one for run, one in last.items() if run not in jobs])
    findings: list[Finding] = []
    verdicts: dict[str, Verdict] = {}
    for member in sweep.runs:  # none comes before what it needs
        run, one = sweep.run(member.name), last[member.name]
        job, ended = jobs.get(member.name), known.get(one.job or "")
        beats = job is None and one.beats(run)
        verdict, reason = judge(
            Evidence(
                own=one.status,
                submitted=one.batch.submitted if one.batch else None,
                job=one.job is not None,
                alive=job.state if job else one.process(run),
                stuck=job is not None and job.needs_in_vain,
                unlaunched=job is not None and job.launch_failed,
                beats=beats,
                works_here=beats and one.here,
                ended=ended,
                log="" if one.done or job or one.log is None else tail(one.log),
                needs={need: verdicts[need] for need in member.needs},
            )
        )
        if job is not None and job.held:
            reason = f"held: scontrol release {job.id} lets it begin"
        if verdict == "running" and not reason:
            reason = _silence(one.status)
        verdicts[member.name] = verdict
        metrics = end(run.metrics)
        findings.append(
            Finding(
                member=member,
                run=run,
                verdict=verdict,
                reason=reason,
                status=one.status,
                batch=one.batch,
                job=job.id if job else (None if verdict in ALIVE else one.job),
                slurm=job.state if job else (ended.state if ended else None),
                seconds=_seconds(one.status, verdict),
                seconds_left=job.seconds_left if job and verdict == "running" else None,
                log=one.log,
                progress=_progress(run, verdict, metrics),
                metric=(verdict == "done" and result(run)) or last_metric(metrics),
            )
        )
    return findings


def _on_slurm(sweep: Sweep, batches: Batches) -> bool:
    """Whether Slurm may have to do with any of the runs.

    Another sweep may have submitted a run of this one to Slurm, even if this one isn't made there.
    """
    if sweep.cluster == "slurm":
        return True
    last = (_Last.of(sweep.run(member.name), batches) for member in sweep.runs)
    return any(one.batch is not None and one.batch.cluster == "slurm" for one in last)


class Batches:
    """Reads each batch only once, because hundreds of runs may belong to the same."""

    def __init__(self) -> None:
        self._read: dict[Path, Submitted | None] = {}

    def get(self, path: Path) -> Submitted | None:
        if path not in self._read:
            self._read[path] = Submitted.read(path)
        return self._read[path]


def jobs_by_run(outputs: Path, batches: Batches) -> dict[str, SlurmJob]:
    """The jobs that are alive on Slurm, of all sweeps of these outputs, by their runs' names."""
    jobs = {}
    for job, batch in _jobs(outputs, batches):
        if job.task < len(batch.runs) and batch.can_begin(job.id):
            jobs[batch.runs[job.task]] = job
    return jobs


def doomed(outputs: Path) -> list[str]:
    """The ids of jobs that are alive and will never find what they are to do.

    This is true only while no launcher is at work, so hold the launchers' lock when asking.
    """
    return [job.id for job, batch in _jobs(outputs, Batches()) if not batch.can_begin(job.id)]


def _jobs(outputs: Path, batches: Batches) -> Iterator[tuple[SlurmJob, Submitted]]:
    outputs = outputs.resolve()
    for job in slurm.queue() if slurm.available() else []:
        batch = batches.get(job.batch)
        # Other outputs may have runs of the same names, which don't depend on where they lie.
        if batch is not None and batch.outputs == outputs:
            yield job, batch


@dataclass(frozen=True)
class _Last:
    """What the disk says of a run, and of the job as which it was submitted last."""

    status: Status | None
    batch: Submitted | None
    job: str | None  # Slurm's id
    log: Path | None  # the file into which the job prints, which may not exist

    @classmethod
    def of(cls, run: RunFolder, batches: Batches) -> _Last:
        status, submission = read_status(run), Submission.read(run)
        batch = batches.get(Path(submission.batch)) if submission else None
        if state_of(run, status) == "to be evaluated":
            # It and the job that made it speak of other evaluations than the one asked for here.
            if batch is not None and local.has_begun(status, batch):
                batch = None
            status = None
        if submission is None or batch is None:
            return cls(status, None, None, None)
        job, log = batch.job_of(submission.task), batch.log(submission.task)
        if batch.cluster == "slurm" and job is None:  # its launcher died before it knew
            of_task = f"*_{submission.task}" if len(batch.runs) > 1 else "*"
            logs = sorted(batch.path.glob(f"{of_task}_0_log.out"))
            if logs:
                job, log = logs[-1].name.removesuffix("_0_log.out"), logs[-1]
        return cls(status, batch, job, log)

    @property
    def done(self) -> bool:
        return self.status is not None and self.status.state == "done"

    def process(self, run: RunFolder) -> str | None:
        """The state of this machine's process, in Slurm's words; None if there is no process."""
        if self.done or (self.batch and self.batch.cluster == "slurm"):
            return None
        if (self.batch is None and self.status is None) or not local.is_alive(run):
            return None
        says_so = self.status is not None and self.status.state == "running"
        begun = says_so and (self.batch is None or local.has_begun(self.status, self.batch))
        return "RUNNING" if begun else "PENDING"

    def beats(self, run: RunFolder) -> bool:
        return self.status is not None and self.status.state == "running" and local.is_alive(run)

    @property
    def here(self) -> bool:
        return self.status is not None and self.status.host == socket.gethostname()


def _ended(last: list[_Last]) -> dict[str, Ended]:
    """What Slurm says of the ended jobs of runs that aren't done, by job id; news is kept."""
    unfinished = [one for one in last if one.job and one.batch and not one.done]  # all on Slurm
    if not unfinished:
        return {}
    now = slurm.ended() if slurm.available() else {}
    by_batch: dict[Path, list[str]] = {}
    for one in unfinished:
        assert one.batch is not None
        assert one.job is not None
        by_batch.setdefault(one.batch.path, []).append(one.job)
    known: dict[str, Ended] = {}
    for path, ids in by_batch.items():
        old = _remembered(path / REMEMBERED)
        folder = path.resolve()  # as jobs have it
        new = {id: now[folder, id] for id in ids if (folder, id) in now}
        if forgotten := [id for id in ids if id not in old | new]:
            new |= slurm.accounting(forgotten)
        if not new.items() <= old.items():
            with suppress(UserError):  # another user's sweep, a full disk
                values = {id: asdict(ended) for id, ended in (old | new).items()}
                write_json(path / REMEMBERED, values)
        known |= old | new
    return known


def _remembered(file: Path) -> dict[str, Ended]:
    try:
        return {id: Ended(**values) for id, values in json.loads(file.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _silence(status: Status | None) -> str:
    """How long a run has been silent that Slurm says is alive; empty if its heartbeat is recent."""
    if status is None or status.state != "running":
        return ""  # it still loads
    age = (datetime.now(UTC) - datetime.fromisoformat(status.heartbeat)).total_seconds()
    if age < local.MISSED_BEATS * HEARTBEAT_SECONDS:
        return ""
    return f"no sign of life for {age / 60:.0f} min"


def _seconds(status: Status | None, verdict: Verdict) -> float | None:
    if status is None:
        return None
    end = datetime.now(UTC) if verdict == "running" else datetime.fromisoformat(status.heartbeat)
    return max((end - datetime.fromisoformat(status.started)).total_seconds(), 0.0)


def _progress(run: RunFolder, verdict: Verdict, metrics: bytes) -> str:
    """``iteration 19 of 20: learning: 8 of 8, 0.3/s``; without such a line the last step logged."""
    if verdict == "running" and (lines := _PROGRESS.findall(tail(run.log, 4096))):
        return str(lines[-1])
    found = _STEP.match(metrics, max(metrics.rfind(b'{"step": '), 0))
    return f"step {int(found[1]):,}" if found else ""
