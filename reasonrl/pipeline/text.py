"""The texts in which a command says what will be done, and what came of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from reasonrl.config.learner import learners
from reasonrl.config.model import ShapeConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline import estimate
from reasonrl.pipeline.memory import GB, Memory, memory_of
from reasonrl.pipeline.plan import Plan
from reasonrl.runs.folder import read_status, run_folder, state_of

CHOICES_OF_VALUES = ("scale", "dataset", "experiment")  # those that win over the model's
MAX_METHODS = 12

logger = logging.getLogger(__name__)


def plan_table(planned: Plan) -> Table:
    """The runs there will be, in order, with what each does and how much work it is."""
    table = Table(title="plan", title_justify="left", show_header=False, box=box.SIMPLE)
    table.add_column(overflow="fold")
    for one in planned.in_order():
        state, work = state_of(one.run, read_status(one.run)), estimate.work(one)
        table.add_row(f"[bold]{escape(one.run.path.name)}[/] ({state})")
        evaluated = (
            f", evaluated on {len(one.test):,} ({one.config.evaluation.split})"
            if one.config.algorithm.makes == "policy"
            else ""
        )
        outline = one.config.algorithm.outline(one.config)
        table.add_row(
            f"  {escape(outline)}, on {len(one.train):,} problems of {one.config.dataset.name}; "
            f"validated on {len(one.validation):,}{evaluated}"
        )
        if (before := _before(one)) is not None:
            table.add_row(f"  {before}")
        again = f", up to {work.again:,} in the place of those left out" if work.again else ""
        table.add_row(
            f"  about {work.completions:,} completions to sample{again}, "
            f"{work.examples:,} to learn from{_learning(one.config)}"
        )
        if one.reading:
            table.add_row(f"  {escape(one.reading)}")
    return table


def _before(planned: Plan) -> str | None:
    """What a finished run that is only shorter means for this one; None: there is no such run."""
    if planned.shorter is None:
        return None
    name = run_folder(planned.shorter).path.name
    if planned.goes_on_from is not None:
        return f"goes on from {name}, whose work is the beginning of this run's"
    return f"starts anew: the learning rate of {name}, which is shorter, has fallen to its end"


def origin(scale: str, configs: Sequence[TrainConfig], overrides: Iterable[str]) -> str:
    """What values runs of one scale have, whose these are, and which the command line has set."""
    models = dict.fromkeys(config.model.name for config in configs)
    protocols = dict.fromkeys(
        f"{config.dataset.name}, evaluated with K={config.evaluation.num_samples_per_prompt}"
        for config in configs
    )
    keys = {override: override.lstrip("+~").partition("=")[0] for override in overrides}
    own = [override for override, key in keys.items() if "." in key or key in CHOICES_OF_VALUES]
    said = f"; by the command line: {' '.join(own)}" if own else ""
    return escape(f"{', '.join(models)}: scale {scale}: {'; '.join(protocols)}{said}")


def methods(configs: Sequence[TrainConfig]) -> Iterator[str]:
    """What the runs do and learn with; each text once, and of many the first."""
    texts = [f"{one.algorithm.outline(one)}{_learning(one)}" for one in configs]
    different = list(dict.fromkeys(texts))
    yield from (f"  {escape(text)}" for text in different[:MAX_METHODS])
    if len(different) > MAX_METHODS:
        yield f"  … and {len(different) - MAX_METHODS:,} more"


def _learning(config: TrainConfig) -> str:
    """With what a run learns, to be put behind another text; empty where it doesn't learn."""
    learner = dict(learners(config.algorithm)).get("")  # others are those of runs it needs
    if learner is None:
        return ""
    trainable = getattr(learner, "trainable", "all")
    what = {"all": "", "lora": f", LoRA of rank {getattr(learner, 'lora_rank', None)}"}
    return (
        f"; batches of {learner.batch_size}, learning rate {learner.learning_rate:g} → "
        f"{learner.final_learning_rate:g}{what.get(trainable, f', {trainable} trained')}"
    )


def asks(planned: Plan) -> str:
    """What each run of the plan asks of a cluster."""
    asked = planned.config.model.resources
    gpus = f"{_count(asked.gpus, 'GPU')}, " if asked.gpus else ""
    return (
        f"on a cluster each run asks for {gpus}{_count(asked.cpus, 'CPU')}, {asked.memory_gb} GB "
        f"of memory and {_count(asked.hours, 'hour')}"
    )


def needs(plans: Sequence[Plan]) -> Iterator[RenderableType]:
    """What runs of the same model need of their GPUs, and what couldn't be checked of them."""
    model, shape = plans[0].config.model, plans[0].shape
    todo = estimate.undone(plans)
    if todo and model.resources.gpus and shape is not None:
        configs = [one.config for one in todo]
        yield memory_table(configs, shape)
        yield from _too_many_rows(configs, shape)
    elif todo and model.resources.gpus:
        size = "" if model.num_parameters is None else f", {model.num_parameters:,} parameters"
        yield (
            f"{escape(model.name)}{size}: not known whether its GPUs have room for it, as it isn't "
            "a decoder like Llama. Set model.shape to one that is about as large"
        )
    if not plans[0].has_model:
        yield (
            f"{escape(model.path)} isn't ready on this machine: not checked whether its tokenizer "
            "knows the words, whether prompts and solutions fit its context, and which of its runs "
            "are done, for its weights are part of their names"
        )


def doubts(plans: Sequence[Plan]) -> Iterator[str]:
    """A warning for each thing that makes the plans' numbers mean less than they seem to."""
    for text in dict.fromkeys(w for p in plans for one in p.in_order() for w in one.warnings):
        yield f"[bold yellow]warning:[/] {escape(text)}"


def _too_many_rows(configs: Sequence[TrainConfig], shape: ShapeConfig) -> Iterator[str]:
    """A warning if more completions would be sampled at a time than there is room for."""
    fixed = [config for config in configs if config.sampler.batch_size != "auto"]
    held = [memory_of(config, shape) for config in fixed]
    wanted = max((config.sampler.num_rows for config in fixed), default=0)
    room = min((one.rows for one in held if one.sampling), default=wanted)
    if room < wanted:
        yield (
            f"[bold yellow]warning:[/] sampler.batch_size={wanted} has no room beside the weights. "
            f"Pass sampler.batch_size=auto, or {room}"
        )


def memory_table(configs: Sequence[TrainConfig], shape: ShapeConfig) -> Table:
    """What runs of the same model hold in each of their GPUs, by term, in GB of 10⁹ bytes.

    Runs of the same algorithm have a column for each that differs.
    """
    model = configs[0].model
    asked = model.resources
    runs: dict[str, list[Memory]] = {}
    for config in configs:
        held = memory_of(config, shape)
        if held not in runs.setdefault(config.algorithm.name, []):
            runs[config.algorithm.name].append(held)
    columns = [(name, held) for name, several in runs.items() for held in several]
    usable = columns[0][1].usable
    table = Table(
        title=f"{escape(model.name)}, {shape.num_parameters:,} parameters: GB in each of "
        f"{_count(asked.all_gpus, 'GPU')}; {usable / GB:.0f} of {asked.gpu_gb} may be used",
        title_justify="left",
        box=box.SIMPLE,
    )
    table.add_column()
    for name, _ in columns:
        table.add_column(name, justify="right")

    def add(title: str, values: Sequence[float], *, end_section: bool = False) -> None:
        if any(values):
            cells = [f"{value / GB:.1f}" if value else "" for value in values]
            table.add_row(title, *cells, end_section=end_section)

    everything = [held for _, held in columns]
    for phase, total in (("learning", "while it learns"), ("sampling", "while it samples")):
        of_runs: list[dict[str, float]] = [getattr(held, phase) for held in everything]
        for term in dict.fromkeys(term for terms in of_runs for term in terms):
            add(term, [terms.get(term, 0) for terms in of_runs])
        add(f"[bold]{total}[/]", [sum(t.values()) for t in of_runs], end_section=True)
    length = configs[0].dataset.max_new_tokens
    counts = [f"{held.rows:,}" if held.sampling else "" for held in everything]
    if any(counts):
        table.add_row(f"completions of {length} tokens at a time", *counts)
    return table


def how_long(plans: Sequence[Plan], *, here: bool = True, at_once: int = 1) -> Iterator[str]:
    """About how long the runs take on this machine, and one after another on GPUs.

    here: whether runs are made on this machine; else they are made on the GPUs that they ask for.
    at_once: how many are made at a time on this machine.
    """
    todo = estimate.undone(plans)
    timed = [one for one in todo if here and estimate.is_timed(one)]
    if timed:
        takes = estimate.seconds(timed, at_once)
        yield f"about {_between(takes.low, takes.high)} on this machine"
    on_gpus = [one for one in todo if one not in timed and estimate.is_computed(one)]
    if on_gpus:
        seconds = {one.run: estimate.gpu_seconds(one) for one in on_gpus}
        gpu_hours = sum(seconds[o.run] * o.config.model.resources.all_gpus for o in on_gpus) / 3600
        hours = f"{gpu_hours:.2g}" if gpu_hours < 10 else f"{gpu_hours:,.0f}"
        yield (
            f"about {_duration(sum(seconds.values()))} on the GPUs asked for, {hours} GPU hours: "
            f"computed for {estimate.GPU}, at {estimate.UTILISATION:.0%} of its peak; not measured"
        )


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _between(low: float, high: float) -> str:
    """``3 to 6 minutes``, ``50 seconds to 2 minutes``; where both are the same, ``3 minutes``."""
    least, most = _duration(low), _duration(high)
    if least == most:
        return least
    number, _, unit = least.partition(" ")
    same_unit = unit.rstrip("s") == most.partition(" ")[2].rstrip("s")
    return f"{number if same_unit else least} to {most}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return _count(max(1, round(seconds)), "second")
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
