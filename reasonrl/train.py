"""What train.py does: say what will be done, do it, show what came of it."""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig
from rich import box
from rich.table import Table

from reasonrl import estimate
from reasonrl.config import EIConfig, resolve
from reasonrl.pipeline import Plan, evaluations, obtain, plan
from reasonrl.progress import Progress, console
from reasonrl.report.tables import gains_table
from reasonrl.runs import is_done, read_status


def train(config: DictConfig) -> None:
    """Makes the configured run, or resumes it, or says that it is done. Raises UserError."""
    resolved = resolve(config)
    planned = plan(resolved)
    progress = Progress()
    if is_done(planned.run) and not config.dry_run:
        console.print(f"done: {planned.run.path}", soft_wrap=True)
    else:
        seconds = estimate.seconds(planned)  # loads the model: an error comes before the plan
        console.print(plan_table(planned))
        console.print(f"about {_duration(seconds)} on this machine")
    if config.dry_run:
        return
    obtain(planned, progress)
    show_result(planned, progress)


def plan_table(planned: Plan) -> Table:
    """The runs there will be, in order, with what each does and how much work it is."""
    table = Table(title="plan", title_justify="left", show_header=False, box=box.SIMPLE)
    table.add_column(overflow="fold")
    for one in _in_order(planned):
        status, work = read_status(one.run), estimate.work(one)
        table.add_row(f"[bold]{one.run.path.name}[/] ({status.state if status else 'to do'})")
        table.add_row(
            f"  {_outline(one)}, on {len(one.train):,} problems of {one.config.dataset.name}; "
            f"validated on {len(one.validation):,}, evaluated on {len(one.test):,} "
            f"({one.config.evaluation.split})"
        )
        table.add_row(
            f"  about {work.completions:,} completions to sample, {work.examples:,} to learn from"
        )
    return table


def _in_order(planned: Plan) -> Iterator[Plan]:
    if planned.prerequisite:
        yield from _in_order(planned.prerequisite)
    yield planned


def _outline(planned: Plan) -> str:
    algorithm = planned.config.algorithm
    if isinstance(algorithm, EIConfig):
        samples = ", ".join(map(str, algorithm.num_samples_per_prompt))
        temperature = f"{algorithm.temperature:g}"
        return f"Expert Iteration: {algorithm.rounds} rounds of K={samples} at T={temperature}"
    return f"fine-tuning: {algorithm.epochs} epochs on the reference solutions"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def show_result(planned: Plan, progress: Progress) -> None:
    """The table of before and after, and where to look further."""
    before, after = evaluations(planned, progress)
    config = planned.config
    started = f"{config.model.name}, init={config.init.name}"
    title = (
        f"{config.algorithm.name} on {config.dataset.name} ({started}): "
        f"{len(after.problem_ids)} {config.evaluation.split} problems"
    )
    console.print(gains_table(title, before.estimates(), after.estimates(), after.gain_on(before)))
    console.print(f"policy: {planned.run.policy}", soft_wrap=True)
    console.print(f"learning curve: {planned.run.learning_curve}", soft_wrap=True)
