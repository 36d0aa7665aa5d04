"""What the ends of a run's files say of how far it is, as quickly as a table of many runs asks."""

from __future__ import annotations

import json
import re
from pathlib import Path

from reasonrl.runs.folder import GAIN, RunFolder

MAJ_1 = "maj@1"
TAIL = 32 * 1024  # bytes of a log or of metrics.jsonl

_METRICS = (
    ("validation", b'"eval/validation_maj@1": '),
    ("score", b'"rollout/score": '),
    ("loss", b'/loss": '),
)
_NUMBER = re.compile(rb"[-+.\deE]+")


def tail(path: Path, size: int = TAIL) -> str:
    """The last bytes of a file as text; empty if there is no such file."""
    return end(path, size).decode(errors="replace")


def last_metric(metrics: bytes) -> str:
    """The last validation, else the last score of rollouts, else the last loss."""
    for name, key in _METRICS:
        start = metrics.rfind(key)
        if start >= 0 and (number := _NUMBER.match(metrics, start + len(key))):
            return f"{name} {float(number[0]):.3f}"
    return ""


def result(run: RunFolder) -> str:
    """maj@1 of a finished run's policy and what it gained, for people; empty if it has none."""
    if run.protocol is None:
        return ""
    folder, values = run.evaluated(run.protocol), []
    try:
        for file in (folder / "after" / "metrics.json", folder / GAIN):
            values.append(json.loads(file.read_bytes())["estimates"][MAJ_1]["value"])
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return f"{MAJ_1} {values[0]:.1%}, gain {values[1]:+.1%}"


def end(path: Path, size: int = TAIL) -> bytes:
    """The last bytes of a file; none if there is no such file."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - size, 0))
            return file.read()
    except OSError:
        return b""
