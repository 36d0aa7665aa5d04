"""A run of many processes: a parent starts its ranks, watches them, and says how they ended.

    python train.py …            the parent: it owns the run, and holds no GPU
      └ rank 0 … N-1             ``python -m reasonrl.pipeline.rank RUN_FOLDER``

On several machines there is a parent on each. That of the first one owns the run; the others start
their machine's ranks and tell them what they are told (``lend``).

**Words.** The parent of the first machine holds a store, through which ranks find each other, and
in which each leaves a last word: that it is done, was stopped, or failed, with its error. For a
rank that ends without one, killed or lost in a segfault, its parent leaves the word. So who failed
first is known, though soon after it all others fail for want of it.

**Ends.** When a rank fails, all parents end theirs: by SIGTERM, five seconds later by SIGKILL. A
rank whose parent dies is killed by the system (Linux).

**Signals.** The parent hands on what asks it to stop. Ranks are in a session of their own, so that
a terminal's Ctrl-C reaches the parent alone, and are started with these signals blocked, until
they listen: one that comes during their imports isn't lost, and kills nobody.

This module imports torch only where it is needed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from reasonrl.config.schema import EvaluateConfig
from reasonrl.runs.machines import Machine, check, num_processes
from reasonrl.runs.preemption import SIGNALS, Preempted, boundary, received
from reasonrl.runs.process import usable_cores
from reasonrl.runs.rank import PARENT, Word
from reasonrl.util.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore

POLL_SECONDS = 0.1
SETTLE_SECONDS = 1.0  # from the first sign of a failure until it is decided who failed first
GRACE_SECONDS = 5.0  # from SIGTERM to SIGKILL
PARTING_SECONDS = 7.0  # how long the first machine waits for the others to have read the store
# How long it waits for one that is silent after a failure: meanwhile Slurm finds out whether that
# machine is gone (SlurmdTimeout, 300 s by default), and puts the job back into the queue.
SILENCE_SECONDS = 600.0
KNOCK_SECONDS = 5.0  # how long a machine tries to reach the store before it looks around again

CALL, FAILED = "call", "failed"  # keys of the store: what is to be started; whether one failed
PACKAGE = Path(__file__).parents[1]


class RankError(Exception):
    """Says which rank failed first, and of what: ``rank 3: ValueError: …``."""


def of_run(folder: Path) -> list[str]:
    """The command of a rank that makes the run in this folder with the others."""
    return [sys.executable, "-P", "-m", "reasonrl.pipeline.rank", str(folder)]


@dataclass(frozen=True)
class Call:
    """What the machines of a run are called for: to start ranks."""

    command: list[str]  # what each rank executes
    size: int  # the number of ranks, on all machines
    on_cpu: bool  # whether ranks see no GPU
    id: str  # tells one call from the next


def make_together(command: list[str], config: EvaluateConfig) -> None:
    """Starts the ranks of the run that this process owns, and returns when all have done it.

    command: what each rank executes.

    Raises Preempted if the ranks were told to stop and have saved, RankError if one failed, and
    UserError if what failed is the user's to put right.
    """
    check(config)
    call = Call(command, num_processes(config), config.model.device == "cpu", uuid.uuid4().hex)
    machine = Machine.here()
    store = _store(machine, is_master=True)
    store.set(CALL, json.dumps(asdict(call)))
    ranks = _Ranks(call, replace(machine, port=store.port), store)
    with ranks.started():
        is_well = ranks.watch()
    _part(store, machine, is_well=is_well)
    ranks.raise_end()


def lend(is_over: Callable[[], bool]) -> None:
    """Starts ranks on this machine whenever the first one calls for them, until the work is over.

    is_over: whether the first machine won't call again. Nor does it after ranks that failed or
        stopped; what became of them is for that machine to say.

    Raises Preempted if this process is told to stop between two calls.
    """
    machine, answered, is_done = Machine.here(), "", True
    while is_done and not is_over():
        boundary()
        store = _knock(machine)
        call = Call(**json.loads(store.get(CALL))) if store else None
        if store is None or call is None or call.id == answered:
            time.sleep(POLL_SECONDS)
            continue
        ranks = _Ranks(call, machine, store)
        with ranks.started():
            is_done = ranks.watch()
        answered = call.id
        with suppress(RuntimeError):  # the store may be gone by now
            store.set(f"left/{machine.number}", "")


def _store(machine: Machine, *, is_master: bool, seconds: float = 60.0) -> TCPStore:
    from torch.distributed import DistNetworkError, TCPStore

    try:
        return TCPStore(
            machine.host,
            machine.port,
            is_master=is_master,
            wait_for_workers=False,
            timeout=timedelta(seconds=seconds),
        )
    except DistNetworkError as error:
        if not is_master:
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"port={machine.port} must be free on {machine.host}, for the run's processes to find "
            f"each other; got {reason}. Submit the run again."
        ) from None


def _knock(machine: Machine) -> TCPStore | None:
    from torch.distributed import DistError

    try:
        return _store(machine, is_master=False, seconds=KNOCK_SECONDS)
    except DistError:
        return None


def _part(store: Store, machine: Machine, *, is_well: bool) -> None:
    """Waits, but not for ever, until the other machines have read how the run ended.

    It ends sooner if this process is told to stop: where another's process died, Slurm does so.
    """
    left = [f"left/{number}" for number in range(1, machine.count)]
    began = time.monotonic()
    while not store.check(left):
        waited = time.monotonic() - began
        if waited > PARTING_SECONDS and (is_well or received()):
            return
        if waited > SILENCE_SECONDS:
            return
        time.sleep(POLL_SECONDS)


class _Ranks:
    """The ranks of one machine."""

    def __init__(self, call: Call, machine: Machine, store: Store) -> None:
        self._call, self._machine, self._store = call, machine, store
        self._local_size = call.size // machine.count
        first = machine.number * self._local_size
        self._mine = range(first, first + self._local_size)
        self._children: dict[int, subprocess.Popen[bytes]] = {}  # by rank
        self._words: dict[int, Word] = {}
        self._told = False  # whether they were told to stop
        self._stuck: list[int] = []  # those that had to be killed

    @contextmanager
    def started(self) -> Iterator[None]:
        """Starts them; none of them outlives the block."""
        # What a parent blocks, its children are born with blocked.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            try:
                for local_rank, rank in enumerate(self._mine):
                    self._children[rank] = self._start(rank, local_rank)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            yield
        finally:
            self._kill()

    def _start(self, rank: int, local_rank: int) -> subprocess.Popen[bytes]:
        path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
        threads = max(1, usable_cores() // self._local_size)
        environment = (
            {"OMP_NUM_THREADS": str(threads)}
            | os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(local_rank),
                "WORLD_SIZE": str(self._call.size),
                "LOCAL_WORLD_SIZE": str(self._local_size),
                "MASTER_ADDR": "localhost" if self._machine.is_first else self._machine.host,
                "MASTER_PORT": str(self._machine.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",  # no rank has to hold the store
                PARENT: str(os.getpid()),
                "HF_HUB_OFFLINE": "1",  # the plan has fetched everything
                "PYTHONPATH": path,  # the code that the parent runs
            }
        )
        if self._call.on_cpu:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        return subprocess.Popen(self._call.command, env=environment, start_new_session=True)

    def watch(self) -> bool:
        """Returns when all have left a word or one has failed; whether their work is done.

        The machine that owns the run waits for the words of all ranks, any other for its own.
        """
        awaited = range(self._call.size) if self._machine.is_first else self._mine
        while not all(rank in self._words for rank in awaited):
            time.sleep(POLL_SECONDS)
            self._hand_on_signals()
            self._listen(awaited)
            if self._store.check([FAILED]) or self._failures():
                self._end(awaited)
                return False
        self._wait(GRACE_SECONDS)
        return all(word.kind == "done" for word in self._words.values())

    def raise_end(self) -> None:
        """Raises what became of the ranks, unless they are done."""
        if failures := self._failures():
            rank, word = failures[0]
            text = f"rank {rank}: {word.text}"
            if word.is_user_error:
                raise UserError(text)
            stuck = [str(other) for other in self._stuck if other != rank]
            if stuck:
                text += f" (had to be killed: rank {', '.join(stuck)})"
            error = RankError(text)
            if word.trace:
                error.add_note(f"\nrank {rank}:\n{word.trace}")
            raise error
        stopped = [word for word in self._words.values() if word.kind == "stopped"]
        if stopped:
            asked = received()
            raise Preempted(asked.name if asked else stopped[0].text)

    def _hand_on_signals(self) -> None:
        asked = received()
        if asked and not self._told:
            self._told = True
            self._tell(signal.SIGTERM if asked == signal.SIGINT else asked)

    def _listen(self, awaited: Sequence[int]) -> None:
        """Reads the words there are, and leaves one for each rank that ended without."""
        # Whoever has ended has said its word before: so this is asked first.
        ended = {rank: child.poll() for rank, child in self._children.items()}
        for rank in awaited:
            if rank in self._words:
                continue
            key = f"word/{rank}"
            if self._store.check([key]):
                self._words[rank] = Word(**json.loads(self._store.get(key)))
            elif (code := ended.get(rank)) is not None:
                self._words[rank] = word = Word("died", time.time(), _how_ended(code))
                self._store.set(key, json.dumps(asdict(word)))

    def _failures(self) -> list[tuple[int, Word]]:
        """Those that failed, by time; but first those that died, for want of which others fail."""
        failed = [(r, word) for r, word in self._words.items() if word.kind in ("died", "failed")]
        return sorted(failed, key=lambda found: (found[1].kind, found[1].time))

    def _end(self, awaited: Sequence[int]) -> None:
        """Ends all ranks, after those have spoken that knew of a failure first."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            self._listen(awaited)
        known = dict(self._words)
        self._store.set(FAILED, "")
        self._tell(signal.SIGTERM)
        self._stuck = self._wait(GRACE_SECONDS)
        self._words = known  # what they say when they are ended is no reason

    def _tell(self, number: signal.Signals) -> None:
        for child in self._children.values():
            child.send_signal(number)

    def _wait(self, seconds: float) -> list[int]:
        """Waits for their ends. Returns those that have none after so many seconds."""
        deadline = time.monotonic() + seconds
        alive = list(self._children)
        while alive and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            alive = [rank for rank in alive if self._children[rank].poll() is None]
        return alive

    def _kill(self) -> None:
        for child in self._children.values():
            if child.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # and what it has started
                child.wait()


def _how_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit status {code} before its work was done"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
