"""The overrides that tell the runs of a sweep apart, on its page and in the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from reasonrl.pipeline.overrides import differing
from reasonrl.sweep.manifest import Member, short_names

# The page has a place of its own for each of these.
PARTS = ("algorithm", "reward", "model", "init", "dataset", "seed")


def settings(members: Sequence[Member]) -> dict[str, list[str]]:
    """The overrides of each run that not all share, without PARTS, by the run's name.

    Runs that are alike in both differ in their seed only. A run that only others need has those
    overrides that all of them have, for it was made for them.
    """
    asked = [member for member in members if member.overrides is not None]
    names = {member.name for member in asked}
    found: dict[str, list[str]] = {}
    for member, differs in zip(asked, differing([m.overrides or [] for m in asked]), strict=True):
        found[member.name] = [s for s in differs if s.partition("=")[0].lstrip("+~") not in PARTS]
    for member in reversed(members):  # none comes before those that it needs
        for need in set(member.needs) - names:
            own = found.get(member.name, [])
            found[need] = [setting for setting in found.get(need, own) if setting in own]
    return found


def readable_names(members: Sequence[Member]) -> dict[str, str]:
    """The runs' names without their hashes, followed where need be by the settings that differ.

    A run that not even these tell from another keeps its whole name.
    """
    names = [member.name for member in members]
    short = short_names(names)
    alike = {name for name in names if short[name] == name}
    if not alike:
        return short
    differs = settings(members)
    said = {n: " ".join([n.rpartition("-")[0] or n, *differs.get(n, [])]) for n in alike}
    count = Counter(said.values())
    return short | {name: said[name] for name in alike if count[said[name]] == 1}


def with_setting(members: Sequence[Member], text: str) -> list[str]:
    """The names of the runs whose command had this override, also by the last part of its key."""
    return [
        member.name
        for member in members
        if any(text == o or o.endswith(f".{text}") for o in member.overrides or ())
    ]
