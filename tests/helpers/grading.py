"""The grader of GSM8K's format under the default prompt, ``Q: {question}\\nA:``."""

from __future__ import annotations

from reasonrl.grading.strict import Strict

STRICT = Strict(next_question="Q:")


def intermediate_results(text: str) -> list[str]:
    """The results of a text's calculations, in order."""
    return [calculation.result for calculation in STRICT.calculations(text)]
