"""What train.py does: it says what will be done, does it, and shows the result."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from reasonrl.config.resolve import resolve
from reasonrl.pipeline.planner import plan
from reasonrl.runs.folder import is_done
from reasonrl.runs.process import joined
from reasonrl.util.progress import console


def train(config: DictConfig) -> None:
    """Makes the configured run, or resumes it, or says that it is done. Raises UserError.

    Told to stop by a signal, it saves and exits; see ``attempt``. Where ``torchrun`` or
    ``accelerate launch`` has started this command several times, these processes make the run
    together, and the main one speaks.
    """
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    resolved = resolve(config, overrides)
    with joined() as process:
        planned = process.first(lambda: plan(resolved, fetch=not config.dry_run))
        if config.dry_run or not is_done(planned.run):
            # It imports torch, which takes seconds; mistakes and finished runs need none of it.
            from reasonrl.cli.make import make, show_plan

            if process.is_main:
                show_plan(planned, config, overrides)
            if config.dry_run:
                return
            make(planned, process)
        elif process.is_main:
            console.print(f"done: {planned.run.path}", soft_wrap=True, markup=False)
        if process.is_main:
            from reasonrl.pipeline.outcome import show_outcome  # and this imports scipy

            show_outcome(planned)
