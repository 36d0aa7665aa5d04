"""What a run's W&B folder holds, by W&B's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from reasonrl.runs.folder import RunFolder


def read_back(run: RunFolder) -> list[dict[str, Any]]:
    """All records of the one W&B folder of a run."""
    (folder,) = run.path.glob("wandb/*run-*")
    process = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in process.stdout.splitlines()]


def records_of(kind: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


def logged(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what W&B adds: its own step, the time."""
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in history]


def history(run: RunFolder) -> list[dict[str, Any]]:
    return logged([record["item"] for record in records_of("history", read_back(run))])
