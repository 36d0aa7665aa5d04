"""What a page of a sweep shows, read from the runs' folders, which may be at any stage."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

from reasonrl.config.algorithm import ALGORITHMS
from reasonrl.config.dataset import DATASETS
from reasonrl.problems import content_of, load_problems
from reasonrl.runs.folder import RunFolder, read_status
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.runs.provenance import hardware
from reasonrl.runs.result import GREEDY, evaluation_files
from reasonrl.types import Problem
from reasonrl.util.errors import UserError

TO_DO = "to do"
MAKE_POLICIES = {name for name, one in ALGORITHMS.items() if one.makes == "policy"}
READ_REWARD = {name for name, one in ALGORITHMS.items() if one.reads_reward != "nothing"}
ROLLOUTS = [one.panels.rollouts for one in ALGORITHMS.values() if one.panels.rollouts]
NAMES = {"conditioning_gap": "gap"}  # of estimates, in the page's words
NUM_COMPLETIONS = 40  # of the evaluation, and so many rollouts
ROLLOUT = ["problem_id", "text", "answer", "correct", "score"]


@dataclass(frozen=True)
class Curve:
    """A metric of a run: each list has an entry for each line of metrics.jsonl with the metric."""

    step: list[int]
    # How many were sampled so far. A line that doesn't say belongs to the last one that does; the
    # whole list is None for a run that says it nowhere.
    rollouts: list[int | None] | None
    values: list[float | None]  # None stands for NaN and ±inf, and is shown as a gap

    def thinned(self, limit: int) -> Curve:
        """This curve with at most ``limit`` of its points.

        The first and the last point are kept. The rest is cut into (limit - 2) / 3 stretches of
        equally many points, and of each the lowest, the highest and the first gap are kept.
        """
        n = len(self.values)
        if n <= limit:
            return self
        values = np.array([math.nan if v is None else v for v in self.values])
        kept = {0, n - 1}
        for part in np.array_split(np.arange(n), max(1, (limit - 2) // 3)):
            gaps = np.isnan(values[part])
            if gaps.any():
                kept.add(int(part[gaps.argmax()]))
            if not gaps.all():
                kept |= {int(part[np.nanargmin(values[part])])}
                kept |= {int(part[np.nanargmax(values[part])])}
        at = sorted(kept)
        return Curve(
            [self.step[i] for i in at],
            None if self.rollouts is None else [self.rollouts[i] for i in at],
            [self.values[i] for i in at],
        )


@dataclass(frozen=True)
class RunData:
    """What the page shows of a run. A field is None or empty as long as its value isn't there."""

    name: str
    overrides: list[str] | None  # None: only other runs need this one
    # The overrides that tell this run from those with the same algorithm, reward, model, init,
    # dataset and seed.
    settings: list[str] = field(default_factory=list)
    state: str = TO_DO  # the verdict of the sweep's status
    why: str = ""  # the reason for the state, and what of the folder can't be read
    attempt: int = 0
    heartbeat: str | None = None  # the last sign of life
    algorithm: str | None = None
    kind: str | None = None  # ``Algorithm.kind``
    reward: str | None = None  # None: the algorithm reads no reward
    model: str | None = None
    init: str | None = None
    dataset: str | None = None
    seed: int | None = None
    protocol: str | None = None  # by which the policy is evaluated; older runs name none
    # By ``after/maj@1`` and so on: value, low, high, n. ``gain`` is the paired difference of after
    # and before, ``gap`` that of the best and the worst label. Estimates by other protocols have
    # the protocol's name in front.
    estimates: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)  # by metric
    # The first completions of the evaluation after, and of the rollouts that were sampled last:
    # of (which of the two), problem_id, text, answer and correct; of rollouts score too. If the
    # problems can be read without a network, there are question and gold, the right answer, too.
    completions: list[dict[str, Any]] = field(default_factory=list)
    correct: str = ""  # ``0110``: whether each answer is right, in the order of the problems' ids
    problems: str = ""  # a hash of these ids
    hardware: dict[str, str] = field(default_factory=dict)  # ``runs.provenance.hardware``

    @property
    def makes_policy(self) -> bool:
        return (self.kind or self.algorithm) in MAKE_POLICIES


def read_run(
    run: RunFolder,
    overrides: list[str] | None,
    needs: Sequence[str],
    verdict: tuple[str, str] | None = None,
) -> RunData:
    """Reads what the page shows of a run; never raises for one that is unfinished or damaged.

    needs: the names of the runs that it needs directly.
    verdict: what became of it, and why. With None that is read from the run's own status, which the
        run may have had no time to write.
    """
    config, files = _config(run), evaluation_files(run)
    data = RunData(
        run.path.name, overrides, protocol=run.protocol, kind=_kind(config), **_parts(config)
    )
    if (status := read_status(run)) is not None:
        verdict = verdict or (status.state, status.error or "")
        data = replace(data, attempt=status.attempt, heartbeat=status.heartbeat)
    state, why = verdict or (TO_DO, "")
    if "before" not in files and (before := _evaluated_elsewhere(run, config, needs)):
        files["before"] = before
    read: dict[str, Callable[[], Any]] = {
        "curves": lambda: read_curves(run.metrics),
        "estimates": lambda: _estimates(files),
        "answers": lambda: _answers(files),
        "completions": lambda: [*_evaluated(files, config), *_sampled(run, config)],
        "hardware": lambda: hardware(run.provenance),
    }
    found, reasons = {}, [why] if why else []
    for name, reading in read.items():
        try:
            found[name] = reading()
        except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            reasons.append(f"its {name} can't be read: {' '.join(str(error).split())[:200]}")
    found |= found.pop("answers", {})
    return replace(data, state=state, why="; ".join(reasons), **found)


def read_curves(path: Path) -> dict[str, Curve]:
    """The curves of a metrics.jsonl, by metric. Raises UserError for a line that isn't JSON."""
    records = read_metrics(path)
    says_rollouts = any(name in record for record in records for name in ROLLOUTS)
    curves: dict[str, Curve] = {}
    rollouts = None
    for record in records:
        rollouts = next((record[name] for name in ROLLOUTS if name in record), rollouts)
        for name, value in record.items():
            if name == "step" or not isinstance(value, int | float | None):
                continue
            if name not in curves:
                curves[name] = Curve([], [] if says_rollouts else None, [])
            curve = curves[name]
            curve.step.append(record["step"])
            curve.values.append(_finite(value))
            if curve.rollouts is not None:
                curve.rollouts.append(rollouts)
    return curves


def _config(run: RunFolder) -> dict[str, Any]:
    # OmegaConf would take fifteen times as long, and here nothing is left to be resolved.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        values = yaml.load(run.config.read_bytes(), loader)
    except (OSError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _parts(config: dict[str, Any]) -> dict[str, Any]:
    groups = ("algorithm", "reward", "model", "init", "dataset")
    parts = {group: _text(config, group, "name") for group in groups}
    if _kind(config) not in READ_REWARD:
        parts["reward"] = None
    seed = config.get("seed")
    return {**parts, "seed": seed if isinstance(seed, int) else None}


def _kind(config: dict[str, Any]) -> str | None:
    """See ``Algorithm.kind``."""
    return _text(config, "algorithm", "variant_of") or _text(config, "algorithm", "name")


def _text(config: dict[str, Any], group: str, key: str) -> str | None:
    """A text in a group of a configuration; None if there is none, or something else."""
    values = config.get(group)
    value = values.get(key) if isinstance(values, dict) else None
    return value if isinstance(value, str) else None


def _evaluated_elsewhere(
    run: RunFolder, config: dict[str, Any], needs: Sequence[str]
) -> Path | None:
    """The file with estimates of the policy that a run starts from, if another run made it."""
    earlier = (_text(config, "init", "run"), *needs)
    for name in filter(None, earlier):
        other = RunFolder(run.path.parent / Path(name).name, run.protocol)
        if _kind(_config(other)) in MAKE_POLICIES:
            return evaluation_files(other).get("after")
    return None


def _estimates(files: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    return {
        f"{NAMES.get(kind, kind)}/{name}": {key: _finite(x) for key, x in estimate.items()}
        for kind, file in files.items()
        for name, estimate in json.loads(file.read_bytes())["estimates"].items()
    }


def _greedy(evaluation: Path) -> dict[str, bool]:
    """Whether each greedy answer is right, by the problem's id."""
    table = pq.read_table(evaluation / GREEDY, columns=["problem_id", "correct"])
    return dict(zip(table["problem_id"].to_pylist(), table["correct"].to_pylist(), strict=True))


def _answers(files: Mapping[str, Path]) -> dict[str, str]:
    after = files.get("after")
    if after is None:
        return {}
    right = dict(sorted(_greedy(after.parent).items()))
    return {
        "correct": "".join("01"[correct] for correct in right.values()),
        "problems": hashlib.sha256("\n".join(right).encode()).hexdigest()[:8],
    }


def _evaluated(files: Mapping[str, Path], config: dict[str, Any]) -> list[dict[str, Any]]:
    """The first greedy completions of the evaluation after."""
    after = files.get("after")
    if after is None:
        return []
    rows = _first_rows(after.with_name(GREEDY), ROLLOUT[:4])
    return _beside_questions(
        rows, "evaluation, greedy", config, _text(config, "evaluation", "split")
    )


def _sampled(run: RunFolder, config: dict[str, Any]) -> list[dict[str, Any]]:
    """The first of the rollouts that were sampled last."""
    numbered = run.rollouts.glob("*-*.parquet")
    files = sorted(numbered, key=lambda file: int(file.stem.rpartition("-")[2]))
    files = files or [*run.rollouts.glob("train.parquet")]
    if not files:
        return []
    name = files[-1].stem.replace("-", " ")
    return _beside_questions(_first_rows(files[-1], ROLLOUT), f"rollouts, {name}", config, "train")


def _first_rows(file: Path, columns: list[str]) -> list[dict[str, Any]]:
    table = pq.ParquetFile(file)
    if missing := {*columns} - {*table.schema_arrow.names}:
        raise LookupError(f"{file} has no {', '.join(sorted(missing))}")
    batches = table.iter_batches(NUM_COMPLETIONS, columns=columns)
    first = next(batches, None)
    return [] if first is None else first.to_pylist()


def _beside_questions(
    rows: list[dict[str, Any]], of: str, config: dict[str, Any], split: str | None
) -> list[dict[str, Any]]:
    try:
        judged = config["evaluation"]
        content = judged.get("content") if split == judged["split"] else None
        problems = _problems(json.dumps(config["dataset"]), str(split), content)
    except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError):
        problems = {}  # the folder with its files is elsewhere, or it is of another version
    for row in rows:
        row["of"] = of
        if problem := problems.get(row["problem_id"]):
            row |= {"question": problem.question, "gold": problem.answer}
    return rows


@lru_cache
def _problems(dataset: str, split: str, content: str | None) -> dict[str, Problem]:
    """The problems of a split by their ids; none if the dataset would have to be fetched.

    dataset: its configuration, as JSON.
    content: the hash that the split had; with another one it has other problems, and none is given.
    """
    values = json.loads(dataset)
    config = DATASETS[values["name"]](**values)
    if not config.local:
        return {}
    problems = load_problems(config if config.is_generated else config.whole, split)
    if content is not None and content != content_of(problems):
        return {}
    return {problem.id: problem for problem in problems}


def _finite(value: Any) -> Any:
    """The value, or None for NaN and ±inf, which JSON doesn't have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
