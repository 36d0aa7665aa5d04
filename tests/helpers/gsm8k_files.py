"""Files in GSM8K's format with problems whose words the embedded models know."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reasonrl.problems.stories import load as load_stories

Row = dict[str, str]


def write_gsm8k(folder: Path, change: Callable[[Row, str], Row] = lambda row, _: row) -> Path:
    """Writes train.jsonl, of whose 276 problems the last 256 are for validation, and test.jsonl.

    change: takes each row and its file's name, and gives the row to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, number in (("train", 276), ("test", 12)):
        rows: list[Any] = [
            change({"question": p.question, "answer": p.solution}, name)
            for p in load_stories(name, number, seed=0, min_steps=2, max_steps=2)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
