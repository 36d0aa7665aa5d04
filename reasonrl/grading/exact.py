"""The reader of answers that are texts: a line of ``####``, and the answer as it is written."""

from __future__ import annotations

import unicodedata
from typing import ClassVar

from reasonrl.grading.base import Calculation
from reasonrl.grading.strict import Strict


class Exact(Strict):
    """As ``Strict``, but an answer is any text.

    Spaces, capitals and the ways in which Unicode writes an accented letter make no difference.
    """

    answer_form: ClassVar[str] = "one line of #### and a text, as in: #### Paris"
    instruction: ClassVar[str | None] = "End with a line of #### and the answer."

    def read(self, text: str) -> str | None:
        """The text in small letters, composed (NFC), with single spaces; None if it is blank."""
        folded = unicodedata.normalize("NFC", text).casefold()
        return " ".join(unicodedata.normalize("NFC", folded).split()) or None

    def equal(self, answer: str | None, gold: str) -> bool:
        """Whether both are the same text."""
        return answer is not None and answer == self.read(gold)

    def calculations(self, text: str) -> list[Calculation]:  # noqa: ARG002
        """It reads none."""
        return []

    def trace(self, text: str) -> tuple[str, ...]:
        """Its lines: see ``Grader.line_trace``."""
        return self.line_trace(text)
