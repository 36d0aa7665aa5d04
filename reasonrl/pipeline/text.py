"""The texts in which a command says what will be done, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from reasonrl.evaluation.policy import METRICS, read_estimates
from reasonrl.pipeline import estimate
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.results import Result, result_of
from reasonrl.report.tables import estimates_table, gains_table
from reasonrl.reward_models.learning import VALIDATION
from reasonrl.runs.folder import read_status, state_of
from reasonrl.util.progress import Progress, console

LARGEST_GPU_GB = 141  # an H200's; most have 24 to 80


def plan_table(planned: Plan) -> Table:
    """The runs there will be, in order, with what each does and how much work it is."""
    table = Table(title="plan", title_justify="left", show_header=False, box=box.SIMPLE)
    table.add_column(overflow="fold")
    for one in planned.in_order():
        state, work = state_of(one.run, read_status(one.run)), estimate.work(one)
        table.add_row(f"[bold]{one.run.path.name}[/] ({state})")
        evaluated = (
            f", evaluated on {len(one.test):,} ({one.config.evaluation.split})"
            if one.config.algorithm.makes == "policy"
            else ""
        )
        outline = one.config.algorithm.outline(one.config)
        table.add_row(
            f"  {outline}, on {len(one.train):,} problems of {one.config.dataset.name}; "
            f"validated on {len(one.validation):,}{evaluated}"
        )
        table.add_row(
            f"  about {work.completions:,} completions to sample, {work.examples:,} to learn from"
        )
    return table


def asks(planned: Plan) -> str:
    """What each run of the plan asks of a cluster."""
    asked = planned.config.model.resources
    gpus = f"{_count(asked.gpus, 'GPU')}, " if asked.gpus else ""
    return (
        f"on a cluster each run asks for {gpus}{_count(asked.cpus, 'CPU')}, {asked.memory_gb} GB "
        f"of memory and {_count(asked.hours, 'hour')}"
    )


def needs(plans: Sequence[Plan]) -> Iterator[str]:
    """What runs of the same model need of a GPU, and what couldn't be checked of them."""
    model, has_model = plans[0].config.model, plans[0].has_model
    gigabytes = map(estimate.gpu_gigabytes, estimate.undone(plans))
    held = max(filter(None, gigabytes), default=0)
    if held and model.resources.gpus:
        yield (
            f"{model.num_parameters:,} parameters: of its GPU's memory at least {held:.3g} GB, and "
            "activations"
        )
    if held > LARGEST_GPU_GB:
        yield (
            f"[bold yellow]warning:[/] a run has one GPU, and an H200 has {LARGEST_GPU_GB} GB. "
            "Pass a smaller model, or init=pretrained algorithm=ppo algorithm.trainable=lora"
        )
    if not has_model:
        yield (
            f"{escape(model.path)} isn't ready on this machine: not checked whether prompts fit "
            "its context, not known how long it takes"
        )


def how_long(plans: Sequence[Plan]) -> str | None:
    """About how long the runs take on this machine.

    It is None if nothing is to be done, or if a model isn't there to be timed.
    """
    todo = estimate.undone(plans)
    if not todo or not all(one.has_model for one in todo):
        return None
    return f"about {_duration(estimate.seconds(todo))} on this machine"


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def show_result(planned: Plan, progress: Progress) -> Result | None:
    """Prints the result of a run, and where to look further."""
    makes = planned.config.algorithm.makes
    if makes == "policy":
        return _show_policy(planned, progress)
    if makes == "reward model":
        _show_reward_model(planned)
    else:
        console.print(f"completions: {planned.run.rollouts}", soft_wrap=True)
    return None


def _show_reward_model(planned: Plan) -> None:
    folder = planned.run.evaluation / VALIDATION
    title = f"{planned.run.path.name}: completions of {len(planned.validation)} validation problems"
    console.print(estimates_table(title, read_estimates(folder / METRICS)))
    console.print(f"reward model: {planned.run.reward_model}", soft_wrap=True)
    console.print(f"reliability diagram: {folder / 'calibration.png'}", soft_wrap=True)


def _show_policy(planned: Plan, progress: Progress) -> Result:
    """Prints the table of before and after, and that of the conditioning gap if there is one."""
    result = result_of(planned, progress)
    before, after, worst = result.before, result.after, result.worst
    config = planned.config
    started = f"{config.model.name}, init={config.init.name}"
    title = (
        f"{config.algorithm.name} on {config.dataset.name} ({started}): "
        f"{len(after.problem_ids)} {config.evaluation.split} problems, "
        f"T={config.evaluation.temperature:g}"
    )
    console.print(gains_table(title, before.estimates(), after.estimates(), after.gain_on(before)))
    if worst is not None:
        labels = list(result.policy.labels)
        console.print(
            gains_table(
                "conditioning gap: asked for the worst, and for the best return",
                worst.estimates(),
                after.estimates(),
                after.gain_on(worst),
                columns=(labels[0], labels[-1]),
            )
        )
    console.print(f"policy: {planned.run.policy}", soft_wrap=True)
    if config.algorithm.panels.charts:
        console.print(f"learning curve: {planned.run.learning_curve}", soft_wrap=True)
    return result
