"""The reader of multiple choice: a line of ``####`` and one letter."""

from __future__ import annotations

import re
from typing import ClassVar

from reasonrl.grading.exact import Exact

_LETTER = re.compile(r"\(?([A-Z])(?:[).:]{0,2}|[).:]\s.*)", re.DOTALL)


class Choice(Exact):
    """As ``Exact``, but an answer is a capital letter, with or without what it stands for."""

    answer_form: ClassVar[str] = "one line of #### and a letter, as in: #### B"
    instruction: ClassVar[str | None] = "End with a line of #### and the letter of the answer."

    def read(self, text: str) -> str | None:
        """The letter, of ``B``, ``(B)``, ``B.`` or ``B) 12 cm``; None for anything else."""
        match = _LETTER.fullmatch(text.strip())
        return match[1] if match else None
