"""Whether two expressions in LaTeX mean the same: math-verify's word, in bounded time.

math-verify builds on sympy, which some expressions keep busy for ever (``9^{9^{9^9}}``). So it
works in processes of its own, of which one that takes too long is killed. Its own time limit, an
alarm, works in the main thread alone, and is off. What it can't decide counts as different, and
what is known to be beyond it (``is_costly``) isn't tried: a policy may write thousands of such.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import re
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

MOST_KNOWN = 100_000  # pairs whose verdict is kept, the newest

DEEPEST = 10  # brackets in brackets
_BRACKETS = re.compile(r"[({\[]|[)}\]]")
# What has to be multiplied out: powers of powers of numbers, large powers, high powers of sums,
# factorials of large numbers, and what stands for an operation carried out many times.
_COSTLY = re.compile(
    r"\^\{[^{}A-Za-z]*\^|\^[0-9]+\^"
    r"|\^\{?[^{}]*[0-9]{5}"
    r"|[A-Za-z].*\)\^\{?[0-9]{2}"
    r"|([0-9]{4}|!)[)}]*!"
    r"|\\binom.*[0-9]{4}"
    r"|\\(int|sum|prod|lim)(?![a-z])"
    r"|(\\c[au]p.*){8}",
    re.DOTALL,
)

_known: dict[Pair, bool | None] = {}


def is_costly(text: str) -> bool:
    """Whether an expression is known to be beyond what can be compared in time, by its form."""
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(text):
        depth += 1 if bracket[0] in "({[" else -1
        deepest = max(deepest, depth)
    return deepest > DEEPEST or _COSTLY.search(text) is not None


def equivalent(pairs: Iterable[Pair]) -> dict[Pair, bool | None]:
    """Whether the two expressions of each pair mean the same; each pair is looked at once.

    It is None where that couldn't be decided: an expression is costly (``is_costly``), the
    comparison took too long or too much memory, or it failed. Those that were tried are told in the
    log.
    """
    wanted = dict.fromkeys(pairs)
    asked = {
        p: _pool().schedule(_verify, p, timeout=KILLED_AFTER_SECONDS)
        for p in wanted
        if p not in _known and not any(map(is_costly, p))
    }
    verdicts = {pair: _known.get(pair) for pair in wanted}
    undecided = []
    for pair, future in asked.items():
        try:
            verdicts[pair] = future.result()
        except (TooLong, ProcessExpired):
            verdicts[pair] = None
        _known[pair] = verdicts[pair]
        if verdicts[pair] is None:
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
    for oldest in [*_known][: len(_known) - MOST_KNOWN]:
        del _known[oldest]
    return verdicts


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
    """Whether they mean the same; None if that took too long or too much memory, or failed."""
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list[Any]:
        config = [LatexExtractionConfig(boxed_match_priority=0)]
        found: list[Any] = parse(f"\\boxed{{{text}}}", config, parsing_timeout=None)
        return found

    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        return bool(verify(read(gold), read(answer), timeout_seconds=None))
    except (_OutOfTimeError, Exception):
        return None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
