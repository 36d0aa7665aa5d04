"""A run's folder, its status, and the right to work in it.

The configuration determines the identity and the identity the folder, so the same command run again
resumes what is unfinished and skips what is done. The status that a run itself writes is the truth
about the run: what a cluster's scheduler reports is wrong in both directions. This module imports
no torch.
"""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from reasonrl.config.identity import decisive, identity, readable_name
from reasonrl.config.resolve import resolve
from reasonrl.config.schema import TrainConfig
from reasonrl.runs.preemption import Preempted, boundary
from reasonrl.runs.process import ALONE, Process
from reasonrl.runs.provenance import add_attempt, now
from reasonrl.runs.ranks import RankError
from reasonrl.util.atomic import write_json, write_text, writing
from reasonrl.util.errors import UserError

logger = logging.getLogger(__name__)

State = Literal["running", "preempted", "failed", "done"]

HEARTBEAT_SECONDS = 10.0
NOTICE_SECONDS = 60.0
# This file has the paired difference between after and before. It is the last that is written to
# the folder of a protocol's evaluations.
GAIN = "gain.json"
OWN_REWARD = "reward.py"  # a copy of the user's file whose function scored the completions


@dataclass(frozen=True)
class RunFolder:
    """The folder of everything that a run reads about itself and writes."""

    path: Path
    # The protocol by which the run's policy is to be evaluated (``EvaluateConfig.protocol``); the
    # run isn't done before that. None: the run makes no policy, or nobody asks for an evaluation.
    protocol: str | None = None

    @property
    def config(self) -> Path:
        return self.path / ".hydra" / "config.yaml"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def work(self) -> Path:
        """The folder of checkpoints and the like, while the run isn't done."""
        return self.path / "work"

    @property
    def policy(self) -> Path:
        """The trained policy: a folder that transformers loads by itself."""
        return self.path / "policy"

    @property
    def reward_model(self) -> Path:
        """A trained reward model: a token classifier that transformers loads by itself."""
        return self.path / "reward_model"

    @property
    def own_reward(self) -> Path:
        """A copy of the file that scored the run's completions, where that is the user's own."""
        return self.path / OWN_REWARD

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def learning_curve(self) -> Path:
        return self.path / "learning_curve.png"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    def evaluated(self, protocol: str) -> Path:
        """The folder of the evaluations by a protocol: before, after, and what was gained."""
        return self.evaluation / protocol

    @property
    def log(self) -> Path:
        return self.path / "train.log"


@dataclass(frozen=True)
class Status:
    """Contents of status.json."""

    state: State
    attempt: int  # 1 for the first start, one more for each later one; 0 while never started
    host: str  # of the process that wrote the status
    pid: int  # of the same process
    started: str  # UTC, ISO 8601, to the second
    heartbeat: str  # the last sign of life, in the same format
    error: str | None = None  # one line, only if the run failed

    @classmethod
    def here(cls, state: State, attempt: int) -> Status:
        """A status written now by this process."""
        time = now()
        return cls(state, attempt, socket.gethostname(), os.getpid(), started=time, heartbeat=time)


def run_folder(config: TrainConfig) -> RunFolder:
    """``<outputs>/runs/ei-sparse-tiny-sft-stories-s0-1a2b3c4d``, to be evaluated as configured."""
    name = f"{readable_name(config)}-{identity(decisive(config))}"
    protocol = config.protocol if config.algorithm.makes == "policy" else None
    return RunFolder(Path(config.runtime.outputs) / "runs" / name, protocol)


def write_config(run: RunFolder, config: TrainConfig) -> None:
    write_text(run.config, OmegaConf.to_yaml(OmegaConf.create(asdict(config))))


def read_config(run: RunFolder) -> TrainConfig:
    """The configuration a run is made with. Raises UserError if there is no such run."""
    if not run.config.exists():
        raise UserError(f"run={run.path} must be a run's folder; there is no {run.config}.")
    config = OmegaConf.load(run.config)
    assert isinstance(config, DictConfig)
    return resolve(config)


def read_status(run: RunFolder) -> Status | None:
    """The run's status; None if the run was never started, or its file is damaged."""
    try:
        status = Status(**json.loads(run.status.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return status if status.state in get_args(State) else None


def write_status(run: RunFolder, status: Status) -> None:
    write_json(run.status, asdict(status))


def is_done(run: RunFolder) -> bool:
    """Whether the run's last word is that it is done, and it is evaluated as its protocol asks."""
    return state_of(run, read_status(run)) == "done"


def state_of(run: RunFolder, status: Status | None) -> str:
    """The state of a run with this status, for people: ``to do``, or that of the status.

    A run that is done, but not yet evaluated as its protocol asks, is ``to be evaluated``.
    """
    if status is None:
        return "to do"
    asked = run.protocol if status.state == "done" else None
    if asked is not None and not (run.evaluated(asked) / GAIN).exists():
        return "to be evaluated"
    return status.state


@contextmanager
def running(
    run: RunFolder, *, wait: bool = False, poll: float = 1.0, process: Process = ALONE
) -> Iterator[bool]:
    """Owns a run while its work is done, and keeps its status and provenance.

    ::

        with running(run) as todo:
            if todo:
                train()

    Yields False, and leaves the folder alone, if the run is already done, also where the process
    that this one waited for finished it. Otherwise the status is ``running`` inside the block.
    After the block it is ``done``, or ``preempted`` after a `Preempted`, or ``failed`` after
    another exception; the exception goes on to the caller.

    A lock of the operating system makes the ownership exclusive, on one host and on file systems
    that share locks between hosts. It ends with its process, so kill -9 blocks nobody. But a lock
    tells nothing, so a thread also refreshes ``heartbeat`` in the status every ten seconds: by the
    heartbeat, people and other hosts tell a run that works from one that died.

    wait: whether to wait for another owner (a prerequisite), with a log line now and then, looking
        every `poll` seconds, or to raise UserError that names the owner.
    process: one of the processes that make the run together. The main one owns the run for all.
    """
    with ExitStack() as owned:
        yield process.first(lambda: owned.enter_context(_owning(run, wait=wait, poll=poll)))


@contextmanager
def _owning(run: RunFolder, *, wait: bool, poll: float) -> Iterator[bool]:
    with _lease(run, wait=wait, poll=poll):
        previous = read_status(run)
        if state_of(run, previous) == "done":
            logger.info("%s is done", run.path)
            yield False
            return
        status = Status.here("running", attempt=previous.attempt + 1 if previous else 1)
        write_status(run, status)
        try:
            add_attempt(run.provenance)
            with _heartbeat(run, status):
                yield True
        except BaseException as error:
            _write_end(run, status, error)
            raise
        write_status(run, replace(status, state="done", heartbeat=now()))


@contextmanager
def note_failure(run: RunFolder) -> Iterator[None]:
    """Keeps in the status what goes wrong before `running`, or between two attempts, and raises it.

    With this the run itself says what became of it, whatever that was.
    """
    before = read_status(run)
    try:
        yield
    except Preempted:
        raise
    except BaseException as error:
        # The failure is kept only if the status is unchanged and there is anything left to do.
        if read_status(run) == before and not is_done(run):
            _write_end(run, Status.here("failed", before.attempt + 1 if before else 1), error)
        raise


@contextmanager
def _lease(run: RunFolder, *, wait: bool, poll: float) -> Iterator[None]:
    with writing(run.path):
        run.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run.path / ".lock")
        noticed = -math.inf
        while not lock.is_locked:
            try:
                lock.acquire(timeout=poll if noticed > 0 else 0.0, poll_interval=poll)
            except Timeout:
                if not wait:
                    raise UserError(
                        f"run={run.path} must have one process at a time; got {_owner(run)}. "
                        "Wait for it or stop it."
                    ) from None
                boundary()
                if time.monotonic() - noticed >= NOTICE_SECONDS:
                    logger.info("waiting for %s, held by %s", run.path, _owner(run))
                    noticed = time.monotonic()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _heartbeat(run: RunFolder, status: Status) -> Iterator[None]:
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            try:
                write_status(run, replace(status, heartbeat=now()))
            except UserError as error:  # a missed beat is no reason to stop the work
                logger.warning("%s", error)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()  # so that no late beat overwrites the final status


def _write_end(run: RunFolder, status: Status, error: BaseException) -> None:
    try:
        write_status(run, _ended(status, error))
    except UserError as unwritable:  # a full disk must not hide what went wrong first
        logger.error("%s", unwritable)


def _ended(status: Status, error: BaseException) -> Status:
    if isinstance(error, Preempted):
        return replace(status, state="preempted", heartbeat=now())
    if isinstance(error, KeyboardInterrupt):
        text = "interrupted"
    elif isinstance(error, (UserError, RankError)):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return replace(status, state="failed", heartbeat=now(), error=" ".join(text.split()))


def _owner(run: RunFolder) -> str:
    status = read_status(run)
    return f"host={status.host} pid={status.pid}" if status else "another process"
