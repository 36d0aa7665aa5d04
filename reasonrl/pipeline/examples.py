"""What is read of the first problems, for people to see before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from rich import box
from rich.table import Table
from rich.text import Text

from reasonrl.pipeline.plan import Plan
from reasonrl.problems.prompts import solution_text

SHOWN = 3


def examples(planned: Plan) -> Iterator[Table]:
    """The first training problems as a run uses them; none where the dataset's form is known.

    Each has its prompt, without exemplars, its reference solution, its gold answer, and what the
    grader reads from the solution.
    """
    dataset = planned.config.dataset
    if not dataset.shows_examples:
        return
    for problem in islice(planned.train, SHOWN):
        table = Table(title=problem.id, title_justify="left", show_header=False, box=box.SIMPLE)
        table.add_column()
        table.add_column(overflow="fold")
        read = planned.grader.answer(solution_text(problem))
        for name, text in (
            ("prompt", dataset.prompt.replace("{question}", problem.question)),
            ("reference", solution_text(problem)),
            ("gold answer", problem.answer),
            (f"{dataset.grader} reads", str(read)),
        ):
            table.add_row(name, Text(text))
        yield table
