"""Estimates of a plan's work, and of the time that it takes on this machine or on GPUs.

A model that is made here is timed. For one that needs several GPUs, the time follows from what it
computes and reads:

    learning  of each token, 2 operations of each parameter; 2 of each that the backward pass goes
              through, and 2 more where layers are computed again; 2 of each that trains
    reading   of each token, 2 operations of each parameter
    sampling  of each token, 2 operations of each parameter; in each step all weights are read, and
              keys and values of all completions so far, and each layer takes its time to be started
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import torch

from reasonrl.config.algorithm.base import Footprint, Sizes, Work
from reasonrl.config.model import ShapeConfig
from reasonrl.config.schema import TrainConfig
from reasonrl.learning.supervised import Example, Reader, accumulate_gradients
from reasonrl.pipeline.memory import (
    BYTES,
    is_checkpointed,
    learning_layers,
    memory_of,
    trained_parameters,
)
from reasonrl.pipeline.plan import Plan
from reasonrl.policy.policy import DTYPES, load_policy
from reasonrl.problems.prompts import form_of
from reasonrl.runs.folder import is_done
from reasonrl.runs.process import ALONE, usable_cores

# Learning from a token costs a forward and a backward pass, and the latter as much as two forward
# passes. Sampling a token in a batch costs about one forward pass.
FORWARD_COST = 1 / 3
TIMED_EXAMPLES = 16
TIMED_STEPS = 5
TIMED_SECONDS = 0.5  # no step is begun after so long, except for LEAST_STEPS
LEAST_STEPS = 3
MICRO_BATCH_TOKENS = 2048

GPU = "an H100"
OPERATIONS = {"bfloat16": 989e12, "float32": 67e12}  # a second, at the peak, by NVIDIA's data sheet
UTILISATION = 0.35  # the share of it that learning and reading reach
READ_BYTES = 3.35e12  # a second, at the peak, from its memory
READ_SHARE = 0.6  # of it
LAYER_SECONDS = 0.5e-3  # for a layer's kernels to be started, at each token of a batch
CHARACTERS_PER_TOKEN = 2.5  # of solved word problems, where there is no tokenizer to count


def work(planned: Plan) -> Work:
    """What a run does from start to end, without its prerequisites.

    If it has made its policy, only the evaluations by the plan's protocol are left to do.
    """
    algorithm, size = planned.config.algorithm, sizes(planned)
    evaluations = 1 if "init" in planned.prerequisites else 2
    if algorithm.makes != "policy":
        evaluations = 0
    made = planned.run.result.exists()
    learning = Work() if made else algorithm.work(size)
    if planned.goes_on_from is not None and planned.shorter is not None:
        learning -= planned.shorter.algorithm.work(size)
    return Work(completions=evaluations * size.evaluation) + learning


def sizes(planned: Plan) -> Sizes:
    """What the work of a planned run depends on beside its algorithm's settings."""
    dataset, train = planned.config.dataset, planned.train

    def steps_per_solution() -> float:
        step_ends = planned.grader.step_ends
        return sum(len(step_ends(p.solution)) - 1 for p in train) / len(train)

    return Sizes(
        train=len(train),
        references=len(train[: dataset.num_references]),
        validation=len(planned.validation),
        evaluation=(1 + planned.config.evaluation.num_samples_per_prompt) * len(planned.test),
        steps_per_solution=steps_per_solution,
        starts_from_references=planned.config.init.name == "sft",
    )


def undone(plans: Iterable[Plan]) -> list[Plan]:
    """The runs that aren't done, each once, among these and all that they need."""
    runs = {one.run: one for planned in plans for one in planned.in_order()}
    return [one for one in runs.values() if not is_done(one.run)]


@dataclass(frozen=True)
class Range:
    """The seconds that work takes.

    ``low`` is by the fastest step timed; ``high`` by the median, if all is sampled that may be.
    """

    low: float
    high: float


def seconds(runs: Iterable[Plan], at_once: int = 1) -> Range:
    """About how long these runs take, without what they need.

    The estimate is made from a few timed learning steps of each base model, by the fastest and by
    the median one: what else runs on the machine makes steps slower, never faster.

    at_once: how many of them are made at a time, which share the cores; no more than there are
        cores can be faster for it, and no run is done sooner than by itself.
    """
    alike: dict[tuple[str, str, str], list[Plan]] = {}
    for one in runs:
        model, dataset = one.config.model, one.config.dataset
        alike.setdefault((one.base, model.compute_dtype, dataset.name), []).append(one)
    found = [each for some in alike.values() for each in _seconds(some, at_once)]
    together = max(1, min(at_once, usable_cores()))

    def of_all(each: Sequence[float]) -> float:
        return max(sum(each) / together, *each)

    return Range(of_all([one.low for one in found]), of_all([one.high for one in found]))


def is_timed(planned: Plan) -> bool:
    """Whether one process on this machine can make a run, so that its time can be taken."""
    return planned.has_model and planned.config.model.resources.all_gpus <= 1


def is_computed(planned: Plan) -> bool:
    """Whether a run is made on GPUs, and enough is known of its model."""
    return planned.shape is not None and planned.config.model.resources.gpus > 0


def gpu_seconds(planned: Plan) -> float:
    """About how long a run takes on the GPUs that its model asks for.

    All is sampled that may be. What it needs first isn't counted, nor loading, saving, and what a
    reward model reads.
    """
    assert planned.shape is not None
    config, shape = planned.config, planned.shape
    run, todo = config.algorithm.footprint(), work(planned)
    peak = OPERATIONS[config.model.compute_dtype]
    completion = fmean(len(p.solution) for p in planned.train) / CHARACTERS_PER_TOKEN
    question = fmean(len(p.question) for p in planned.train) / CHARACTERS_PER_TOKEN
    forward = 2 * shape.num_parameters
    operations = (
        todo.examples * (question + completion) * learning_operations(shape, run)
        + todo.readings * (question + completion) * forward
    )
    rows = max(1, min(config.sampler.num_rows, memory_of(config, shape).rows))
    batches = (todo.completions + todo.again) / rows
    sampling = batches * batch_seconds(config, shape, rows, completion)
    return (operations / (UTILISATION * peak) + sampling) / config.model.resources.all_gpus


def batch_seconds(config: TrainConfig, shape: ShapeConfig, rows: int, completion: float) -> float:
    """The time in which one GPU samples so many completions at once.

    It takes as many steps as a completion may have tokens, since one of many is long. Rows that are
    finished are left out.

    completion: the mean tokens of a completion.
    """
    peak, compute = OPERATIONS[config.model.compute_dtype], BYTES[config.model.compute_dtype]
    steps, read = config.dataset.max_new_tokens, READ_SHARE * READ_BYTES
    cache = memory_of(config, shape).row / steps  # bytes of a token's keys and values
    weights = compute * shape.num_parameters
    return (
        steps * (weights / read + shape.num_hidden_layers * LAYER_SECONDS)
        + rows * completion**2 / 2 * cache / read
        + rows * completion * 2 * shape.num_parameters / (UTILISATION * peak)
    )


def learning_operations(shape: ShapeConfig, run: Footprint) -> float:
    """The operations of learning from a token: see the module's docstring."""
    layers = run.value_layers * shape.layer_parameters
    through = layers + learning_layers(shape, run) * shape.layer_parameters
    if run.trains == "all":
        through += shape.outer_parameters
    passes = 2 if is_checkpointed(shape, run) else 1
    read = shape.num_parameters + layers
    trained = trained_parameters(shape, run) + layers
    return 2 * (read + passes * through + trained)


def _seconds(alike: Sequence[Plan], at_once: int) -> list[Range]:
    """About how long each of these runs takes, of the same base model on the same dataset."""
    planned, *_ = alike
    config = planned.config
    torch.set_num_threads(config.runtime.threads or max(1, usable_cores() // at_once))
    policy = load_policy(planned.base, "float32", ALONE.device(config.model.device))
    completions = form_of(config).reference_ids(planned.train, policy.tokenizer)
    prompts = policy.tokenizer([p.question for p in planned.train])["input_ids"]
    examples = [Example(tuple(p), c) for p, c in zip(prompts, completions, strict=True)]
    timed = examples[:TIMED_EXAMPLES]
    dtype = DTYPES[config.model.compute_dtype]
    reader = Reader(policy.model)
    took = step_seconds(lambda: accumulate_gradients(reader, timed, MICRO_BATCH_TOKENS, dtype))
    learnt, answered = fmean(map(len, examples)), fmean(map(len, completions))

    def steps(todo: Work, sampled: int) -> float:
        forward = sampled * answered + todo.readings * learnt
        return (todo.examples * learnt + FORWARD_COST * forward) / sum(map(len, timed))

    def of(todo: Work) -> Range:
        low, high = todo.completions, todo.completions + todo.again
        return Range(steps(todo, low) * took.low, steps(todo, high) * took.high)

    return [of(work(one)) for one in alike]


def step_seconds(step: Callable[[], object]) -> Range:
    """The seconds of the fastest and of the median step; the first one only warms up."""
    took: list[float] = []
    begun = time.perf_counter()
    while len(took) <= LEAST_STEPS or (
        len(took) <= TIMED_STEPS and time.perf_counter() - begun < TIMED_SECONDS
    ):
        started = time.perf_counter()
        step()
        took.append(time.perf_counter() - started)
    return Range(min(took[1:]), median(took[1:]))
