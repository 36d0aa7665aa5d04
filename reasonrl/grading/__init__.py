"""Text to verdicts: answers, calculations, steps, and the metrics over problems.

``grader_of(config.dataset)`` reads a dataset's completions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reasonrl.grading.base import Grader
from reasonrl.grading.boxed import Boxed
from reasonrl.grading.choice import Choice
from reasonrl.grading.exact import Exact
from reasonrl.grading.strict import Strict
from reasonrl.util.errors import UserError

if TYPE_CHECKING:
    from reasonrl.config.dataset.base import DatasetConfig

# By the name that a dataset declares.
GRADERS: dict[str, type[Grader]] = {
    "strict": Strict,
    "boxed": Boxed,
    "exact": Exact,
    "choice": Choice,
}


def grader_of(dataset: DatasetConfig) -> Grader:
    """The grader that the dataset names, made for the dataset's prompt.

    Raises UserError if there is no grader of that name.
    """
    grader = GRADERS.get(dataset.grader)
    if grader is None:
        raise UserError(
            f"dataset={dataset.name} must declare one of the graders {', '.join(GRADERS)}; "
            f"got grader={dataset.grader}. Add it to grading.GRADERS."
        )
    return grader(next_question(dataset.prompt))


def next_question(prompt: str) -> str:
    """The text before a question in its own line of a prompt; "" where there is none.

    It is the last line of what the prompt template has before ``{question}``, without space around.
    """
    before = prompt.partition("{question}")[0].strip()
    return before.rpartition("\n")[2].strip()
