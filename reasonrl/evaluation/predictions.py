"""The grading of completions that any other system made, by the same grader as this project's."""

from __future__ import annotations

import json
from pathlib import Path

from reasonrl.evaluation.policy import Evaluation, summarise
from reasonrl.grading.answers import canonical_number
from reasonrl.grading.base import Grader
from reasonrl.problems.sources import Row, json_lines
from reasonrl.rewards.sparse import Outcome
from reasonrl.sampling.rollouts import grade
from reasonrl.types import Completion, Problem, Prompt, Rollout
from reasonrl.util.atomic import write_text
from reasonrl.util.errors import UserError


def read_predictions(file: Path, grader: Grader) -> tuple[list[Problem], list[Rollout]]:
    """The problems and their graded completions, from one JSON object a line.

    Each object has ``id`` or ``question``, the gold ``answer`` (a number, or a solution that ends
    in ``#### NUMBER``) and ``completions``, a list that is equally long for every problem. Each
    completion counts as ended. Raises UserError, with file and line, for anything else.
    """
    problems: list[Problem] = []
    rollouts: list[Rollout] = []
    seen: set[str] = set()
    num_samples: int | None = None
    for row in json_lines(file):
        problem, texts = _problem(row, grader), _completions(row)
        if problem.id in seen:
            raise UserError(f"{row.place}: each problem must be there once; {problem.id} is again.")
        seen.add(problem.id)
        if num_samples not in (None, len(texts)):
            raise UserError(
                f"{row.place}: completions must be as many for every problem; got {len(texts)} "
                f"after {num_samples}."
            )
        num_samples = len(texts)
        problems.append(problem)
        completions = [
            Completion(problem.id, i, (), (), "eos", text) for i, text in enumerate(texts)
        ]
        prompt = Prompt(problem.id, ())
        n = len(completions)
        rollouts += grade([prompt] * n, completions, [problem] * n, Outcome(grader), grader)
    if not problems:
        raise UserError(f"predictions={file} must hold predictions; it is empty.")
    return problems, rollouts


def _problem(row: Row, grader: Grader) -> Problem:
    name = "id" if "id" in row.values else "question"
    text = row.text("answer")
    answer = grader.answer(text) or canonical_number(text)
    if answer is None:
        raise UserError(f"{row.place}: answer must be a number, or end in '#### NUMBER'.")
    return Problem(row.text(name), row.text(name), answer, solution="")


def _completions(row: Row) -> list[str]:
    texts = row.values.get("completions")
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise UserError(f"{row.place}: completions must be a list of one text or more.")
    return texts


def verdicts_of(file: Path) -> Path:
    """Where the verdicts on a file belong: beside it."""
    return file.with_name(f"{file.stem}.verdicts.jsonl")


def grade_predictions(file: Path, grader: Grader, verdicts: Path) -> Evaluation:
    """Grades a file, and writes the verdicts to another, one line a completion."""
    problems, rollouts = read_predictions(file, grader)
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
    write_text(verdicts, "\n".join(lines) + "\n")
    return summarise(problems, [], rollouts, grader)
