"""From a plan to a finished run: resumed or made, and what it needs before it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import torch

from reasonrl.algorithms import ALGORITHMS
from reasonrl.evaluation.policy import write_estimates
from reasonrl.job import Job
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.results import (
    AFTER,
    BEFORE,
    WORST,
    evaluate_before,
    evaluate_policy,
    starting_policy,
)
from reasonrl.policy.policy import device_of, load_tokenizer
from reasonrl.report.curve import draw_learning_curve
from reasonrl.report.reliability import draw_reliability_diagram
from reasonrl.report.wandb_mirror import Mirror, mirrored
from reasonrl.reward_models.learning import VALIDATION, VERDICTS
from reasonrl.reward_models.model import RewardModel
from reasonrl.rewards.steps import STEPS_FILE
from reasonrl.runs.folder import GAIN, RunFolder, is_done, running, write_config
from reasonrl.runs.metrics_log import MetricsLog
from reasonrl.runs.preemption import boundary
from reasonrl.runs.process import usable_cores
from reasonrl.runs.provenance import complete_attempt
from reasonrl.runs.result import CONDITIONING_GAP, read_result
from reasonrl.types import SavedPolicy
from reasonrl.util.atomic import remove_folder, write_json, writing
from reasonrl.util.progress import Progress


def ensure_done(planned: Plan, progress: Progress, *, wait: bool = False) -> RunFolder:
    """The planned run, done: as it is if it was done before, else resumed or made.

    wait: whether to wait for another process that is making it, or to refuse.
    """
    if not is_done(planned.run):
        for first in planned.prerequisites.values():
            ensure_done(first, progress, wait=True)
        boundary()  # a signal that came late in a prerequisite begins no attempt at this run
        with running(planned.run, wait=wait) as todo:
            if todo:
                with _logged(planned.run):
                    _set_up(planned)
                    with mirrored(planned.run, planned.config) as mirror:
                        _execute(planned, progress, mirror)
                        mirror.complete({p.id: p.question for p in planned.test})
    return planned.run


def _set_up(planned: Plan) -> None:
    """Sets the number of threads, and keeps what the attempt uses of its machine."""
    config = planned.config
    torch.set_num_threads(config.runtime.threads or usable_cores())
    device = device_of(config.model)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    complete_attempt(planned.run.provenance, threads=torch.get_num_threads(), gpu=gpu, processes=1)


def _execute(planned: Plan, progress: Progress, mirror: Mirror) -> None:
    config, run = planned.config, planned.run
    write_config(run, config)
    makes_policy = config.algorithm.makes == "policy"
    start = starting_policy(planned)
    if makes_policy and "init" not in planned.prerequisites:
        evaluate_policy(planned, start, BEFORE, progress)
    if not run.result.exists():
        result = _carry_out(planned, start, progress, mirror)
        write_json(run.result, asdict(result) if result else {})
    if run.work.exists():
        remove_folder(run.work)
    if makes_policy:
        policy = read_result(run)
        folder = run.evaluated(config.protocol)
        after = evaluate_policy(planned, policy, AFTER, progress)
        if policy.labels:
            worst = evaluate_policy(planned, policy.under_the_worst(), WORST, progress)
            write_estimates(after.gain_on(worst), folder / CONDITIONING_GAP)
        gain = after.gain_on(evaluate_before(planned, progress))
        write_estimates(gain, folder / GAIN)
    _draw(planned)


def _draw(planned: Plan) -> None:
    draw_learning_curve(planned.run, planned.config.algorithm.panels)
    if planned.config.algorithm.makes == "reward model":
        folder = planned.run.evaluation / VALIDATION
        verdicts = pq.read_table(folder / VERDICTS, columns=["correct", "probability"])
        draw_reliability_diagram(
            verdicts["correct"].to_numpy(),
            verdicts["probability"].to_numpy(),
            folder / "calibration.png",
            planned.run.path.name,
        )


def _carry_out(
    planned: Plan, start: SavedPolicy, progress: Progress, mirror: Mirror
) -> SavedPolicy | None:
    config, first = planned.config, planned.prerequisites
    with MetricsLog(planned.run.metrics, on_line=mirror.follow) as log:
        job = Job(
            config=config,
            run=planned.run,
            device=device_of(config.model),
            base=planned.base,
            init=start.path,
            few_shot=start.few_shot,
            tokenizer=load_tokenizer(planned.base),
            train=planned.train,
            validation=planned.validation,
            exemplars=planned.exemplars,
            log=log,
            progress=progress,
            rollouts=first["rollouts"].run.rollouts if "rollouts" in first else None,
            steps=first["steps"].run.rollouts / STEPS_FILE if "steps" in first else None,
            reward_model=_reward_model(planned),
        )
        return ALGORITHMS[config.algorithm.name](job, config.algorithm)


def _reward_model(planned: Plan) -> Callable[[str, torch.device], RewardModel] | None:
    """What loads the reward model that the run's reward names or needs; None where it has none."""
    finished = planned.config.reward.finished_run()
    if "reward" in planned.prerequisites:
        run = planned.prerequisites["reward"].run
    elif finished:
        run = RunFolder(Path(finished))
    else:
        return None
    return partial(RewardModel.load, run.reward_model)


@contextmanager
def _logged(run: RunFolder) -> Iterator[None]:
    """Copies what is logged to the run's train.log."""
    with writing(run.log):
        handler = logging.FileHandler(run.log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
