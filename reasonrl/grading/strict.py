"""The strict reader of GSM8K's format, in which a completion stakes its score on one number::

    She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.
    She makes 9 * 2 = $<<9*2=18>>18.
    #### 18

Every method takes time linear in the text. The verdict on each doubtful form is a row of
``tests/golden/test_answers.py``.
"""

from __future__ import annotations

from typing import ClassVar

from reasonrl.grading.answers import answers_equal, canonical_number, line_calculations
from reasonrl.grading.base import Calculation, Claim, Grader


class Strict(Grader):
    """An answer is a line of ``####`` and a number, a step is a line, a trace its calculations."""

    step_delimiter: ClassVar[str] = "\n"
    answer_form: ClassVar[str] = "one line of #### and a number, as in: #### 18"
    instruction: ClassVar[str | None] = "End with a line of #### and the number."

    def answer(self, text: str) -> str | None:
        """The answer that a completion gives, in canonical form, or None if it can't be parsed.

        An answer is a line of ``####`` and one number (see ``canonical_number``); prose does not
        count (``The answer is 18.``). Every ``####`` in the completion is held to it: if one does
        not open its line, is not followed by exactly one number, or names another number than the
        rest, the completion hedges and has no answer. Other text around the answer line is ignored,
        and so is everything from the model's own next question on. Hence a completion stakes its
        score on one number, whatever else it lists.
        """
        answers = {claim.answer for claim in self.claims(text)}
        return answers.pop() if len(answers) == 1 else None

    def read(self, text: str) -> str | None:
        """What follows ``####``, in canonical form; None if it is no answer."""
        return canonical_number(text)

    def equal(self, answer: str | None, gold: str) -> bool:
        """Whether both are the same number."""
        return answers_equal(answer, gold)

    def claims(self, text: str) -> list[Claim]:
        """One claim for each line with ``####``: the first of these and what follows it."""
        claims = []
        for offset, line in self.own_lines(text):
            before, marker, after = line.partition("####")
            if marker:
                answer = None if before.strip() else self.read(after)
                claims.append(Claim(offset + len(before), offset + len(line), answer))
        return claims

    def calculations(self, text: str) -> list[Calculation]:
        """The calculations of each line: see ``line_calculations``."""
        lines = self.own_lines(text)
        return [found for offset, line in lines for found in line_calculations(line, offset)]

    def trace(self, text: str) -> tuple[str, ...]:
        """The sequence of calculations, each as ``expression=result``; empty if there is none.

        This is the paper's measure of diversity, and the key by which Expert Iteration
        de-duplicates. Wording, spacing, commas, ``18.0`` for ``18`` and annotations make no
        difference; the order of operands does.
        """
        return tuple(f"{c.expression}={c.result}" for c in self.calculations(text))

    def step_ends(self, text: str) -> list[int]:
        """The offset just after each step: see ``Grader.line_ends``."""
        return self.line_ends(text)
