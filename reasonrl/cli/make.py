"""What train.py does with a run that isn't finished: it says what will be done, and does it."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig

from reasonrl.cli.attempt import attempt
from reasonrl.pipeline.examples import examples
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.text import asks, doubts, how_long, needs, origin, plan_table
from reasonrl.policy.speed import warn_where_slow
from reasonrl.runs.process import ALONE, Process
from reasonrl.util.progress import Progress, console


def show_plan(planned: Plan, config: DictConfig, overrides: Sequence[str]) -> None:
    """Prints what will be done, and for a dry run what it asks for.

    config: the command's. overrides: what the command line said.
    """
    # This loads the model, so that an error comes before the plan.
    takes = list(how_long([planned]))
    for table in examples(planned):
        console.print(table)
    console.print(plan_table(planned))
    scale = f"{config.scale.name} ({config.scale.about})"
    console.print(origin(scale, [planned.config], overrides), soft_wrap=True)
    for line in (*takes, *doubts([planned])):
        console.print(line, soft_wrap=True)
    if config.dry_run:
        model = planned.config.model
        warn_where_slow(model.compute_dtype, ALONE.device(model.device))
        for part in (asks(planned), *needs([planned])):
            console.print(part, soft_wrap=True)


def make(planned: Plan, process: Process) -> None:
    """Makes or resumes the run and what it needs first, together with the other processes."""
    with attempt(process):
        ensure_done(planned, Progress(shown=process.is_main), process=process)
