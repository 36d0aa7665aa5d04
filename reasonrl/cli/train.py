"""What train.py does: it says what will be done, does it, and shows the result."""

from __future__ import annotations

from omegaconf import DictConfig

from reasonrl.cli.attempt import attempt
from reasonrl.config.resolve import resolve
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.plan import plan
from reasonrl.pipeline.results import Result
from reasonrl.pipeline.text import asks, how_long, needs, plan_table, show_result
from reasonrl.runs.folder import is_done
from reasonrl.runs.process import ALONE
from reasonrl.util.progress import Progress, console


def train(config: DictConfig) -> Result | None:
    """Makes the configured run, or resumes it, or says that it is done. Raises UserError.

    Returns None if there is no policy to evaluate, or for a dry run. Told to stop by a signal, it
    saves and exits; see ``attempt``.
    """
    resolved = resolve(config)
    planned = plan(resolved, fetch=not config.dry_run)
    process = ALONE
    progress = Progress(shown=process.is_main)
    if is_done(planned.run) and not config.dry_run:
        console.print(f"done: {planned.run.path}", soft_wrap=True)
    else:
        # This loads the model, so that an error comes before the plan.
        takes = list(how_long([planned]))
        console.print(plan_table(planned))
        for line in takes:
            console.print(line, soft_wrap=True)
    if config.dry_run:
        for part in (asks(planned), *needs([planned])):
            console.print(part, soft_wrap=True)
        return None
    with attempt():
        ensure_done(planned, progress, process=process)
        return show_result(planned, progress)
