"""The runs of an outputs folder side by side: what each is, where they differ, what came of them.

All of it is read from the runs' folders, which may be at any stage.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from reasonrl.config.identity import decisive, prerequisites
from reasonrl.config.schema import TrainConfig
from reasonrl.report.budget import Budget, budget_of
from reasonrl.report.scores import Scores, read_scores
from reasonrl.runs.folder import GAIN, RunFolder, read_config, read_status, run_folder, state_of
from reasonrl.runs.provenance import first_start
from reasonrl.util.errors import UserError

logger = logging.getLogger(__name__)

# What every table of runs names of a run, in this order.
MAIN = ("algorithm.name", "reward.name", "model.name", "init.name", "dataset.name", "seed")
SEED = "seed"


@dataclass(frozen=True)
class Entry:
    """A run of the catalogue."""

    # With the protocol by which its policy is judged here; None: it makes no policy.
    run: RunFolder
    config: TrainConfig
    state: str  # ``runs.folder.state_of``

    @property
    def name(self) -> str:
        return self.run.path.name

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What decides the run, by keys such as ``algorithm.rounds``."""
        return dict(_flat(decisive(self.config, defaults=True)))

    @cached_property
    def after(self) -> Scores | None:
        """The scores of the run's policy; None if it wasn't evaluated by the protocol."""
        return self._scores(self.run, "after")

    @cached_property
    def before(self) -> Scores | None:
        """The scores of the policy that the run started from; None if it wasn't evaluated.

        If another run made that policy, they are in that run's folder.
        """
        earlier = prerequisites(self.config).get("init")
        if earlier is not None:
            name = run_folder(earlier).path.name
            return self._scores(RunFolder(self.run.path.parent / name, self.run.protocol), "after")
        return self._scores(self.run, "before")

    @cached_property
    def budget(self) -> Budget | None:
        """What the run was given to learn from; None if that isn't known (``budget_of``)."""
        return budget_of(self.run, self.config)

    @staticmethod
    def _scores(run: RunFolder, when: str) -> Scores | None:
        if run.protocol is None or not (run.evaluated(run.protocol) / GAIN).exists():
            return None
        return read_scores(run.evaluated(run.protocol) / when)


def read_catalogue(outputs: Path, protocol: str | None = None) -> list[Entry]:
    """All runs of an outputs folder, the oldest first; one that can't be read is left out, logged.

    protocol: by which policies are judged; None: each by that of its own configuration.
    Raises UserError if there are no runs.
    """
    folders = [f for f in (outputs / "runs").glob("*") if (f / ".hydra" / "config.yaml").exists()]
    if not folders:
        raise UserError(
            f"outputs={outputs} must hold runs; there are none. Make one with python train.py, or "
            "name the folder with --outputs."
        )
    with ThreadPoolExecutor() as pool:  # a cluster's file system answers slowly, but many at once
        found = list(pool.map(lambda folder: (_age(folder), _read(folder, protocol)), folders))
    found.sort(key=lambda one: one[0])
    return [entry for _, entry in found if entry is not None]


def _age(folder: Path) -> tuple[str, float]:
    """What runs are sorted by: when each was begun, those that weren't last.

    Where that is the same second, the file system tells, unless it is of a copy.
    """
    run = RunFolder(folder)
    return first_start(run.provenance) or "never", run.config.stat().st_ctime


def _read(folder: Path, protocol: str | None) -> Entry | None:
    try:
        config = read_config(RunFolder(folder))
    except UserError as error:
        logger.warning("%s is left out: %s", folder.name, error)
        return None
    makes_policy = config.algorithm.makes == "policy"
    run = RunFolder(folder, (protocol or config.protocol) if makes_policy else None)
    return Entry(run, config, state_of(run, read_status(run)))


_BETWEEN_VALUES = re.compile(r",(?![^\[]*\])")  # not the commas of a list, or of wildcards


def chosen(entries: Iterable[Entry], conditions: Sequence[str]) -> list[Entry]:
    """The runs that meet all conditions, such as ``algorithm=ei``, ``rounds=[23]``, ``state=done``.

    A key is the end of a setting's key (``learning_rate``, ``algorithm.learning_rate``) or a group,
    whose value is the option's name. There may be several values, ``algorithm=ei,ppo``, and they
    may have the wildcards of a shell; ``KEY!=VALUE`` means the runs without them. Raises UserError
    for a key that no run has.
    """
    found = list(entries)
    for condition in conditions:
        key, separator, wanted = condition.partition("=")
        if not separator:
            raise UserError(f"where={condition} must be KEY=VALUE or KEY!=VALUE.")
        key, negated = key.removesuffix("!"), key.endswith("!")
        known = [(entry, _values(entry, key)) for entry in found]
        if found and not any(values for _, values in known):
            raise UserError(
                f"where={condition} must name a setting of these {len(found)} runs. "
                f"{_nearest(key, {key for entry in found for key in entry.settings})}"
            )
        patterns = _BETWEEN_VALUES.split(wanted)
        found = [
            entry
            for entry, values in known
            if any(fnmatchcase(v, pattern) for v in values for pattern in patterns) != negated
        ]
    return found


def _nearest(key: str, settings: Iterable[str]) -> str:
    """What may have been meant by a key: the setting most like it, or any."""
    ends = sorted({setting.removesuffix(".name").rpartition(".")[2] for setting in settings})
    close = difflib.get_close_matches(key.rpartition(".")[2], ends, n=1)
    return f"Did you mean {close[0]}?" if close else f"They have {', '.join(ends)}."


def _values(entry: Entry, key: str) -> list[str]:
    """The values of the settings that a key means."""
    if key == "state":
        return [entry.state]
    return [
        text_of(value)
        for name, value in entry.settings.items()
        if name in (key, f"{key}.name") or name.endswith(f".{key}")
    ]


def differing(
    entries: Sequence[Entry], *, without: Sequence[str] = (), lacking: bool = False
) -> dict[str, list[str]]:
    """The settings in which the runs differ, as texts in the order of the runs, by their keys.

    MAIN comes first. A setting that a run doesn't have is an empty text there.

    without: keys that aren't looked at.
    lacking: whether a run also differs in a setting that it doesn't have, as one of another
        algorithm.
    """
    keys = dict.fromkeys([*MAIN, *(key for entry in entries for key in entry.settings)])
    found = {}
    for key in keys:
        values = [text_of(e.settings[key]) if key in e.settings else "" for e in entries]
        own = values if lacking or key in MAIN else filter(None, values)
        if key not in without and len({*own}) > 1:
            found[key] = values
    return found


def telling(entries: Sequence[Entry], *, without: Sequence[str] = ()) -> dict[str, list[str]]:
    """The settings that tell the runs apart, as ``differing`` gives them.

    They are those of MAIN, and others only where runs differ in them that are alike in MAIN: an
    algorithm's name says what its settings are.
    """
    found = differing(entries, without=without)
    main = [*zip(*(values for key, values in found.items() if key in MAIN), strict=True)]
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place in range(len(entries)):
        alike[main[place] if main else ()].append(place)
    return {
        key: values
        for key, values in found.items()
        if key in MAIN or any(len({values[i] for i in group}) > 1 for group in alike.values())
    }


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """The keys as people write them: ``algorithm`` for its name, else the last part if it's enough.

    ``init.sft.epochs`` beside ``algorithm.epochs`` stays whole.
    """
    short = {key: key.removesuffix(".name") for key in keys}
    last = defaultdict(list)
    for key, name in short.items():
        last[name.rpartition(".")[2]].append(key)
    return {
        key: end if len(last[end := name.rpartition(".")[2]]) == 1 else name
        for key, name in short.items()
    }


def by_seed(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The runs in groups that differ in their seed alone, each in the order of its seeds."""
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        own = {key: value for key, value in entry.settings.items() if key != SEED}
        groups[repr((sorted(own.items(), key=lambda pair: pair[0]), entry.run.protocol))].append(
            entry
        )
    return [sorted(group, key=lambda entry: entry.config.seed) for group in groups.values()]


# What would end a line, other control characters, and what they are written with.
_ESCAPED = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029]")


def text_of(value: Any) -> str:
    r"""A setting's value as the command line has it, in one line: a newline is ``\n``."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(text_of, value))}]"
    return _ESCAPED.sub(lambda found: ascii(found[0])[1:-1], str(value))


def _flat(values: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
