"""A run that is told to stop saves where it is and raises ``Preempted``; its next attempt goes on.

Clusters announce the end of a job's time by a signal: SIGUSR2 (a time limit ahead) or SIGTERM
(a preemption, or scancel); a person presses Ctrl-C (SIGINT). Inside ``listening``, which is around
every run and every evaluation, these signals only leave a note. Loops look at the note at their
boundaries, where all they have done can be kept:

- learning looks after each optimizer step, and writes a checkpoint, however young the last one is;
- sampling looks whenever completions finish: all whole shards are on disk
  (``rollouts.SHARD_SIZE``), and the shard in work is given up;
- a reward model's judging looks after each forward pass, and starts over at the next attempt.

From the signal to the exit it takes as long as one optimizer step, or as sampling until a
completion ends, or as PPO's assessment of an iteration's rollouts; then a checkpoint is written and
W&B's mirror is closed. A run loses at most the shard in work and, where sampling or judging that
follows a fit is interrupted, the fit's steps since its last periodic checkpoint.

Three places catch ``Preempted``: ``runs.folder.running`` writes the status, ``cli.attempt`` ends a
command with exit status 75, and ``sweep.worker`` puts a job back into the queue.

Processes that make a run together stop together (``boundary``, ``at_own_pace``): it is enough that
one of them was told to.

A signal during imports and planning does what it always does to Python: no run has begun.

A person who doesn't want to wait presses Ctrl-C again. That ends the run at once, as a failure: its
status says ``interrupted``, and the next attempt goes on from the last periodic checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from reasonrl.runs.process import ALONE, Process

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
STOPPED = 75  # the exit status of a run that has saved: EX_TEMPFAIL of sysexits.h ("try later")
STDERR = 2
PATIENCE = b"\nsaving at the next opportunity. Ctrl-C again ends at once, without.\n"

ELSEWHERE = "a signal to another process"

_received: signal.Signals | None = None
_listening = False


class Preempted(Exception):
    """Raised by a loop that was told to stop and has saved: its run goes on at the next attempt."""


@contextmanager
def listening() -> Iterator[None]:
    """Inside the block SIGNALS ask to stop; after it they do what they did before.

    Within another ``listening`` it changes nothing. A process that was started to ignore Ctrl-C, as
    shells start what is in the background, ignores Ctrl-C inside too. Only the main thread may use
    it: Python has no signal handlers elsewhere (ValueError).
    """
    global _received, _listening
    if _listening:
        yield
        return
    _received = None
    ignored = {signal.SIGINT} if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else set()
    before = {number: signal.signal(number, _note) for number in SIGNALS if number not in ignored}
    _listening = True
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # see runs.ranks
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received, _listening = None, False


def _note(number: int, _: FrameType | None) -> None:
    """Leaves a note. It may run between any two instructions, in the midst of a log line too."""
    global _received
    if number == signal.SIGINT:
        if _received is not None:
            raise KeyboardInterrupt
        with suppress(OSError):  # a person sees that it was noticed
            os.write(STDERR, PATIENCE)
    _received = _received or signal.Signals(number)


def received() -> signal.Signals | None:
    """The signal that asked to stop: the first, if several did; None if none did."""
    return _received


def requested() -> bool:
    """Whether a signal has asked to stop."""
    return _received is not None


def boundary(
    save: Callable[[], None] | None = None, *, due: bool = False, process: Process = ALONE
) -> None:
    """A place where a loop can stop. Raises Preempted if a signal asked to stop.

    save: keeps what was done so far; called before the loop stops, and also if saving is ``due``.
    process: one of the processes that all come to this boundary; all stop if any was told to.
    """
    # The note is read once: a signal that comes while saving is for the next boundary.
    stop, due = process.agree(stop=requested(), due=due)
    if save and (stop or due):
        save()
    if stop:
        by = _received.name if _received else ELSEWHERE
        logger.info("told to stop by %s: the next attempt goes on from here", by)
        raise Preempted(by)


@contextmanager
def at_own_pace(process: Process) -> Iterator[None]:
    """Surrounds what the processes of a run do without waiting for each other.

    A process that is told to stop leaves the block at a boundary. Then all processes meet, and stop
    if any of them was told to.
    """
    told: Preempted | None = None
    try:
        yield
    except Preempted as error:
        told = error
    stop, _ = process.agree(stop=told is not None, due=False)
    if stop:
        raise told or Preempted(ELSEWHERE)


@contextmanager
def saving(save: Callable[[], None]) -> Iterator[None]:
    """Calls ``save`` if a boundary inside stops, for boundaries that keep nothing themselves."""
    try:
        yield
    except Preempted:
        save()
        raise


def with_boundary(on_progress: Callable[[int], None]) -> Callable[[int], None]:
    """A function that calls ``on_progress`` and then comes to a boundary."""

    def call(n: int) -> None:
        on_progress(n)
        boundary()

    return call
