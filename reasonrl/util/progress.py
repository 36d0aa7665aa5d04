"""What a person sees while work goes on."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

Advance = Callable[[int], None]

LOG_SECONDS = 60.0
WIDTH = 100  # columns of what goes into a file

console = Console(stderr=True)  # for all but results
output = Console(highlight=False)  # for results alone, so that they can be kept in a file
for one in (console, output):
    if not one.is_terminal and "COLUMNS" not in os.environ:
        one.width = WIDTH
logger = logging.getLogger("reasonrl.progress")  # sweep/status finds the lines in a log by it


class _RateColumn(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


class Progress:
    """Progress bars with counts, rates and the time left, on the terminal's error stream.

    Where that stream is no terminal, as in a cluster's log, a line is logged instead, at most every
    LOG_SECONDS.
    """

    def __init__(self, *, shown: bool = True) -> None:
        """shown: whether this process shows its progress; of several on one run, only one does."""
        self._shown = shown
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not (shown and console.is_terminal),
        )

    @contextmanager
    def task(
        self, description: str, total: int, tally: Callable[[int], int] | None = None
    ) -> Iterator[Advance]:
        """Shows a bar for ``total`` pieces of work.

        tally: adds what this process did to what all did, and returns that. None: it does all.

        Yields a function to call with the number of pieces that were just done.
        """
        task = self._bars.add_task(description, total=total)
        started = logged = time.monotonic()
        done = 0

        def advance(n: int) -> None:
            nonlocal done, logged
            before, done = done, tally(n) if tally else done + n
            self._bars.update(task, completed=done)
            now = time.monotonic()
            if (
                self._shown
                and self._bars.disable
                and done > before
                and (now - logged >= LOG_SECONDS or done == total)
            ):
                rate = done / max(now - started, 1e-9)
                logger.info("%s: %d of %d, %.1f/s", description, done, total, rate)
                logged = now

        self._bars.start()
        try:
            yield advance
            if tally:
                advance(0)  # what others did last
        finally:
            self._bars.stop_task(task)
            self._bars.stop()
            self._bars.remove_task(task)


def duration(seconds: float | None) -> str:
    """``3d 4h``, ``2h 05m``, ``7m 03s``, ``9s``; empty for None."""
    if seconds is None:
        return ""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {seconds:02}s" if minutes else f"{seconds}s"
