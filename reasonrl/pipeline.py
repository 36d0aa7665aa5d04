"""From a configuration to a finished run: found by its identity, resumed, or made.

Whatever a run needs first is a run too, obtained the same way.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
import torch
from transformers import PreTrainedTokenizerBase

from reasonrl.algorithms import ALGORITHMS
from reasonrl.atomic import remove_folder, write_json, writing
from reasonrl.config import (
    DatasetConfig,
    EvaluateConfig,
    LearnedConfig,
    PPOConfig,
    RCRLConfig,
    RewardModelConfig,
    StepsConfig,
    TrainConfig,
    asks_for_reward,
    makes_policy,
    prerequisites,
    training_set,
)
from reasonrl.continuations import STEPS_FILE
from reasonrl.errors import UserError
from reasonrl.evaluation import Evaluation, evaluate, write_estimates
from reasonrl.job import Job
from reasonrl.policy import (
    SavedPolicy,
    check_num_layers,
    context_of,
    device_of,
    find_folder,
    load_tokenizer,
    local_folder,
    num_layers_of,
)
from reasonrl.preemption import boundary
from reasonrl.problems import load_problems
from reasonrl.progress import Progress
from reasonrl.prompts import build_prompts, check_lengths, label_ids
from reasonrl.report.calibration import draw_reliability_diagram
from reasonrl.report.curve import draw_learning_curve
from reasonrl.returns import label_texts
from reasonrl.reward_learning import VALIDATION, VERDICTS
from reasonrl.rewards.reward_model import Description
from reasonrl.runs import RunFolder, is_done, read_config, run_folder, running, write_config
from reasonrl.tracking import MetricsLog
from reasonrl.types import Problem
from reasonrl.wandb_mirror import Mirror, mirrored

T = TypeVar("T")

BEFORE, AFTER, WORST = "before", "after", "worst"
# In evaluation/, beside those: paired differences.
GAIN, CONDITIONING_GAP = "gain.json", "conditioning_gap.json"


def read_result(run: RunFolder) -> SavedPolicy:
    """The policy a finished run made. Raises UserError if it isn't done."""
    if not is_done(run):
        raise UserError(f"run={run.path} must be done; it isn't. Give its command again.")
    return _read_result(run)


def _read_result(run: RunFolder) -> SavedPolicy:
    values = json.loads(run.result.read_text())
    if not values:
        raise UserError(
            f"run={run.path} must be a run that makes a policy, such as algorithm=sft or ei; got "
            f"algorithm={read_config(run).algorithm.name}. Pass another run."
        )
    result = SavedPolicy(**values)
    # A run's folder may have moved since, or is seen from another working directory.
    return replace(result, path=str(run.policy)) if run.policy.exists() else result


def usable_cores() -> int:
    """The cores this process may use, which may be fewer than the machine has.

    Not every cluster binds a job to those it has asked for.
    """
    bound = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(bound, int(os.environ.get("SLURM_CPUS_PER_TASK", bound)))


def base_model(config: EvaluateConfig) -> str:
    """The pretrained model's folder. Raises UserError if it can't be had."""
    return local_folder(config.model, _models(config))


def _models(config: EvaluateConfig) -> Path:
    return Path(config.runtime.outputs) / "models"


@dataclass(frozen=True)
class Plan:
    """A run and what it needs, found to be possible before anything is computed.

    prerequisites: the runs that must be there first, by what they give (``config.prerequisites``).
    base: the pretrained model's folder; of a plan without the model, which can't be carried out,
        its ``model.path``. has_model: whether it is there.
    test: the problems of ``evaluation.split``.
    """

    config: TrainConfig
    run: RunFolder
    prerequisites: dict[str, Plan]
    base: str
    has_model: bool
    train: list[Problem]
    validation: list[Problem]
    exemplars: list[Problem]
    test: list[Problem]

    def in_order(self) -> Iterator[Plan]:
        """This run and all that it needs, each once, none before what it needs itself."""
        seen = set()
        for first in self.prerequisites.values():
            for one in first.in_order():
                if one.run not in seen:
                    seen.add(one.run)
                    yield one
        yield self


def plan(config: TrainConfig, *, fetch: bool = True) -> Plan:
    """``Planner(fetch=fetch).plan(config)``."""
    return Planner(fetch=fetch).plan(config)


class Planner:
    """Plans runs; what several of them have in common is planned, read and checked once.

    fetch: whether a model that isn't on this machine is downloaded or converted, and an error where
        it can't be; else such a run is planned without it: what asks its tokenizer isn't checked.
    here: whether the runs are made on this machine, which then must have their device.
    """

    def __init__(self, *, fetch: bool = True, here: bool = True) -> None:
        self._fetch, self._here = fetch, here
        self._plans: dict[RunFolder, Plan] = {}
        self._known: dict[str, Any] = {}

    def plan(self, config: TrainConfig) -> Plan:
        """Checks what can be checked without computing. Raises UserError."""
        run = run_folder(config)
        if run not in self._plans:
            self._plans[run] = self._plan(config, run)
        return self._plans[run]

    def _plan(self, config: TrainConfig, run: RunFolder) -> Plan:
        model, init, dataset = config.model, config.init, config.dataset
        if self._here:
            self._once(("device", model), lambda: device_of(model))
        if init.run is not None:
            self._once(("init", init.run, model.name), lambda: _check_init_run(config))
        exemplars, validation = self._once(("validation", dataset), lambda: _validation(dataset))
        first = {gives: self.plan(one) for gives, one in prerequisites(config).items()}
        base = self._once(("model", model, config.runtime.outputs), lambda: self._base(config))
        planned = Plan(
            config=config,
            run=run,
            prerequisites=first,
            base=base or model.path,
            has_model=base is not None,
            train=self._problems(training_set(config), "train"),
            validation=validation,
            exemplars=exemplars,
            test=self._problems(dataset, config.evaluation.split),
        )
        if planned.has_model:
            self._check(planned)
        return planned

    def _problems(self, dataset: DatasetConfig, split: str) -> list[Problem]:
        return self._once(("problems", dataset, split), lambda: load_problems(dataset, split))

    def _base(self, config: TrainConfig) -> str | None:
        return base_model(config) if self._fetch else find_folder(config.model, _models(config))

    def _check(self, planned: Plan) -> None:
        """What the model has a say in."""
        config, base = planned.config, planned.base
        algorithm, reward = config.algorithm, config.reward
        data = (training_set(config), config.evaluation.split)
        tokenizer = self._once(("tokenizer", base), lambda: load_tokenizer(base))
        few_shot, longest = config.init.name == "pretrained", _longest(config, tokenizer)
        self._once(
            ("prompts", base, *data, few_shot, longest),
            lambda: _check_prompts(planned, tokenizer, longest),
        )
        if isinstance(algorithm, PPOConfig):
            num_layers = self._once(("layers", base), lambda: num_layers_of(base))
            for key in ("value_layers", "trainable_layers"):
                check_num_layers(key, getattr(algorithm, key), num_layers)
        if asks_for_reward(algorithm) and isinstance(reward, LearnedConfig) and reward.run:
            run = RunFolder(Path(reward.run))
            self._once(
                ("reward", base, *data, run), lambda: _check_reward_run(planned, tokenizer, run)
            )

    def _once(self, key: tuple[object, ...], compute: Callable[[], T]) -> T:
        """What ``compute`` gives, which the key decides. By value: configurations hold lists."""
        text = repr(key)
        if text not in self._known:
            self._known[text] = compute()
        known: T = self._known[text]
        return known


def _validation(dataset: DatasetConfig) -> tuple[list[Problem], list[Problem]]:
    """The exemplars of the validation split, and its other problems."""
    problems, number = load_problems(dataset, "validation"), dataset.num_exemplars
    if len(problems) <= number:
        raise UserError(
            f"dataset.num_exemplars={number} must leave problems of the validation split to "
            f"validate on; got {len(problems)} in all. Lower it."
        )
    return problems[:number], problems[number:]


def _check_init_run(config: TrainConfig) -> None:
    earlier = RunFolder(Path(str(config.init.run)))
    if read_result(earlier).labels:
        raise UserError(
            f"init.run={config.init.run} must be a run whose policy is asked without labels; got "
            "algorithm=rcrl. Pass another run."
        )
    model = read_config(earlier).model.name
    if model != config.model.name:
        raise UserError(
            f"init.run={config.init.run} must be a run of the same model; it is of {model}; got "
            f"model.name={config.model.name}. Pass model={model}."
        )


def _check_reward_run(planned: Plan, tokenizer: PreTrainedTokenizerBase, run: RunFolder) -> None:
    """Of a reward model that is named by its run: may it be asked about this policy?"""
    model = Description.read(reward_model_of(run, "reward.run"))
    model.check_tokenizer(tokenizer)
    model.check_not_trained_on([*planned.validation, *planned.test])


def reward_model_of(run: RunFolder, key: str) -> Path:
    """The folder of the reward model that a run made. Raises UserError if it made none."""
    if not is_done(run) or not run.reward_model.exists():
        raise UserError(
            f"{key}={run.path} must be a finished run of algorithm=orm or sorm; got "
            f"{'a run without a reward model' if is_done(run) else 'no finished run'}. "
            "Make one with python train.py algorithm=orm."
        )
    return run.reward_model


def _longest(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens may follow a prompt."""
    algorithm, max_new_tokens = config.algorithm, config.dataset.max_new_tokens
    if isinstance(algorithm, StepsConfig):  # completions that go on from almost whole ones
        return 2 * max_new_tokens
    if isinstance(algorithm, RCRLConfig):
        as_text = algorithm.label_tokens == "text"
        labels = label_ids(label_texts(algorithm), tokenizer).values() if as_text else [(0,)]
        return max_new_tokens + max(map(len, labels))
    return max_new_tokens


def _check_prompts(planned: Plan, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
    template, context = planned.config.dataset.prompt, context_of(planned.base)
    exemplars = planned.exemplars if planned.config.init.name == "pretrained" else []
    for problems in (planned.train, planned.validation, planned.test):
        prompts = build_prompts(problems, tokenizer, template, exemplars)
        check_lengths(prompts, longest, context)


def obtain(planned: Plan, progress: Progress, *, wait: bool = False) -> RunFolder:
    """The planned run, done: as it is if it was done before, else resumed or made.

    wait: whether to wait for another process that is making it, or to refuse.
    """
    if not is_done(planned.run):
        for first in planned.prerequisites.values():
            obtain(first, progress, wait=True)
        boundary()  # a signal that came late in a prerequisite begins no attempt at this run
        with running(planned.run, wait=wait) as todo:
            if todo:
                with _logged(planned.run), mirrored(planned.run, planned.config) as mirror:
                    _execute(planned, progress, mirror)
                    mirror.complete({p.id: p.question for p in planned.test})
    return planned.run


def _execute(planned: Plan, progress: Progress, mirror: Mirror) -> None:
    config, run = planned.config, planned.run
    torch.set_num_threads(config.runtime.threads or usable_cores())
    write_config(run, config)
    start = _starting_policy(planned)
    if makes_policy(config.algorithm) and "init" not in planned.prerequisites:
        _evaluate(planned, start, BEFORE, progress)
    if not run.result.exists():
        result = _carry_out(planned, start, progress, mirror)
        write_json(run.result, asdict(result) if result else {})
    if run.work.exists():
        remove_folder(run.work)
    if makes_policy(config.algorithm):
        policy = _read_result(run)
        after = _evaluate(planned, policy, AFTER, progress)
        gain = after.gain_on(_before(planned, progress))
        write_estimates(gain, run.evaluation / GAIN)
        if policy.labels:
            worst = _evaluate(planned, policy.under_the_worst(), WORST, progress)
            write_estimates(after.gain_on(worst), run.evaluation / CONDITIONING_GAP)
    _draw(planned)


def _draw(planned: Plan) -> None:
    draw_learning_curve(planned.run)
    if isinstance(planned.config.algorithm, RewardModelConfig):
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
        return ALGORITHMS[config.algorithm.name](job)


def _reward_model(planned: Plan) -> Path | None:
    if "reward" in planned.prerequisites:
        return planned.prerequisites["reward"].run.reward_model
    reward = planned.config.reward
    if isinstance(reward, LearnedConfig) and reward.run is not None:
        return RunFolder(Path(reward.run)).reward_model
    return None


def _starting_policy(planned: Plan) -> SavedPolicy:
    if "init" in planned.prerequisites:
        return read_result(planned.prerequisites["init"].run)
    if planned.config.init.run is not None:
        return read_result(RunFolder(Path(planned.config.init.run)))
    return SavedPolicy(planned.base, few_shot=planned.config.dataset.num_exemplars > 0)


def _evaluate(planned: Plan, policy: SavedPolicy, when: str, progress: Progress) -> Evaluation:
    return evaluate(
        planned.config,
        policy,
        planned.test,
        planned.exemplars,
        folder=planned.run.evaluation / when,
        progress=progress,
        description=f"{planned.config.algorithm.name}: evaluation {when}",
    )


def _before(planned: Plan, progress: Progress) -> Evaluation:
    """Of the policy that a run starts from: its own, or the after of the run that made it."""
    start = _starting_policy(planned)
    if "init" in planned.prerequisites:
        return _evaluate(planned.prerequisites["init"], start, AFTER, progress)
    return _evaluate(planned, start, BEFORE, progress)


def evaluations(planned: Plan, progress: Progress) -> tuple[Evaluation, Evaluation]:
    """A finished run's evaluations before and after, from what they left on disk."""
    result = read_result(planned.run)
    return _before(planned, progress), _evaluate(planned, result, AFTER, progress)


def under_the_worst_label(planned: Plan, progress: Progress) -> Evaluation:
    """A finished run's evaluation asked for the worst return, of a policy that is asked for one."""
    return _evaluate(planned, read_result(planned.run).under_the_worst(), WORST, progress)


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
