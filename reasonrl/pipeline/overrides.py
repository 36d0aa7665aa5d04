"""The overrides that tell the runs of one command apart, which are those they don't share."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def differing(runs: Collection[Sequence[str]]) -> list[list[str]]:
    """The overrides of each run that not all runs share, with only the last part of their keys."""
    shared = set.intersection(*map(set, runs)) if runs else set()
    return [[_short(override) for override in run if override not in shared] for run in runs]


def _short(override: str) -> str:
    key, _, value = override.partition("=")
    return f"{key.rpartition('.')[2]}={value}"
