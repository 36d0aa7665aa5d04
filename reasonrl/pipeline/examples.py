"""What is read of the first problems, for people to see before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from rich import box
from rich.table import Table
from rich.text import Text

from reasonrl.pipeline.plan import Plan
from reasonrl.problems.prompts import Plain, PromptForm, form_of, solution_text
from reasonrl.types import Problem

SHOWN = 3


def examples(planned: Plan) -> Iterator[Table]:
    """The first training problems as a run uses them; none where the dataset's form is known.

    Each has its prompt, without exemplars, its reference solution, its gold answer, and what the
    grader reads from the solution. A chat is shown as the model's template writes it, where the
    model is on this machine.
    """
    dataset = planned.config.dataset
    if not dataset.shows_examples:
        return
    form = form_of(planned.config)
    for problem in islice(planned.train, SHOWN):
        prompt, reference = _texts(planned, form, problem)
        table = Table(title=problem.id, title_justify="left", show_header=False, box=box.SIMPLE)
        table.add_column()
        table.add_column(overflow="fold")
        read = planned.grader.answer(solution_text(problem))
        for name, text in (
            ("prompt", prompt),
            ("reference", reference),
            ("gold answer", problem.answer),
            (f"{dataset.grader} reads", str(read)),
        ):
            table.add_row(name, Text(text))
        yield table


def _texts(planned: Plan, form: PromptForm, problem: Problem) -> tuple[str, str]:
    """A prompt and its reference completion, with all that isn't text in them."""
    if isinstance(form, Plain) or not planned.has_model:
        return form.asked(problem), solution_text(problem)
    from reasonrl.policy.policy import load_tokenizer  # takes seconds that few plans need

    tokenizer = load_tokenizer(planned.base)
    (prompt,) = form.prompt_ids([problem], tokenizer)
    (reference,) = form.reference_ids([problem], tokenizer)
    return str(tokenizer.decode(list(prompt))), str(tokenizer.decode(list(reference)))
