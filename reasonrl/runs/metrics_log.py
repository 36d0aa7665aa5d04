"""Metrics as one JSON object a line, in a file that can be rewound to a checkpoint."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from reasonrl.config.algorithm import ALGORITHMS
from reasonrl.runs.process import ALONE, Process
from reasonrl.util.atomic import writing
from reasonrl.util.errors import UserError

PREFIXES = ("rollout", *ALGORITHMS, "eval", "time")


class MetricsLog:
    """Appends to metrics.jsonl; each line has reached the operating system when `log` returns.

    To log no step twice, a loop stores `position()` in its checkpoint and calls `rewind(position)`
    when it resumes from that checkpoint, or `rewind(0)` when it starts over.

    Nothing but what the caller passes is written, so two equal runs write equal bytes; wall-clock
    times belong under ``time/``, which comparisons leave out.
    """

    def __init__(
        self,
        path: Path,
        on_line: Callable[[], None] | None = None,
        process: Process = ALONE,
    ) -> None:
        """Opens for appending; a last line that a killed process left half-written is cut off.

        on_line: called after each line. Loops rewind when they begin, before they log anything; so
            what the file holds then is there to stay, as long as this process lives.
        process: one of the processes that make the run together. Only the main one writes lines.
        """
        self.path = path
        self._on_line = on_line
        self._file: FileIO | None = None
        if not process.is_main:
            return
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # It is unbuffered, so that a failed write leaves nothing behind to be written later.
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
            self._file.truncate(len(_whole_lines(path)))

    def log(self, step: int, metrics: Mapping[str, float | int | str]) -> None:
        """Appends ``{"step": step, **metrics}``.

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
        record = {"step": step} | {name: _to_json(value) for name, value in metrics.items()}
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with writing(self.path):
            while line:
                line = line[self._file.write(line) :]
        if self._on_line:
            self._on_line()

    def position(self) -> int:
        """The bytes logged so far.

        All of them are on the disk then, so that no checkpoint refers to lines that are lost.
        """
        if self._file is None:
            return 0
        with writing(self.path):
            os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def rewind(self, position: int) -> None:
        """Forgets what was logged after `position()` returned this value.

        Raises UserError if no line of the file ends there: the checkpoint is of another file.
        """
        if self._file is None:
            return
        content = self.path.read_bytes()
        if position != 0 and content[position - 1 : position] != b"\n":
            raise UserError(
                f"position={position} must be the end of a line of {self.path}; "
                f"got size={len(content)}. Delete the run's folder to start it over."
            )
        with writing(self.path):
            self._file.truncate(position)

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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines, oldest first; no file reads as no lines. Null (NaN or ±inf) reads as None.

    Raises UserError with file and line for a line that isn't JSON.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(_whole_lines(path).splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path}:{number} must be a JSON object; got {line[:60]!r}. Remove the line."
            ) from error
    return records


def _whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def _to_json(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
