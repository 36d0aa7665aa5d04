"""A command's work that can be stopped, and continued by the same command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from reasonrl.runs.preemption import STOPPED, Preempted, listening
from reasonrl.runs.process import ALONE, Process
from reasonrl.util.progress import console


@contextmanager
def attempt(process: Process = ALONE) -> Iterator[None]:
    """Lets the work inside save when a signal comes, says so, and exits with status 75.

    process: this one of the processes that do the work together; the main one says it.
    """
    with listening():
        try:
            yield
        except Preempted as told:
            if process.is_main:
                console.print(f"stopped by {told}. The same command goes on from here.")
            sys.exit(STOPPED)
