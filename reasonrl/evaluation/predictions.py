"""The grading of completions that any other system made, by the same grader as this project's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from reasonrl.evaluation.formats import Prediction, predictions_in
from reasonrl.evaluation.summary import Evaluation, summarise, write_estimates
from reasonrl.grading.base import Grader
from reasonrl.problems.sources import Row
from reasonrl.rewards.sparse import read_answer
from reasonrl.types import Completion, Problem, Prompt, Rollout
from reasonrl.util.atomic import write_text
from reasonrl.util.errors import UserError

UNPARSED = "unparsed"  # beside the metrics: the share of completions without a readable answer
# What is known of texts alone; of their tokens and rewards nothing is.
KNOWN = ("correct", "unparsed", "undecided", "finish_length", "unique_fraction", "unique_correct")

Golds = Callable[[], Mapping[str, str]]  # the dataset's answers, by the problems' ids


def read_predictions(
    file: Path, grader: Grader, golds: Golds
) -> tuple[list[Problem], list[Rollout]]:
    """The problems and their graded completions, grouped by problem.

    golds: asked where the file has none of its own.

    Raises UserError, with file and line, for what ``predictions_in`` refuses, and for a gold answer
    that the grader can't read.
    """
    problems: list[Problem] = []
    completions: list[tuple[Completion, Problem]] = []
    known: Mapping[str, str] | None = None
    for row, prediction in predictions_in(file):
        if prediction.gold is None and known is None:
            known = golds()
        problem = _problem(row, prediction, grader, known or {})
        problems.append(problem)
        completions += [
            (Completion(problem.id, i, (), (), reason, text), problem)
            for i, (text, reason) in enumerate(prediction.completions)
        ]
    answers = [read_answer(completion, grader) for completion, _ in completions]
    correct = grader.equal_each(answers, [problem.answer for _, problem in completions])
    return problems, [
        Rollout(
            Prompt(problem.id, ()), completion, answer, right is True, (), undecided=right is None
        )
        for (completion, problem), answer, right in zip(completions, answers, correct, strict=True)
    ]


def _problem(row: Row, prediction: Prediction, grader: Grader, known: Mapping[str, str]) -> Problem:
    name, text = prediction.problem_id, prediction.gold
    if text is None:
        text = known.get(name)
    if text is None:
        raise UserError(
            f"{row.place}: custom_id must be the id of a problem of the dataset, such as "
            f"{next(iter(known), None)}; got {name}. Pass dataset= and evaluation.split= of the "
            "problems that were asked."
        )
    answer = grader.answer(text) or grader.read(text)
    if answer is None:
        raise UserError(
            f"{row.place}: the gold answer must be {grader.answer_form}, or only what it has "
            f"there; got {text[:60]!r}. Other kinds of answers have another grader=."
        )
    return Problem(name, name, answer, solution="")


def verdicts_of(file: Path) -> Path:
    """Where the verdicts on a file belong: beside it."""
    return file.with_name(f"{file.stem}.verdicts.jsonl")


def metrics_beside(verdicts: Path) -> Path:
    """Where the metrics belong: beside the verdicts."""
    return verdicts.with_name(verdicts.name.removesuffix(".verdicts.jsonl") + ".metrics.json")


def grade_predictions(file: Path, grader: Grader, golds: Golds, verdicts: Path) -> Evaluation:
    """Grades a file; writes the verdicts, one line a completion, and the metrics beside them.

    Where the problems have different numbers of completions, the metrics are of the first of each,
    as many as all have. A single completion each counts as the greedy one.
    """
    problems, rollouts = read_predictions(file, grader, golds)
    evaluation = _summarise(problems, rollouts, grader)
    write_text(verdicts, _lines(problems, rollouts))
    write_estimates(
        evaluation.estimates(),
        metrics_beside(verdicts),
        problems=len(problems),
        statistics=evaluation.statistics,
    )
    return evaluation


def _summarise(
    problems: Sequence[Problem], rollouts: Sequence[Rollout], grader: Grader
) -> Evaluation:
    rows = [list(group) for _, group in groupby(rollouts, key=lambda r: r.completion.problem_id)]
    fewest, most = min(map(len, rows)), max(map(len, rows))
    samples = [rollout for row in rows for rollout in row[:fewest]]
    found = summarise(problems, samples if fewest == 1 else [], samples, grader)
    unparsed = [np.mean([r.answer is None for r in row[:fewest]]) for row in rows]
    statistics = {
        name: value
        for name, value in found.statistics.items()
        if name.startswith("pass_curve/")
        or (name.startswith("sampled/") and name.removeprefix("sampled/") in KNOWN)
    }
    counts = {"fewest_completions": float(fewest), "most_completions": float(most)}
    return replace(
        found,
        scores=found.scores | {UNPARSED: np.array(unparsed, dtype=float)},
        statistics=statistics | counts,
    )


def _lines(problems: Sequence[Problem], rollouts: Sequence[Rollout]) -> str:
    golds = {p.id: p.answer for p in problems}
    lines = [
        json.dumps(
            {
                "id": r.completion.problem_id,
                "completion": r.completion.sample_index,
                "answer": r.answer,
                "gold": golds[r.completion.problem_id],
                "correct": r.correct,
            },
            ensure_ascii=False,
        )
        for r in rollouts
    ]
    return "\n".join(lines) + "\n"
