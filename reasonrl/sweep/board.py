"""What a terminal shows while a sweep is made on this machine: how far it is, and each run at work.

Elsewhere, and where runs are made one at a time and show themselves, a line is logged instead.
"""

from __future__ import annotations

import logging
import time
from types import TracebackType

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from reasonrl.sweep.manifest import Sweep
from reasonrl.sweep.overrides import readable_names
from reasonrl.sweep.said import end, last_metric
from reasonrl.util.progress import console, duration

logger = logging.getLogger(__name__)


class Board:
    """Shows a batch's runs as they begin and end, with the last metric of those at work."""

    def __init__(self, sweep: Sweep, total: int) -> None:
        """total: the number of runs that are to be made."""
        self._sweep, self._total, self._ended = sweep, total, 0
        self._names = readable_names(sweep.runs)
        self._began: dict[str, float] = {}  # of the runs at work
        self._bar = Progress(
            TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._task = self._bar.add_task("runs", total=total)
        self._live = Live(console=console, get_renderable=self._rows, refresh_per_second=1)
        self._is_live = console.is_terminal and sweep.at_once > 1

    def begin(self, name: str) -> None:
        """Shows that a run is at work from now on."""
        self._began[name] = time.monotonic()
        logger.info("making %s", name)

    def end(self, name: str) -> str:
        """Counts a run as ended; returns how many have, and how long it took."""
        self._ended += 1
        self._bar.update(self._task, completed=self._ended)
        took = duration(time.monotonic() - self._began.pop(name))
        return f"{self._ended} of {self._total}, {took}"

    def _rows(self) -> Group:
        rows = [
            Text(
                f"  {self._names[name]}  {duration(time.monotonic() - began)}  "
                f"{last_metric(end(self._sweep.run(name).metrics))}".rstrip(),
                no_wrap=True,
                overflow="ellipsis",
            )
            for name, began in list(self._began.items())
        ]
        return Group(self._bar, *rows)

    def __enter__(self) -> Board:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()
