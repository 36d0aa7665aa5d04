"""How much work a plan is, about how long it takes on this machine, and what it needs of a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import fmean

import torch

from reasonrl.algorithms.ei import samples_in_round
from reasonrl.config import (
    EIConfig,
    ORMConfig,
    PPOConfig,
    RCRLConfig,
    RewardModelConfig,
    SampleConfig,
    SFTConfig,
    SORMConfig,
    StepsConfig,
)
from reasonrl.pipeline import Plan, usable_cores
from reasonrl.policy import DTYPES, device_of, load_policy
from reasonrl.prompts import encode_completions, solution_text
from reasonrl.returns import label_texts
from reasonrl.runs import is_done
from reasonrl.sampling.steps import step_ends
from reasonrl.supervised import Example, accumulate_gradients

# Learning is a forward and a backward pass, a backward pass costs two forward passes, and batched
# decoding about as much as a forward pass.
FORWARD_COST = 1 / 3
TIMED_EXAMPLES = 16
MICRO_BATCH_TOKENS = 2048
# Bytes of a parameter.
FLOAT32 = 4
LEARNT = 4 * FLOAT32  # the weight, its gradient, and Adam's two moments
GB = 1e9


@dataclass(frozen=True)
class Work:
    """completions: sampled. examples: learnt from, each as often as there are epochs. readings:
    completions that a model reads without learning, as often as it does.
    """

    completions: int = 0
    examples: int = 0
    readings: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def work(planned: Plan) -> Work:
    """What a run does from start to end, without its prerequisites.

    What Expert Iteration learns from depends on what it finds; this counts one new solution of each
    problem a round. The beginnings of completions that are gone on from are counted as if no two
    were the same.
    """
    config, num_train = planned.config, len(planned.train)
    num_references = len(planned.train[: config.dataset.num_references])
    match config.algorithm:
        case SFTConfig() as algorithm:
            return _evaluations(planned) + Work(examples=algorithm.epochs * num_references)
        case EIConfig() as algorithm:
            return _evaluations(planned) + _expert_iteration(planned, algorithm, num_references)
        case PPOConfig() as algorithm:
            return _evaluations(planned) + _ppo(planned, algorithm)
        case SampleConfig() as algorithm:
            num_questions = num_train + len(planned.validation)
            return Work(completions=algorithm.num_samples_per_prompt * num_questions)
        case RCRLConfig() as algorithm:
            return _evaluations(planned) + _rcrl(planned, algorithm)
        case StepsConfig() as algorithm:
            num_solutions = num_train * algorithm.num_solutions_per_prompt
            num_steps = sum(len(step_ends(p.solution)) - 1 for p in planned.train) / num_train
            return Work(completions=round(num_solutions * num_steps * algorithm.num_continuations))
        case ORMConfig() as algorithm:
            num_solutions = num_train * algorithm.sample.num_samples_per_prompt
            return Work(examples=algorithm.epochs * num_solutions)
        case SORMConfig() as algorithm:
            num_solutions = num_train * algorithm.num_solutions_per_prompt
            return Work(examples=algorithm.epochs * num_solutions)


def _evaluations(planned: Plan) -> Work:
    number = 1 if "init" in planned.prerequisites else 2
    per_problem = 1 + planned.config.evaluation.num_samples_per_prompt
    return Work(completions=number * per_problem * len(planned.test))


def _expert_iteration(planned: Plan, algorithm: EIConfig, num_references: int) -> Work:
    num_train = len(planned.train)
    total = Work(completions=len(planned.validation))
    known = num_references if planned.config.init.name == "sft" else 0
    for number in range(1, algorithm.rounds + 1):
        known += num_train
        total += Work(
            completions=num_train * samples_in_round(algorithm, number) + len(planned.validation),
            examples=algorithm.epochs * known,
        )
    return total


def _ppo(planned: Plan, algorithm: PPOConfig) -> Work:
    rollouts = algorithm.iterations * algorithm.rollouts_per_iteration
    validations = 1 + -(-algorithm.iterations // algorithm.validate_every)
    return Work(
        completions=rollouts + validations * len(planned.validation),
        examples=algorithm.epochs * rollouts,
        readings=2 * rollouts,  # by the policy and by the reference
    )


def _rcrl(planned: Plan, algorithm: RCRLConfig) -> Work:
    labels = len(label_texts(algorithm))
    per_problem = 1 + planned.config.evaluation.num_samples_per_prompt
    return Work(
        # Validated under each label, and tested under the worst one too.
        completions=labels * len(planned.validation) + per_problem * len(planned.test),
        examples=algorithm.epochs * algorithm.num_solutions_per_prompt * len(planned.train),
    )


def gpu_gigabytes(planned: Plan) -> float | None:
    """What a run holds of the model in GPU memory at the same time, in GB of 10⁹ bytes.

    The least it needs: without activations, value layers, adapters and a reward model's head. None
    where ``model.num_parameters`` isn't known.
    """
    model, algorithm = planned.config.model, planned.config.algorithm
    if model.num_parameters is None:
        return None
    match algorithm:
        case SampleConfig() | StepsConfig():
            per_parameter = DTYPES[model.compute_dtype].itemsize
        case PPOConfig(trainable="all"):
            per_parameter = LEARNT + FLOAT32  # the reference
        case PPOConfig():
            per_parameter = 2 * FLOAT32  # to sample, a copy
        case RewardModelConfig(trainable="head" | "lora"):
            per_parameter = FLOAT32
        case _:
            per_parameter = LEARNT
    return per_parameter * model.num_parameters / GB


def undone(plans: Iterable[Plan]) -> list[Plan]:
    """Of these runs and all that they need, each once, those that aren't done."""
    runs = {one.run: one for planned in plans for one in planned.in_order()}
    return [one for one in runs.values() if not is_done(one.run)]


def seconds(runs: Iterable[Plan]) -> float:
    """About how long these runs take, one after another and without what they need.

    From one timed learning step of each base model.
    """
    alike: dict[tuple[str, str, str], list[Plan]] = {}
    for one in runs:
        model, dataset = one.config.model, one.config.dataset
        alike.setdefault((one.base, model.compute_dtype, dataset.name), []).append(one)
    return sum(map(_seconds, alike.values()))


def _seconds(alike: Sequence[Plan]) -> float:
    """Of runs of the same base model on the same dataset."""
    planned, *_ = alike
    config = planned.config
    torch.set_num_threads(config.runtime.threads or usable_cores())
    policy = load_policy(planned.base, "float32", device_of(config.model))
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
