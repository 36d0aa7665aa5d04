"""What processes do together, in real processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reasonrl.runs.process import Process
from reasonrl.util.errors import UserError
from tests.helpers.ranks import in_ranks


def words(process: Process) -> dict[str, Any]:
    def refuse() -> None:
        raise UserError("the disk is full")

    with pytest.raises(UserError) as refused:
        process.first(refuse)
    with pytest.raises(UserError) as refused_by_one:
        process.each(refuse if process.rank == 1 else list)
    found: dict[str, Any] = {
        "refused": str(refused.value),
        "refused_by_one": str(refused_by_one.value),
        "each": process.each(lambda: process.rank + 10),
        "gather": process.gather(f"of {process.rank}"),
        "broadcast": process.broadcast({"rank": process.rank}),
        "first": process.first(lambda: process.rank + 10),
        "sum": process.sum(torch.tensor([1.0, process.rank])).tolist(),
        "stop": process.agree(stop=process.rank == 1, due=process.rank == 1),
        "due": process.agree(stop=False, due=process.is_main),
        "mesh": process.mesh.size() if process.mesh is not None else None,
    }
    process.barrier()
    return found


def test_what_ranks_tell_each_other() -> None:
    assert (
        in_ranks(2, words)
        == [
            {
                "refused": "the disk is full",
                "refused_by_one": "the disk is full",
                "each": [10, 11],
                "gather": ["of 0", "of 1"],
                "broadcast": {"rank": 0},
                "first": 10,
                "sum": [2.0, 1.0],
                "stop": (True, False),
                "due": (False, True),
                "mesh": 2,
            }
        ]
        * 2
    )


def deal(process: Process, slow: int) -> list[int]:
    mine: list[int] = []
    store = process.store
    assert store is not None
    for number in process.deal("work", 7):
        store.set(f"has one/{process.rank}", "")
        store.wait([f"has one/{1 - process.rank}"])
        if process.rank == slow:
            store.wait(["the others are done"])
        mine.append(number)
        if len(mine) == 6:
            store.set("the others are done", "")
    return mine


@pytest.mark.parametrize("slow", [0, 1])
def test_whoever_is_free_takes_the_next_piece_of_work(slow: int) -> None:
    dealt = in_ranks(2, deal, slow)
    assert sorted(dealt[0] + dealt[1]) == list(range(7))
    assert len(dealt[slow]) == 1


def fail(process: Process) -> None:
    if process.rank == 1:
        raise ValueError("no room")
    process.barrier()


def test_a_helper_that_runs_ranks_says_which_one_failed() -> None:
    with pytest.raises(AssertionError, match=r"rank \d: "):
        in_ranks(2, fail, timeout=30)
