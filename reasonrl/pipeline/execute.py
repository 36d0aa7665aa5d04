"""The way from a plan to a finished run, which is made or resumed after the runs it needs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import torch

from reasonrl.algorithms import ALGORITHMS
from reasonrl.evaluation.summary import write_estimates
from reasonrl.job import Job
from reasonrl.pipeline.memory import is_judged, with_batch_size
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.results import (
    evaluate_before,
    evaluate_policy,
    starting_policy,
)
from reasonrl.policy.policy import load_tokenizer
from reasonrl.report.curve import draw_learning_curve
from reasonrl.report.live import Live
from reasonrl.report.reliability import draw_reliability_diagram
from reasonrl.report.wandb_mirror import Mirror, mirrored
from reasonrl.reward_models.learning import VERDICTS
from reasonrl.reward_models.model import RewardModel
from reasonrl.rewards.steps import STEPS_FILE
from reasonrl.runs import machines, ranks
from reasonrl.runs.folder import GAIN, RunFolder, is_done, running, write_config
from reasonrl.runs.metrics_log import MetricsLog, peak_memory
from reasonrl.runs.preemption import boundary
from reasonrl.runs.process import ALONE, Process, usable_cores
from reasonrl.runs.provenance import complete_attempt
from reasonrl.runs.result import AFTER, BEFORE, CONDITIONING_GAP, VALIDATION, WORST, read_result
from reasonrl.types import SavedPolicy
from reasonrl.util.atomic import copy, remove_folder, write_json, write_text, writing
from reasonrl.util.own_code import file_of
from reasonrl.util.progress import Progress


def ensure_done(
    planned: Plan,
    progress: Progress,
    *,
    wait: bool = False,
    process: Process = ALONE,
) -> RunFolder:
    """Makes or resumes the planned run, and what it needs before it, unless it is done.

    wait: whether to wait if another process is making the run, or to raise UserError.
    process: this one of the processes that make the run together. One that is alone starts others
        for a run that is to have several, each run its own: nothing of an earlier one stays in a
        GPU's memory. On any machine but the first of several it only starts those.
    """
    if not machines.Machine.here().is_first and process.size == 1:
        ranks.lend(lambda: is_done(planned.run))
    elif not process.broadcast(is_done(planned.run)):
        for first in planned.prerequisites.values():
            ensure_done(first, progress, wait=True, process=process)
        # A signal that came late in a prerequisite begins no attempt at this run.
        boundary(process=process)
        with running(planned.run, wait=wait, process=process) as todo:
            if todo and process.size == 1 and machines.are_needed(planned.config):
                write_config(planned.run, planned.config)  # for the ranks
                ranks.make_together(ranks.of_run(planned.run.path), planned.config)
            elif todo:
                make(planned, progress, process)
    return planned.run


def make(planned: Plan, progress: Progress, process: Process) -> None:
    """Makes the planned run, which is owned by now, and has what it needs."""
    with _logged(planned.run, process):
        _set_up(planned, process)
        with mirrored(planned.run, planned.config, process) as mirror:
            _execute(planned, progress, mirror, process)
            mirror.complete({p.id: p.question for p in planned.test})


def _set_up(planned: Plan, process: Process) -> None:
    """Sets the number of threads, and records what the attempt uses of its machine."""
    config = planned.config
    torch.set_num_threads(config.runtime.threads or max(1, usable_cores() // process.local_size))
    device = process.device(config.model.device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    if process.is_main:
        complete_attempt(
            planned.run.provenance,
            threads=torch.get_num_threads(),
            gpu=gpu,
            processes=process.size,
        )


def _execute(planned: Plan, progress: Progress, mirror: Mirror, process: Process) -> None:
    config, run = planned.config, planned.run
    if process.is_main:
        write_config(run, config)
        if config.reward.code is not None and config.algorithm.reads_reward != "nothing":
            write_text(run.own_reward, file_of(config.reward.code).read_text(encoding="utf-8"))
    held = config.algorithm.footprint()
    config = with_batch_size(config, planned.shape, held, reward_model=is_judged(config))
    planned = replace(planned, config=config)
    makes_policy = config.algorithm.makes == "policy"
    start = process.first(lambda: starting_policy(planned))
    if makes_policy and "init" not in planned.prerequisites:
        evaluate_policy(planned, start, BEFORE, progress, process)
    process.first(lambda: _go_on(planned))
    if not process.broadcast(run.result.exists()):
        result = _carry_out(planned, start, progress, mirror, process)
        if process.is_main:
            write_json(run.result, asdict(result) if result else {})
    if process.is_main and run.work.exists():
        remove_folder(run.work)
    if makes_policy:
        policy = process.first(lambda: read_result(run))
        estimates = {}  # by file, the one that says that the run is evaluated last
        after = evaluate_policy(planned, policy, AFTER, progress, process)
        if policy.labels:
            worst = evaluate_policy(planned, policy.under_the_worst(), WORST, progress, process)
            estimates[CONDITIONING_GAP] = after.gain_on(worst)
        estimates[GAIN] = after.gain_on(evaluate_before(planned, progress, process))
        if process.is_main:
            for file, gain in estimates.items():
                write_estimates(gain, run.evaluated(config.protocol) / file)
    if process.is_main:
        _draw(planned)


def _go_on(planned: Plan) -> None:
    """Gives a run that hasn't begun the work of a shorter one, whose journal comes last."""
    if planned.goes_on_from is not None:
        for name in planned.config.algorithm.keeps:
            copy(planned.goes_on_from.path / name, planned.run.path / name)


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
    planned: Plan, start: SavedPolicy, progress: Progress, mirror: Mirror, process: Process
) -> SavedPolicy | None:
    config, first = planned.config, planned.prerequisites
    device = process.device(config.model.device)
    live = Live(planned.run.metrics, config.algorithm, len(planned.validation))

    def on_line() -> None:
        live.follow()
        mirror.follow()

    memory = partial(torch.cuda.max_memory_allocated, device) if device.type == "cuda" else None
    with MetricsLog(planned.run.metrics, on_line, process, memory or peak_memory) as log:
        job = Job(
            config=config,
            run=planned.run,
            device=device,
            base=planned.base,
            init=start.path,
            few_shot=start.few_shot,
            grader=planned.grader,
            tokenizer=load_tokenizer(planned.base),
            train=planned.train,
            validation=planned.validation,
            exemplars=planned.exemplars,
            log=log,
            progress=progress,
            rollouts=first["rollouts"].run.rollouts if "rollouts" in first else None,
            steps=first["steps"].run.rollouts / STEPS_FILE if "steps" in first else None,
            reward_model=_reward_model(planned),
            process=process,
        )
        return ALGORITHMS[config.algorithm.kind](job, config.algorithm)


def _reward_model(planned: Plan) -> Callable[[str, torch.device], RewardModel] | None:
    """A function that loads the reward model of the run's reward; None if the reward has none."""
    finished = planned.config.reward.finished_run()
    if "reward" in planned.prerequisites:
        run = planned.prerequisites["reward"].run
    elif finished:
        run = RunFolder(Path(finished))
    else:
        return None
    return partial(RewardModel.load, run.reward_model)


@contextmanager
def _logged(run: RunFolder, process: Process) -> Iterator[None]:
    """Copies what is logged to the run's train.log.

    Of the other processes only warnings are kept, in rank-1.log and so on, and nothing is shown.
    """
    root = logging.getLogger()
    file = run.log if process.is_main else run.log.with_name(f"rank-{process.rank}.log")
    shown = [] if process.is_main else list(root.handlers)
    with writing(file):
        handler = logging.FileHandler(file, delay=not process.is_main)
    handler.setLevel(logging.NOTSET if process.is_main else logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for other in shown:
        root.removeHandler(other)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        for other in shown:
            root.addHandler(other)
