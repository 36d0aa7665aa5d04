"""Whether this machine multiplies a model's dtype as fast as float32: many processors don't."""

from __future__ import annotations

import logging
import time
from functools import lru_cache

import torch

from reasonrl.policy.policy import DTYPES

logger = logging.getLogger(__name__)

SLOW = 3.0  # times as long as with float32
SIZES = (64, 256, 512)  # of the matrices: 17 million operations, a millisecond or some dozen


def warn_where_slow(compute_dtype: str, device: torch.device) -> None:
    """Logs a warning, once, if another dtype would make runs several times faster here.

    Processors without instructions for bfloat16 (avx512_bf16, amx_bf16) take dozens of times as
    long for its products. The dtype is taken all the same: it is a part of what a run is.
    """
    if device.type == "cpu" and compute_dtype != "float32":
        _warn_once(compute_dtype)


@lru_cache
def _warn_once(compute_dtype: str) -> None:
    times = _seconds(DTYPES[compute_dtype]) / _seconds(torch.float32)
    if times >= SLOW:
        logger.warning(
            "this processor multiplies %s %.0f times more slowly than float32; pass "
            "model.compute_dtype=float32, which makes runs of their own, or run on a GPU",
            compute_dtype,
            times,
        )


def _seconds(dtype: torch.dtype) -> float:
    """The time of a product of matrices, the best of three: the machine may be busy."""
    rows, inner, columns = SIZES
    left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
    taken = []
    for _ in range(3):
        started = time.perf_counter()
        left @ right
        taken.append(time.perf_counter() - started)
    return min(taken)
