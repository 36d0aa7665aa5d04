"""Seeds for each purpose, derived from the run's one seed, and the orders that they give."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed below 2**63 that depends on the run's seed and on the purpose alone.

    Nothing that is drawn depends on how much was drawn before it, so a resumed run needs no
    generator's state: it derives the seed again.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def next_in_stream(items: Sequence[T], start: int, count: int, seed: int) -> list[T]:
    """``count`` items from place ``start`` of an endless stream.

    The stream goes through all items again and again, each time in another order; ``seed`` decides
    the orders.
    """
    places = [divmod(place, len(items)) for place in range(start, start + count)]
    orders = {n: np.random.default_rng([seed, n]).permutation(len(items)) for n, _ in {*places}}
    return [items[orders[n][i]] for n, i in places]
