"""The way from the points of a sweep to submitted runs; all are planned before any is submitted."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import RenderableType
from rich.progress import track
from rich.text import Text

from reasonrl.config.model import ModelConfig
from reasonrl.config.resolve import resolve
from reasonrl.config.schema import TrainConfig
from reasonrl.runs.folder import RunFolder, is_done, read_status, state_of
from reasonrl.runs.provenance import now
from reasonrl.sweep import slurm
from reasonrl.sweep.code import snapshot
from reasonrl.sweep.manifest import MANIFEST, Member, Sweep
from reasonrl.sweep.options import OF_SWEEPS, LauncherOptions, cluster_of, job_options, read_options
from reasonrl.sweep.overrides import readable_names
from reasonrl.sweep.slurm import SlurmError
from reasonrl.sweep.submit import submit
from reasonrl.sweep.table import aligned, status_table, watch, width_of
from reasonrl.util.errors import UserError
from reasonrl.util.progress import console

if TYPE_CHECKING:
    from reasonrl.pipeline.plan import Plan
    from reasonrl.pipeline.planner import Planner

logger = logging.getLogger(__name__)

MAX_NAME, MAX_VALUES = 60, 6
MAX_ROWS = 40
T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """One combination of a sweep's overrides."""

    overrides: tuple[str, ...]  # what the command said of it
    config: TrainConfig
    options: LauncherOptions
    scale: str  # the name of its values, and whose they are


def point(overrides: Sequence[str], composed: DictConfig) -> Point:
    """Takes a composed point apart and validates it. Raises UserError, which names the point."""
    with _naming(overrides):
        given: Any = OmegaConf.to_container(composed.hydra.launcher, resolve=True)
        options = read_options(given)
        with open_dict(composed):
            del composed["hydra"]
        scale = f"{composed.scale.name} ({composed.scale.about})"
        return Point(tuple(overrides), resolve(composed, overrides), options, scale)


def launch(
    points: Sequence[Point], *, dry_run: bool = False, of_search: bool = False
) -> list[RunFolder]:
    """Submits a sweep to Slurm, or makes it on this machine; prints what will be and was done.

    Returns the points' runs.

    Raises UserError, also if it has waited for the runs and one of them isn't done.

    dry_run: whether nothing is submitted, and only the plan is printed.
    of_search: whether a search will go on by what comes of the runs. It waits for them.
    """
    from reasonrl.pipeline.comparison import show_comparison  # torch is imported here
    from reasonrl.pipeline.planner import Planner
    from reasonrl.pipeline.text import doubts, how_long

    if not points:
        raise UserError("a sweep must have runs; got none. Is a range or a glob empty?")
    options = points[0].options
    for name in OF_SWEEPS:
        _same(f"hydra.launcher.{name}", [getattr(point.options, name) for point in points])
    cluster = cluster_of(options)
    if cluster == "slurm" and not dry_run:
        with _or_here():
            slurm.queue()  # there may be an sbatch without a cluster behind it
    plans = _plans(points, Planner(fetch=not dry_run, here=cluster == "local"))
    runs = _runs(points, plans)
    folders = [Path(point.config.runtime.outputs).resolve() for point in points]
    outputs = _same("runtime.outputs", folders)
    if os.pathsep in str(outputs):
        raise UserError(
            f"runtime.outputs must have no {os.pathsep} in its path where a sweep is made, whose "
            f"runs find their code by it; got {outputs}. Pass another folder."
        )
    name = sweep_name(points, [planned.run.path.name for planned in plans])
    path = outputs / "sweeps" / name
    sweep = Sweep(
        path=path,
        command=sys.argv,
        folder=os.getcwd(),
        created=Sweep.read(path).created if (path / MANIFEST).exists() else now(),
        cluster=cluster,
        code="" if dry_run else str(snapshot(outputs)),
        at_once=options.processes if cluster == "local" else options.array_parallelism,
        runs=[member for member, _ in runs.values()],
    )
    asks = dry_run or cluster == "slurm"
    console.print(plan_table(sweep, asks=asks, width=width_of(console)), soft_wrap=True)
    for line in (*_values(points, plans), *_needs(plans)):
        console.print(line, soft_wrap=True)
    times = how_long(plans, here=cluster == "local", at_once=options.processes)
    for line in (*times, *doubts(plans)):
        console.print(line, soft_wrap=True)
    made = [planned.run for planned in plans]
    if dry_run:
        return made
    configs = {name: _in_sweep(config, sweep) for name, (_, config) in runs.items()}
    with _or_here():
        submitted = submit(sweep, configs)
    if cluster == "slurm":
        console.print(f"submitted: {len(submitted)} of {len(runs)} runs", soft_wrap=True)
        console.print(f"reasonrl status {sweep.path}", soft_wrap=True, markup=False)
        if options.wait or of_search:
            findings = watch(sweep, console)
            table = status_table(sweep.name, findings, width=width_of(console))
            console.print(table, soft_wrap=True)
    undone = [member.name for member in sweep.runs if not is_done(sweep.run(member.name))]
    if not undone and not of_search:
        show_comparison({p.overrides: planned for p, planned in zip(points, plans, strict=True)})
    elif undone and (options.wait or of_search or cluster == "local"):
        raise UserError(
            f"sweep={sweep.name} must be done; {len(undone)} of its {len(runs)} runs aren't. "
            f"See reasonrl status {sweep.path}, and give the same command again."
        )
    return made


@contextmanager
def _or_here() -> Iterator[None]:
    """Adds to Slurm's error where else the runs can be made."""
    try:
        yield
    except SlurmError as error:
        here = "hydra.launcher.cluster=local makes the runs on this machine."
        raise UserError(f"{error} {here}") from None


def _same(key: str, values: Iterable[T]) -> T:
    """The one value that all points have. Raises UserError if they have several."""
    different = list(dict.fromkeys(values))
    if len(different) > 1:
        raise UserError(
            f"{key} must be the same for all runs of a sweep; got "
            f"{', '.join(map(str, different))}. Give one command for each."
        )
    return different[0]


def _plans(points: Sequence[Point], planner: Planner) -> list[Plan]:
    plans = []
    for one in track(points, description="planning", console=console, transient=True):
        with _naming(one.overrides):
            plans.append(planner.plan(one.config))
    return plans


def _runs(points: Sequence[Point], plans: Sequence[Plan]) -> dict[str, tuple[Member, TrainConfig]]:
    """All runs of the sweep, each once, by name; none comes before those that it needs."""
    runs: dict[str, tuple[Member, TrainConfig]] = {}
    for point, planned in zip(points, plans, strict=True):
        for one in planned.in_order():
            name, said = one.run.path.name, list(point.overrides) if one is planned else None
            if name in runs and runs[name][0].protocol != one.run.protocol:
                raise UserError(
                    f"runs of a sweep must be evaluated in one way each; got {name} with "
                    f"{runs[name][0].protocol} and {one.run.protocol}. Give one command for each: "
                    "the second one trains nothing."
                )
            if name not in runs or (said and runs[name][0].overrides is None):
                needs = sorted({first.run.path.name for first in one.prerequisites.values()})
                with _naming(point.overrides):
                    options = job_options(point.options, one.config)
                runs[name] = Member(name, said, needs, options, one.run.protocol), one.config
    return runs


def _in_sweep(config: TrainConfig, sweep: Sweep) -> TrainConfig:
    """The configuration as a run of this sweep has it.

    W&B groups the run by the sweep, and runs that are made side by side share the cores.
    """
    tracking, runtime = config.tracking.grouped(sweep.name), config.runtime
    if sweep.cluster == "local" and sweep.at_once > 1 and runtime.threads is None:
        from reasonrl.runs.machines import num_processes
        from reasonrl.runs.process import usable_cores

        processes = sweep.at_once * num_processes(config)
        runtime = replace(runtime, threads=max(1, usable_cores() // processes))
    return replace(config, tracking=tracking, runtime=runtime)


def plan_table(sweep: Sweep, *, asks: bool, width: int | None = None) -> Text:
    """The runs, a line each: whether they are done, what each needs first, what its job asks for.

    width: of the terminal; see ``aligned``.
    """
    names = readable_names(sweep.runs)
    rows = []
    for member in sweep.runs[:MAX_ROWS]:
        run = sweep.run(member.name)
        needs = ", ".join(names[need] for need in member.needs)
        asked = _asks_for(member) if asks else ""
        rows.append((names[member.name], state_of(run, read_status(run)), needs, asked))
    head, *lines = aligned(("run", "state", "needs", "asks for"), rows, width)
    if len(sweep.runs) > MAX_ROWS:
        lines.append(f"… and {len(sweep.runs) - MAX_ROWS:,} more")
    title = f"{sweep.name}: {len(sweep.runs):,} run{'s' if len(sweep.runs) > 1 else ''}"
    return Text.assemble((f"{title}\n", "bold"), (f"{head}\n", "underline"), "\n".join(lines), "\n")


def _values(points: Sequence[Point], plans: Sequence[Plan]) -> Iterator[str]:
    """What the runs of each scale are made with."""
    from reasonrl.pipeline.text import methods, origin

    by_scale: dict[str, list[tuple[Point, Plan]]] = {}
    for point, planned in zip(points, plans, strict=True):
        by_scale.setdefault(point.scale, []).append((point, planned))
    for scale, some in by_scale.items():
        overrides = [override for point, _ in some for override in point.overrides]
        configs = [one.config for _, planned in some for one in planned.in_order()]
        yield origin(scale, configs, dict.fromkeys(overrides))
        yield from methods(configs)


def _needs(plans: Sequence[Plan]) -> Iterator[RenderableType]:
    """What the runs of each model need of their GPUs, and what couldn't be checked of them."""
    from reasonrl.pipeline.text import needs

    by_model: dict[ModelConfig, list[Plan]] = {}
    for planned in plans:
        by_model.setdefault(planned.config.model, []).append(planned)
    for some in by_model.values():
        yield from needs(some)


def _asks_for(member: Member) -> str:
    options = member.options
    gpus = f"{options['gpus_per_node']} GPU, " if options["gpus_per_node"] else ""
    nodes = f"{options['nodes']} nodes of " if options["nodes"] > 1 else ""
    cpus, memory = f"{options['cpus_per_task']} CPU, ", options["mem_gb"]
    memory = f"{memory} GB, " if memory else ""
    return f"{nodes}{gpus}{cpus}{memory}{options['timeout_min'] / 60:.3g} h"


@contextmanager
def _naming(overrides: Sequence[str]) -> Iterator[None]:
    """Adds to an error in which of a sweep's points it is."""
    try:
        yield
    except UserError as error:
        point = f"In the run of {' '.join(overrides)}; nothing" if overrides else "Nothing"
        raise UserError(f"{error} {point} is submitted.") from None


def sweep_name(points: Sequence[Point], runs: Sequence[str]) -> str:
    """``ei-ppo-rcrl_7b-13b_seed-0-1-1a2b3c4d``: what differs, and the hash of the runs' names.

    The same sweep therefore has the same name, and the same folder.
    """
    values: dict[str, list[str]] = {}
    for one in points:
        for override in one.overrides:
            key, _, value = override.partition("=")
            if value not in values.setdefault(key, []):
                values[key].append(value)
    swept = [_swept(key, found) for key, found in values.items() if len(found) > 1]
    swept = swept or [points[0].config.algorithm.name]
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", "_".join(swept))[:MAX_NAME].strip("-_.")
    digest = hashlib.sha256("\n".join(sorted({*runs})).encode()).hexdigest()[:8]
    return "-".join(filter(None, [readable, digest]))


def _swept(key: str, values: Sequence[str]) -> str:
    """The part of a sweep's name that says which values a key has.

    Names of options speak for themselves; numbers need their key, and many values are counted.
    """
    name = key.rpartition(".")[2]
    if len(values) > MAX_VALUES:
        return f"{len(values)}-{name}s"
    return "-".join([name, *values] if _is_number(values[0]) else values)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
