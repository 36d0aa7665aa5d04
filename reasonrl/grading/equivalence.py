"""Whether two expressions in LaTeX mean the same: math-verify's word, in bounded time.

math-verify builds on sympy, which some expressions keep busy for ever (``9^{9^{9^9}}``). So it
works in processes of its own, of which one that takes too long is killed. Its own time limit, an
alarm, works in the main thread alone, and is off. What it can't decide counts as different.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import resource
import signal
from collections.abc import Iterable
from concurrent.futures import TimeoutError as TooLong
from functools import cache
from typing import Any

from pebble import ProcessExpired, ProcessPool

logger = logging.getLogger(__name__)

Pair = tuple[str, str]  # the gold answer, and one to compare with it

# The same on a busy machine as on an idle one, but where only a kill helps.
CPU_SECONDS = 5.0
KILLED_AFTER_SECONDS = 60.0
MEMORY = 4 * 2**30
MOST_PROCESSES = 4

_known: dict[Pair, bool] = {}


def equivalent(pairs: Iterable[Pair]) -> dict[Pair, bool]:
    """Whether the two expressions of each pair mean the same; each pair is looked at once.

    Pairs that took too long, or killed their process, are told in the log.
    """
    wanted = dict.fromkeys(pairs)
    asked = {
        p: _pool().schedule(_verify, p, timeout=KILLED_AFTER_SECONDS)
        for p in wanted
        if p not in _known
    }
    undecided = []
    for pair, future in asked.items():
        try:
            verdict = future.result()
        except (TooLong, ProcessExpired):
            verdict = None
        _known[pair] = verdict is True
        if verdict is None:
            undecided.append(pair)
    if undecided:
        gold, answer = undecided[0]
        logger.warning(
            "%d answers couldn't be compared in %g seconds and count as wrong: %.80r for %.40r",
            len(undecided),
            CPU_SECONDS,
            answer,
            gold,
        )
    return {pair: _known[pair] for pair in wanted}


@cache
def _pool() -> ProcessPool:
    # Forked processes would inherit torch's threads and locks.
    pool = ProcessPool(
        min(MOST_PROCESSES, len(os.sched_getaffinity(0))),
        initializer=_limit,
        context=multiprocessing.get_context("spawn"),
    )
    atexit.register(pool.stop)
    return pool


class _OutOfTimeError(BaseException):
    """It isn't an Exception, which sympy would catch."""


def _limit() -> None:
    def interrupt(*_: Any) -> None:
        raise _OutOfTimeError

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):  # the run's own to answer
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, interrupt)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable()  # of limits of time that are off


def _verify(gold: str, answer: str) -> bool | None:
    """Whether they mean the same; None if that took too long, or too much memory."""
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list[Any]:
        config = [LatexExtractionConfig(boxed_match_priority=0)]
        found: list[Any] = parse(f"\\boxed{{{text}}}", config, parsing_timeout=None)
        return found

    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        return bool(verify(read(gold), read(answer), timeout_seconds=None))
    except (_OutOfTimeError, MemoryError, RecursionError):
        return None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
