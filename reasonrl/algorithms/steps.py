"""What becomes of the steps of sampled completions.

    for each of the first n sampled completions a of every training question, and each step i of a:
        C ← K completions sampled from the policy π that continue (q, a_≤i)
        count which of C are right

A step's label says whether the answer can be reached from it (GLoRe, Havrilla et al., 2024).
Stepwise reward models and RCRL learn from these counts and labels. Nothing is learnt here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby

import pyarrow as pa

from reasonrl.config.algorithm.steps import StepsConfig
from reasonrl.grading.answers import numerals
from reasonrl.grading.base import Grader
from reasonrl.grading.steps import step_tokens
from reasonrl.grading.stops import decode
from reasonrl.job import Job
from reasonrl.rewards.steps import STEPS, STEPS_FILE, Step
from reasonrl.sampling.rollouts import write_table
from reasonrl.types import Problem, Prompt, Rollout
from reasonrl.util.seeding import derive_seed


def run(job: Job, settings: StepsConfig) -> None:
    rollouts = job.samples("train", settings.num_solutions_per_prompt)
    label_steps(job, rollouts, settings.num_continuations, settings.sample.temperature)


def label_steps(
    job: Job, rollouts: Sequence[Rollout], num_continuations: int, temperature: float
) -> list[list[Step]]:
    """The steps of each rollout, in order, labelled by continuations of the job's starting policy.

    A step is good if at least one continuation verifies it. A continuation does so if it is right
    and uses the results of the step, as operands of later calculations or as the answer; one that
    starts over proves nothing. It is right only if it ends where a completion isn't cut off yet:
    within ``max_new_tokens``, the beginning's included. A step before a good step is good too. The
    same beginning is continued once, however many completions have it. Writes
    rollouts/continuations.parquet, and the counts and labels to rollouts/steps.parquet.
    """
    closing = [step_tokens(job.tokenizer, rollout.completion, job.grader) for rollout in rollouts]
    prefixes = [
        [tuple(rollout.completion.token_ids[: token + 1]) for token in tokens[:-1]]
        for rollout, tokens in zip(rollouts, closing, strict=True)
    ]
    counts = _count(job, rollouts, prefixes, num_continuations, temperature)
    labelled = []
    for rollout, tokens, own in zip(rollouts, closing, prefixes, strict=True):
        problem_id = rollout.prompt.problem_id
        of_steps = [counts[problem_id, prefix] for prefix in own]
        good = [verifying > 0 for _, verifying in of_steps] + [rollout.correct]
        labelled.append(
            [
                Step(number, token, correct, verifying, any(good[number:]))
                for number, (token, (correct, verifying)) in enumerate(
                    # It isn't strict, since a blank completion has no step, not even a last one.
                    zip(tokens, [*of_steps, (None, None)], strict=False)
                )
            ]
        )
    _write_steps(job, rollouts, labelled)
    return labelled


def _count(
    job: Job,
    rollouts: Sequence[Rollout],
    prefixes: Sequence[Sequence[tuple[int, ...]]],
    num_continuations: int,
    temperature: float,
) -> dict[tuple[str, tuple[int, ...]], tuple[int, int]]:
    """How many continuations are right, and how many verify their prefix, by problem and prefix."""
    keys = list(
        dict.fromkeys(
            (rollout.prompt.problem_id, prefix)
            for rollout, own in zip(rollouts, prefixes, strict=True)
            for prefix in own
        )
    )
    problem_of = {problem.id: problem for problem in job.train}
    asked = {p.problem_id: p for p in job.prompts(job.train, few_shot=job.few_shot)}
    prompts = [
        Prompt(f"{problem_id}/{i}", asked[problem_id].token_ids + prefix)
        for i, (problem_id, prefix) in enumerate(keys)
    ]
    continuations = job.collect(
        job.sampler(job.init),
        [problem_of[problem_id] for problem_id, _ in keys],
        prompts,
        job.params(num_continuations, temperature),
        seed=derive_seed(job.config.seed, "continuations"),
        file=job.run.rollouts / "continuations.parquet",
        description="continuing steps",
    )
    counts = {}
    grouped = groupby(continuations, key=lambda r: r.prompt.problem_id)
    for (problem_id, prefix), (_, group) in zip(keys, grouped, strict=True):
        step = last_step(decode(job.tokenizer, prefix), job.grader)
        right = [c for c in group if _is_right(job, prefix, c, problem_of[problem_id])]
        verifying = sum(uses_results(step, r.completion.text, r.answer, job.grader) for r in right)
        counts[problem_id, prefix] = len(right), verifying
    return counts


def _is_right(job: Job, prefix: tuple[int, ...], continuation: Rollout, problem: Problem) -> bool:
    """Whether beginning and continuation are right as a whole, as a completion would be.

    A beginning that gives a wrong answer is not mended by a right answer after it, and what is
    longer than ``max_new_tokens`` is more than the policy may write.
    """
    token_ids = (*prefix, *continuation.completion.token_ids)
    if not continuation.correct or len(token_ids) > job.config.dataset.max_new_tokens:
        return False
    whole = decode(job.tokenizer, token_ids)
    return job.grader.equal(job.grader.answer(whole), problem.answer)


def last_step(text: str, grader: Grader) -> str:
    """The text of a completion's last step."""
    ends = [0, *grader.step_ends(text)]
    return text[ends[-2] : ends[-1]] if len(ends) > 1 else ""


def uses_results(step: str, continuation: str, answer: str | None, grader: Grader) -> bool:
    """Whether each result of ``step`` is an operand in its continuation, or the answer.

    A step that calculates nothing has no results, so this is True of it.
    """
    operands = {n for c in grader.calculations(continuation) for n in numerals(c.expression)}
    used = operands | {answer}
    return used.issuperset(calculation.result for calculation in grader.calculations(step))


def _write_steps(job: Job, rollouts: Sequence[Rollout], labelled: Sequence[Sequence[Step]]) -> None:
    rows = [
        {
            "problem_id": rollout.prompt.problem_id,
            "sample_index": rollout.completion.sample_index,
            **asdict(step),
        }
        for rollout, steps in zip(rollouts, labelled, strict=True)
        for step in steps
    ]
    write_table(job.run.rollouts / STEPS_FILE, pa.Table.from_pylist(rows, schema=STEPS))
