"""One seed for each purpose, from the run's one seed."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A seed below 2**63 that depends on the run's seed and on what it is for.

    Nothing that is drawn depends on how much was drawn before it, so a resumed run needs no
    generator's state: it derives the seed again.
    """
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
