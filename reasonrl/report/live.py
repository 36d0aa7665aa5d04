"""The line that is shown of each iteration, round or epoch of a run: ``Panels.line`` says of what.

It is made of the lines of metrics.jsonl alone, so that a resumed run goes on as it was shown.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from reasonrl.config.algorithm.base import VALIDATED, VALIDATION, Algorithm, Cell
from reasonrl.grading.estimates import estimate_mean
from reasonrl.runs.metrics_log import ELAPSED
from reasonrl.util.progress import duration

logger = logging.getLogger(__name__)

RATE = Cell("tok/s", "time/tokens_per_second", "6,.0f")
LEFT = Cell("left", ELAPSED, "7")
HEADS_EVERY = 20  # lines
GAP = "  "


class Live:
    """Shows the lines of a run while metrics.jsonl grows; ``follow`` is for ``MetricsLog``."""

    def __init__(self, metrics: Path, settings: Algorithm, num_validation: int) -> None:
        """Nothing is shown of what the file holds when ``follow`` is called for the first time.

        metrics: the file, which only grows from then on.
        num_validation: the number of validation problems.
        """
        self._metrics, self._settings, self._line = metrics, settings, settings.panels.line
        self._num_validation = num_validation
        self._bytes: int | None = None  # of the file, read so far
        self._since: dict[str, list[float]] = {}  # the values of each metric since the last line
        self._number = 0  # of parts that are done
        self._shown = 0  # lines below the last heads
        if self._line:
            self._total = int(getattr(settings, self._line.total))
            width = len(f"{self._total}/{self._total}")
            self._part = Cell(self._line.part, self._line.number, str(width))
            self._cells = (self._part, *self._line.cells, RATE, LEFT)

    def follow(self) -> None:
        """Shows what the new lines of metrics.jsonl end."""
        if self._line is None:
            return
        with open(self._metrics, "rb") as file:
            file.seek(self._bytes or 0)
            new = file.readlines()
        before = len(new) - 1 if self._bytes is None else 0  # logged by an earlier attempt
        self._bytes = (self._bytes or 0) + sum(map(len, new))
        for place, line in enumerate(new):
            self._add(json.loads(line), shown=place >= before)

    def _add(self, record: Mapping[str, Any], *, shown: bool) -> None:
        for name, value in record.items():
            if isinstance(value, int | float):
                self._since.setdefault(name, []).append(value)
        assert self._line is not None
        self._number = record.get(self._line.number, self._number)
        if not self._ends(record):
            return
        if shown:
            # Completions are logged at each validation: what stands above them is out of sight.
            if VALIDATION in record or self._shown % HEADS_EVERY == 0:
                self._show(cell.head for cell in self._cells)
                self._shown = 0
            self._show(map(self._text, self._cells))
            self._shown += 1
        self._since = {}

    def _ends(self, record: Mapping[str, Any]) -> bool:
        assert self._line is not None
        if VALIDATION in record or self._line.ends not in record:
            return VALIDATION in record
        validates = self._line.validates
        return validates is None or not validates(self._settings, self._number)

    def _text(self, cell: Cell) -> str:
        if cell is self._part:
            return f"{self._number}/{self._total}"
        values = self._since.get(cell.metric)
        if not values:
            return ""
        if cell is LEFT:
            todo = self._total - self._number
            return duration(values[-1] / self._number * todo) if self._number else ""
        if cell is VALIDATED:
            num_right = round(values[-1] * self._num_validation)
            return str(estimate_mean(np.arange(self._num_validation) < num_right))
        return format(fmean(values), cell.form)

    def _show(self, texts: Iterable[str]) -> None:
        padded = [text.rjust(cell.width) for text, cell in zip(texts, self._cells, strict=True)]
        logger.info("%s", GAP.join(padded).rstrip())
