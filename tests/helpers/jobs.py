"""A job on three problems of two calculations, by a tiny model with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from reasonrl.config.schema import TrainConfig
from reasonrl.job import Job
from reasonrl.policy.policy import load_tokenizer
from reasonrl.rewards.sparse import Outcome
from reasonrl.rewards.verdicts import grade
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.metrics_log import MetricsLog
from reasonrl.runs.process import ALONE
from reasonrl.sampling.rollouts import write_rollouts
from reasonrl.types import Completion, FinishReason, Problem, Prompt, Rollout
from reasonrl.util.progress import Progress
from tests.helpers.grading import STRICT

CPU = torch.device("cpu")


def problem(name: str, a: int, b: int, c: int) -> Problem:
    question = f"Ana has {a} apples. Then Ben gives Ana {b} apples. Tom has {c} apples."
    total, answer = a + b, (a + b) * c
    return Problem(name, question, str(answer), f"{a}+{b}={total}\n{total}*{c}={answer}")


TRAIN = [problem("t0", 2, 3, 4), problem("t1", 4, 4, 2), problem("t2", 1, 6, 3)]
VALIDATION = [problem("v0", 1, 2, 3), problem("v1", 2, 2, 5)]
EXEMPLARS = [problem("x0", 9, 9, 2)]


def sampled(
    tokenizer: PreTrainedTokenizerBase,
    problem: Problem,
    texts: Sequence[str],
    reason: FinishReason = "eos",
) -> list[Rollout]:
    """Of prompts of two tokens that no template writes."""
    completions = []
    for i, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        ids += [tokenizer.eos_token_id] if reason == "eos" else []
        logprobs = (-0.5,) * len(ids)
        completions.append(Completion(problem.id, i, tuple(ids), logprobs, reason, text))
    n = len(texts)
    return grade(
        [Prompt(problem.id, (5, 5))] * n, completions, [problem] * n, Outcome(STRICT), STRICT
    )


def right(problem: Problem) -> str:
    return f" {problem.solution}\n#### {problem.answer}"


def wrong(problem: Problem) -> str:
    return f" {problem.solution.splitlines()[0]}\n1+1=2\n#### 2"


@contextmanager
def job_of(
    config: TrainConfig, init: str, folder: Path, rollouts: Path | None = None, **options: Any
) -> Iterator[Job]:
    """A job on the problems above. rollouts: the folder of those to learn from."""
    run, process = RunFolder(folder), options.get("process", ALONE)
    with MetricsLog(run.metrics, process=process) as log:
        yield Job(
            config=config,
            run=run,
            device=CPU,
            base=init,
            init=init,
            few_shot=options.get("few_shot", False),
            grader=STRICT,
            tokenizer=load_tokenizer(init),
            train=options.get("train", TRAIN),
            validation=VALIDATION,
            exemplars=EXEMPLARS,
            log=log,
            progress=Progress(),
            rollouts=rollouts,
            steps=options.get("steps"),
            process=process,
        )


def write_samples(folder: Path, tokenizer: PreTrainedTokenizerBase, *texts: Callable) -> Path:
    """Of every problem the given kinds of completions."""
    for split, problems in (("train", TRAIN), ("validation", VALIDATION)):
        rollouts = [r for p in problems for r in sampled(tokenizer, p, [t(p) for t in texts])]
        write_rollouts(folder / f"{split}.parquet", rollouts)
    return folder


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed again")
