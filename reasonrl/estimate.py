"""How much work a plan is, and about how long it takes on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from statistics import fmean

import torch

from reasonrl.algorithms.ei import samples_in_round
from reasonrl.config import EIConfig
from reasonrl.pipeline import Plan, usable_cores
from reasonrl.policy import DTYPES, device_of, load_policy
from reasonrl.prompts import encode_completions, solution_text
from reasonrl.runs import is_done
from reasonrl.supervised import Example, accumulate_gradients

# Learning is a forward and a backward pass, a backward pass costs two forward passes, and batched
# decoding about as much as a forward pass.
SAMPLING_COST = 1 / 3
TIMED_EXAMPLES = 16


@dataclass(frozen=True)
class Work:
    """completions: sampled. examples: learnt from, each as often as there are epochs."""

    completions: int = 0
    examples: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def work(planned: Plan) -> Work:
    """What a run does from start to end, without its prerequisites.

    What Expert Iteration learns from depends on what it finds; this counts one new solution of each
    problem a round.
    """
    config, num_train = planned.config, len(planned.train)
    num_references = len(planned.train[: config.dataset.num_references])
    num_evaluations = 1 if planned.prerequisite else 2
    per_evaluation = len(planned.test) * (1 + config.evaluation.num_samples_per_prompt)
    total = Work(completions=num_evaluations * per_evaluation)
    algorithm = config.algorithm
    if not isinstance(algorithm, EIConfig):
        return total + Work(examples=algorithm.epochs * num_references)
    total += Work(completions=len(planned.validation))
    known = num_references if config.init.name == "sft" else 0
    for number in range(1, algorithm.rounds + 1):
        known += num_train
        total += Work(
            completions=num_train * samples_in_round(algorithm, number) + len(planned.validation),
            examples=algorithm.epochs * known,
        )
    return total


def remaining_work(planned: Plan) -> Work:
    """Of a run and its prerequisites, those that aren't done."""
    if is_done(planned.run):
        return Work()
    before = remaining_work(planned.prerequisite) if planned.prerequisite else Work()
    return before + work(planned)


def seconds(planned: Plan) -> float:
    """About how long the remaining work takes: from one timed learning step of the base model."""
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
        accumulate_gradients(policy.model, timed, config.algorithm.micro_batch_tokens, dtype)
        elapsed = time.perf_counter() - started
    per_token = elapsed / sum(map(len, timed))
    remaining = remaining_work(planned)
    learnt_tokens = remaining.examples * fmean(map(len, examples))
    sampled_tokens = remaining.completions * fmean(map(len, completions))
    return per_token * (learnt_tokens + SAMPLING_COST * sampled_tokens)
