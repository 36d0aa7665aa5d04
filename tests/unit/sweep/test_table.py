"""What a terminal shows of a sweep: rows of its width, and runs while they are made here."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from reasonrl.sweep import board
from reasonrl.sweep.board import Board
from reasonrl.sweep.status import look
from reasonrl.sweep.table import status_table
from tests.helpers.fake_sweep import made_up_sweep

NAME = "ei-sparse-qwen2.5-0.5b-sft-gsm8k-s{}-1a2b3c4d"


@pytest.mark.parametrize("width", [80, 140])
def test_no_row_is_wider_than_the_terminal_and_no_cell_is_parted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr("reasonrl.sweep.slurm.available", lambda: False)
    sweep, _ = made_up_sweep(tmp_path, [NAME.format(seed) for seed in range(2)], "local")
    reason = "no sign of life for 12 min, says node"
    findings = [
        replace(one, metric="validation 0.250", progress="round 2: sampling", reason=reason)
        for one in look(sweep)
    ]
    rows = status_table("ei-1a2b3c4d", findings, logs=False, width=width).plain.splitlines()
    assert max(map(len, rows)) <= width
    text = "\n".join(rows)
    for cell in ("ei-sparse-qwen2.5-0.5b-sft-gsm8k-s1", "round 2: sampling", reason):
        assert text.count(cell) == (1 if "s1" in cell else 2)
    starts = {row.index("no sign") for row in rows if "no sign" in row}
    assert len(starts) == 1  # one below the other


def test_a_board_has_a_bar_a_clock_and_each_run_s_last_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [NAME.format(seed) for seed in range(3)]
    sweep, _ = made_up_sweep(tmp_path, names, "local")
    seconds = iter([0.0, 0.0, 63.0, 63.0, 63.0, 64.0])
    monkeypatch.setattr(board.time, "monotonic", lambda: next(seconds, 64.0))
    shown = Board(replace(sweep, at_once=2), total=3)
    for name in names[:2]:
        shown.begin(name)
    sweep.run(names[0]).metrics.write_text('{"step": 4, "rollout/score": 0.25}\n')
    console = Console(file=io.StringIO(), width=60, force_terminal=True)
    console.print(shown._rows())
    text = console.file.getvalue()
    assert "0/3" in text
    assert "ei-sparse-qwen2.5-0.5b-sft-gsm8k-s0  1m 03s  score 0.250" in text
    assert "ei-sparse-qwen2.5-0.5b-sft-gsm8k-s1  1m 03s" in text
    assert shown.end(names[0]).startswith("1 of 3, 1m 0")
    console.print(shown._rows())
    assert "1/3" in console.file.getvalue()
