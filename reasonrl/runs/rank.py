"""One of a run's processes: it joins the others, and leaves a last word for those who watch it.

``runs.ranks`` starts such processes and reads what they leave.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta

from reasonrl.runs.preemption import STOPPED, Preempted, listening
from reasonrl.runs.process import Process, joined
from reasonrl.util.errors import UserError

PARENT = "REASONRL_PARENT"  # the variable with the parent's process id


@dataclass(frozen=True)
class Word:
    """The last word of a rank."""

    kind: str  # done, stopped, failed, or died, which the parent says for it
    time: float  # seconds since 1970
    text: str = ""  # the error in a line, or the signal that stopped it
    is_user_error: bool = False
    trace: str = ""  # the error's traceback


@contextmanager
def as_rank() -> Iterator[Process]:
    """In a process that ``make_together`` has started: joins the ranks, and leaves a last word.

    Inside the block signals ask to stop. The process ends with it, with the exit status of what
    became of the work.
    """
    _die_with_parent()
    with listening():
        code = 0
        try:
            with joined() as process:
                yield process
            word = Word("done", time.time())
        except Preempted as told:
            word, code = Word("stopped", time.time(), str(told)), STOPPED
        except BaseException as error:
            word, code = _failure(error), 1
        _say(word)
        sys.stdout.flush()
        sys.stderr.flush()
        # Its threads may wait for ranks that are gone, and a late signal would find no handler.
        os._exit(code)


def _failure(error: BaseException) -> Word:
    is_user_error = isinstance(error, UserError)
    text = " ".join((str(error) if is_user_error else f"{type(error).__name__}: {error}").split())
    return Word("failed", time.time(), text, is_user_error, "".join(traceback.format_exc()))


def _say(word: Word) -> None:
    from torch.distributed import TCPStore

    key = f"word/{os.environ['RANK']}"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=60),
    )
    store.set(key, json.dumps(asdict(word)))
    store.get(key)  # it has arrived


def _die_with_parent() -> None:
    """Has the system kill this process when its parent is gone (Linux)."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != int(os.environ[PARENT]):  # it was gone before
            os._exit(1)
