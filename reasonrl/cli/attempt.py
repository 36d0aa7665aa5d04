"""A command's work that can be stopped, and continued by the same command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from reasonrl.runs.preemption import STOPPED, Preempted, listening
from reasonrl.util.progress import console


@contextmanager
def attempt() -> Iterator[None]:
    """Lets the work inside save when a signal comes, says so, and exits with status 75."""
    with listening():
        try:
            yield
        except Preempted as told:
            console.print(f"stopped by {told}. The same command goes on from here.")
            sys.exit(STOPPED)
