"""What train.py does: it says what will be done, does it, and shows the result."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from reasonrl.cli.attempt import attempt
from reasonrl.config.resolve import resolve
from reasonrl.pipeline.examples import examples
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.plan import Plan, plan
from reasonrl.pipeline.results import Result
from reasonrl.pipeline.text import asks, doubts, how_long, needs, origin, plan_table, show_result
from reasonrl.policy.speed import warn_where_slow
from reasonrl.runs.folder import is_done
from reasonrl.runs.process import ALONE, joined
from reasonrl.util.progress import Progress, console


def train(config: DictConfig) -> Result | None:
    """Makes the configured run, or resumes it, or says that it is done. Raises UserError.

    Returns None if there is no policy to evaluate, or for a dry run. Told to stop by a signal, it
    saves and exits; see ``attempt``. Where ``torchrun`` or ``accelerate launch`` has started this
    command several times, these processes make the run together, and the main one speaks.
    """
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    resolved = resolve(config, overrides)
    with joined() as process:
        planned = process.first(lambda: plan(resolved, fetch=not config.dry_run))
        if process.is_main:
            _show_plan(planned, config, overrides)
        if config.dry_run:
            return None
        with attempt(process):
            progress = Progress(shown=process.is_main)
            ensure_done(planned, progress, process=process)
            return show_result(planned, progress) if process.is_main else None


def _show_plan(planned: Plan, config: DictConfig, overrides: Sequence[str]) -> None:
    if is_done(planned.run) and not config.dry_run:
        console.print(f"done: {planned.run.path}", soft_wrap=True, markup=False)
    else:
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
