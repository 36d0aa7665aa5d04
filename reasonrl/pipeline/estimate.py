"""Estimates of a plan's work, of its time on this machine, and of the GPU memory that it needs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from statistics import fmean

import torch

from reasonrl.config.algorithm.base import Sizes, Work
from reasonrl.learning.supervised import Example, accumulate_gradients
from reasonrl.pipeline.plan import Plan
from reasonrl.policy.policy import DTYPES, load_policy
from reasonrl.problems.prompts import encode_completions, solution_text
from reasonrl.runs.folder import is_done
from reasonrl.runs.process import ALONE, usable_cores

# Learning from a token costs a forward and a backward pass, and the latter as much as two forward
# passes. Sampling a token in a batch costs about one forward pass.
FORWARD_COST = 1 / 3
TIMED_EXAMPLES = 16
MICRO_BATCH_TOKENS = 2048
GB = 1e9


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


def gpu_gigabytes(planned: Plan) -> float | None:
    """What a run holds of the model in GPU memory at the same time, in GB of 10⁹ bytes.

    The run needs more than that: activations, value layers, adapters and a reward model's head
    aren't counted. The result is None if ``model.num_parameters`` isn't known.
    """
    model = planned.config.model
    if model.num_parameters is None:
        return None
    compute = DTYPES[model.compute_dtype].itemsize
    return planned.config.algorithm.bytes_per_parameter(compute) * model.num_parameters / GB


def undone(plans: Iterable[Plan]) -> list[Plan]:
    """The runs that aren't done, each once, among these and all that they need."""
    runs = {one.run: one for planned in plans for one in planned.in_order()}
    return [one for one in runs.values() if not is_done(one.run)]


def seconds(runs: Iterable[Plan]) -> float:
    """About how long these runs take, one after another and without what they need.

    The estimate is made from one timed learning step of each base model.
    """
    alike: dict[tuple[str, str, str], list[Plan]] = {}
    for one in runs:
        model, dataset = one.config.model, one.config.dataset
        alike.setdefault((one.base, model.compute_dtype, dataset.name), []).append(one)
    return sum(map(_seconds, alike.values()))


def _seconds(alike: Sequence[Plan]) -> float:
    """About how long runs of the same base model on the same dataset take."""
    planned, *_ = alike
    config = planned.config
    torch.set_num_threads(config.runtime.threads or usable_cores())
    policy = load_policy(planned.base, "float32", ALONE.device(config.model.device))
    completions = encode_completions(map(solution_text, planned.train), policy.tokenizer)
    prompts = policy.tokenizer([p.question for p in planned.train])["input_ids"]
    examples = [Example(tuple(p), c) for p, c in zip(prompts, completions, strict=True)]
    timed = examples[:TIMED_EXAMPLES]
    dtype = DTYPES[config.model.compute_dtype]
    for _ in range(2):  # the first time warms up
        started = time.perf_counter()
        accumulate_gradients(policy.model, timed, MICRO_BATCH_TOKENS, dtype)
        elapsed = time.perf_counter() - started
    per_token = elapsed / sum(map(len, timed))
    remaining = sum(map(work, alike), start=Work())
    learnt_tokens = remaining.examples * fmean(map(len, examples))
    read_tokens = remaining.readings * fmean(map(len, examples))
    sampled_tokens = remaining.completions * fmean(map(len, completions))
    return per_token * (learnt_tokens + FORWARD_COST * (sampled_tokens + read_tokens))
