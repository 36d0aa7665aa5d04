"""Metrics as one JSON object a line, in a file that can be rewound to a checkpoint.

Beside its metrics a line has STAMPS: when it was written, and what the run had taken until then.
They are no metrics, and readers get them only if they ask.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from reasonrl.config.algorithm import ALGORITHMS
from reasonrl.runs.process import ALONE, Process
from reasonrl.util.atomic import writing
from reasonrl.util.errors import UserError

PREFIXES = ("rollout", "pg", *ALGORITHMS, "eval", "time")
MEASURED = ("time/", "memory/")  # of what the machine took; no two equal runs have it equal

NOW = "time/now"  # seconds since 1970, UTC
ELAPSED = "time/elapsed"  # seconds that the run has worked, in all its attempts
PEAK_MEMORY = "memory/peak_gb"  # the most so far in this attempt, in 10⁹ bytes
STAMPS = (NOW, ELAPSED, PEAK_MEMORY)


def peak_memory() -> float:
    """The most memory that this process has had so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


class MetricsLog:
    """Appends to metrics.jsonl; each line has reached the operating system when `log` returns.

    To log no step twice, a loop stores `position()` in its checkpoint and calls `rewind(position)`
    when it resumes from that checkpoint, or `rewind(0)` when it starts over.

    But for what is MEASURED two equal runs write equal lines: see ``reproducible``.
    """

    def __init__(
        self,
        path: Path,
        on_line: Callable[[], None] | None = None,
        process: Process = ALONE,
        peak_memory: Callable[[], float] = peak_memory,
    ) -> None:
        """Opens for appending; a last line that a killed process left half-written is cut off.

        on_line: called after each line. Loops rewind when they begin, before they log anything; so
            what the file holds then is there to stay, as long as this process lives.
        process: one of the processes that make the run together. Only the main one writes lines.
        peak_memory: gives the bytes of which a line says that they were the most so far.
        """
        self.path = path
        self._on_line = on_line
        self._peak_memory = peak_memory
        self._lines = 0
        self._began = 0.0  # of the clock, where the run would have begun had it never paused
        self._file: FileIO | None = None
        if not process.is_main:
            return
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # It is unbuffered, so that a failed write leaves nothing behind to be written later.
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
            self._file.truncate(len(_whole_lines(path)))
        records = read_metrics(path, stamps=True)
        self._lines = len(records)
        earlier = (record.get(ELAPSED) for record in reversed(records))
        self._began = time.monotonic() - next(filter(None, earlier), 0.0)

    def log(self, step: int, metrics: Mapping[str, float | int | str]) -> None:
        """Appends ``{"step": step, **metrics}`` and STAMPS.

        NaN and ±inf, which JSON lacks, are written as null. NumPy scalars are welcome.
        Raises ValueError for a name without a known prefix, UserError if the disk is full.
        """
        for name in metrics:
            if name.partition("/")[0] not in PREFIXES or "/" not in name:
                raise ValueError(
                    f"metric {name!r} must start with one of {', '.join(PREFIXES)} and a slash"
                )
        if self._file is None:
            return
        record = {
            "step": step,
            **{name: _to_json(value) for name, value in metrics.items()},
            NOW: round(time.time(), 3),
            ELAPSED: round(time.monotonic() - self._began, 3),
            PEAK_MEMORY: round(self._peak_memory() / 1e9, 3),
        }
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with writing(self.path):
            while line:
                line = line[self._file.write(line) :]
        self._lines += 1
        if self._on_line:
            self._on_line()

    def position(self) -> int:
        """The number of lines so far.

        All of them are on the disk then, so that no checkpoint refers to lines that are lost.
        """
        if self._file is None:
            return 0
        with writing(self.path):
            os.fsync(self._file.fileno())
        return self._lines

    def rewind(self, position: int) -> None:
        """Forgets what was logged after `position()` returned this value.

        Raises UserError if the file never had so many lines: the checkpoint is of another file.
        """
        if self._file is None:
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        if not 0 <= position <= len(lines):
            raise UserError(
                f"position={position} must be at most the number of lines of {self.path}; "
                f"got {len(lines)}. Delete the run's folder to start it over."
            )
        with writing(self.path):
            self._file.truncate(sum(map(len, lines[:position])))
        self._lines = position

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(path: Path, *, stamps: bool = False) -> list[dict[str, Any]]:
    """All whole lines, oldest first; no file reads as no lines. Null (NaN or ±inf) reads as None.

    stamps: whether the lines keep their STAMPS.

    Raises UserError with file and line for a line that isn't JSON.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(_whole_lines(path).splitlines(), start=1):
        try:
            record = json.loads(line)
            records.append(record if stamps else without(STAMPS, record))
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"{path}:{number} must be a JSON object; got {line[:60]!r}. Remove the line."
            ) from error
    return records


def reproducible(path: Path) -> list[dict[str, Any]]:
    """The lines as every equal run has them: without what is MEASURED."""
    return [without(MEASURED, record) for record in read_metrics(path)]


def without(prefixes: tuple[str, ...], record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without those entries whose names begin like this."""
    return {name: value for name, value in record.items() if not name.startswith(prefixes)}


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _to_json(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
