"""Work of a command that can be stopped, and gone on with by the same command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from reasonrl.runs.preemption import STOPPED, Preempted, listening
from reasonrl.util.progress import console


@contextmanager
def attempt() -> Iterator[None]:
    """Inside, a signal lets the work save; then one line says so, and the exit status is 75."""
    with listening():
        try:
            yield
        except Preempted as told:
            console.print(f"stopped by {told}. The same command goes on from here.")
            sys.exit(STOPPED)
