"""What becomes of the steps of sampled completions: each is gone on from several times.

A step's label says whether the answer can be reached from it: the policy samples K continuations
of the completion up to the end of the step (GLoRe, Havrilla et al., 2024).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from reasonrl.answers import answers_equal, calculations, extract_answer, numerals
from reasonrl.job import Job
from reasonrl.rewards.sparse import Outcome
from reasonrl.rollouts import collect_rollouts, write_table
from reasonrl.sampling.steps import step_ends, step_tokens
from reasonrl.sampling.stops import decode
from reasonrl.seeding import derive_seed
from reasonrl.types import Problem, Prompt, Rollout

STEPS_FILE = "steps.parquet"
STEPS = pa.schema(
    {
        "problem_id": pa.string(),
        "sample_index": pa.int32(),
        "number": pa.int32(),
        "token": pa.int32(),
        "correct": pa.int32(),
        "verifying": pa.int32(),
        "good": pa.bool_(),
    }
)


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a completion (``sampling.steps``), labelled.

    number: from 0. token: the index of its last token.
    correct: how many of the continuations are right; of these ``verifying`` also use what the step
        calculates. Both are None for a last step, which is labelled by the completion's answer.
    good: the label.
    """

    number: int
    token: int
    correct: int | None
    verifying: int | None
    good: bool


def label_steps(
    job: Job, rollouts: Sequence[Rollout], num_continuations: int, temperature: float
) -> list[list[Step]]:
    """The steps of each rollout, in order, labelled by continuations of the job's starting policy.

    A step is good if one continuation or more verifies it: is right and uses the results of the
    step, as operands of later calculations or as the answer. A continuation that starts over proves
    nothing. A step before a good step is good too. The same beginning is continued once, however
    many completions have it. Writes rollouts/continuations.parquet, and the counts and labels to
    rollouts/steps.parquet.
    """
    closing = [step_tokens(job.tokenizer, rollout.completion) for rollout in rollouts]
    prefixes = [
        [rollout.completion.token_ids[: token + 1] for token in tokens[:-1]]
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
                    # Not strict: a blank completion has no step, not even a last one.
                    zip(tokens, [*of_steps, (None, None)], strict=False)
                )
            ]
        )
    _write_steps(job, rollouts, labelled)
    return labelled


def read_steps(job: Job, rollouts: Sequence[Rollout]) -> list[list[Step]]:
    """The labelled steps of each rollout, as the run that the job takes them from wrote them."""
    assert job.steps is not None
    steps = defaultdict(list)
    for row in pq.read_table(job.steps, schema=STEPS).to_pylist():
        key = row.pop("problem_id"), row.pop("sample_index")
        steps[key].append(Step(**row))
    return [steps[r.completion.problem_id, r.completion.sample_index] for r in rollouts]


def _count(
    job: Job,
    rollouts: Sequence[Rollout],
    prefixes: Sequence[Sequence[tuple[int, ...]]],
    num_continuations: int,
    temperature: float,
) -> dict[tuple[str, tuple[int, ...]], tuple[int, int]]:
    """Of each problem's prefixes: how many continuations are right, and how many verify it."""
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
    with job.progress.task("continuing steps", len(keys) * num_continuations) as advance:
        continuations = collect_rollouts(
            job.sampler(job.init),
            [problem_of[problem_id] for problem_id, _ in keys],
            prompts,
            job.params(num_continuations, temperature),
            Outcome(),
            seed=derive_seed(job.config.seed, "continuations"),
            file=job.run.rollouts / "continuations.parquet",
            on_progress=advance,
        )
    counts = {}
    grouped = groupby(continuations, key=lambda r: r.prompt.problem_id)
    for (problem_id, prefix), (_, group) in zip(keys, grouped, strict=True):
        step = last_step(decode(job.tokenizer, prefix))
        right = [c for c in group if _is_right(job, prefix, c, problem_of[problem_id])]
        verifying = sum(uses_results(step, r.completion.text, r.answer) for r in right)
        counts[problem_id, prefix] = len(right), verifying
    return counts


def _is_right(job: Job, prefix: tuple[int, ...], continuation: Rollout, problem: Problem) -> bool:
    """As a whole: a beginning that gives a wrong answer is not mended by a right one after it."""
    if not continuation.correct:
        return False
    whole = decode(job.tokenizer, prefix + continuation.completion.token_ids)
    return answers_equal(extract_answer(whole), problem.answer)


def last_step(text: str) -> str:
    """The text of a completion's last step."""
    ends = [0, *step_ends(text)]
    return text[ends[-2] : ends[-1]] if len(ends) > 1 else ""


def uses_results(step: str, continuation: str, answer: str | None) -> bool:
    """Whether all that ``step`` calculates is an operand in its continuation, or the answer.

    A step that calculates nothing asks for nothing.
    """
    used = {n for c in calculations(continuation) for n in numerals(c.expression)} | {answer}
    return used.issuperset(calculation.result for calculation in calculations(step))


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
