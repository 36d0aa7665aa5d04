"""Runs a function in several processes that are joined in a group, as the ranks of a run are."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
import torch

DEVICE = os.environ.get("REASONRL_TEST_DEVICE", "cpu")
SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads


def in_ranks(size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> Any:
    """What ``function(process, *arguments)`` returns in each of ``size`` ranks, by rank.

    function: one that a new process can import.
    arguments: they are pickled, and so is what the function returns.

    Ranks are on the CPU, or with REASONRL_TEST_DEVICE=cuda on a GPU each; a test that needs more
    GPUs than there are is skipped.

    The first exception of any rank is raised as an AssertionError with its traceback; so is a rank
    that dies, and one that takes longer than ``timeout`` seconds. No rank outlives the call.
    """
    if DEVICE == "cuda" and size > (there := torch.cuda.device_count()):
        pytest.skip(f"{size} ranks need a GPU each; there are {there}")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks, results = [], {}
    ends: dict[Connection, int] = {}
    try:
        for rank in range(size):
            mine, theirs = SPAWN.Pipe(duplex=False)
            ranks.append(
                SPAWN.Process(
                    target=_rank, args=(theirs, rank, size, port, function, arguments), daemon=True
                )
            )
            ranks[-1].start()
            theirs.close()
            ends[mine] = rank
        deadline = time.monotonic() + timeout
        while ends:
            ready = wait(list(ends), timeout=max(0.0, deadline - time.monotonic()))
            assert ready, f"ranks {sorted(ends.values())} took longer than {timeout} seconds"
            for end in ready:
                assert isinstance(end, Connection)
                rank = ends.pop(end)
                try:
                    error, result = end.recv()
                except EOFError:
                    raise AssertionError(f"rank {rank} died") from None
                assert error is None, f"rank {rank}: {error}"
                results[rank] = result
    finally:
        for process in ranks:
            process.kill() if results.keys() != {*range(size)} else process.join(10)
            process.join()
    return [results[rank] for rank in range(size)]


def _rank(
    end: Connection,
    rank: int,
    size: int,
    port: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }
    if DEVICE != "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA is first asked

    from reasonrl.runs.process import joined

    try:
        with joined() as process:
            torch.set_num_threads(1)  # accelerate has set it to all cores
            end.send((None, function(process, *arguments)))
    except BaseException:
        end.send((traceback.format_exc(), None))
