"""What a person sees while work goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

Advance = Callable[[int], None]

console = Console(stderr=True)


class _RateColumn(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


class Progress:
    """Progress bars with counts, rates and the time left, on the terminal's error stream."""

    def __init__(self) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
        )

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """A bar for ``total`` pieces of work; call what it gives with how many were just done."""
        self._bars.start()
        task = self._bars.add_task(description, total=total)
        try:
            yield lambda n: self._bars.advance(task, n)
        finally:
            self._bars.stop_task(task)
            if all(t.stop_time is not None for t in self._bars.tasks):
                self._bars.stop()
                for done in self._bars.task_ids:
                    self._bars.remove_task(done)
