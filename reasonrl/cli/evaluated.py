"""Where the record of an evaluation goes, and how its metrics are shown."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from reasonrl.cli.runs import FORMATS
from reasonrl.grading.estimates import Estimate
from reasonrl.report.export import export
from reasonrl.report.tables import estimates_table
from reasonrl.util.errors import UserError
from reasonrl.util.progress import output


def writable(path: Path, outputs: Path) -> Path:
    """The path, or where nothing may be written there one in the folder of outputs."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if os.access(there, os.W_OK):
        return path
    where = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:8]
    return outputs / "evaluations" / where / path.name


def check_format(kind: str) -> None:
    """Raises UserError for a format that isn't known."""
    if kind not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}; got format={kind}.")


def show(name: str, num_problems: int, estimates: Mapping[str, Estimate], kind: str) -> None:
    """Prints metrics to stdout, as a table for people or as ``export`` has them."""
    if kind == "table":
        output.print(estimates_table(f"{name}: {num_problems} problems", estimates))
    else:
        print(export([{"name": name, **estimates}], kind))
