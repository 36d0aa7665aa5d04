r"""The reader of answers in LaTeX, as MATH has them: the last ``\boxed{…}`` of a completion.

Two answers are the same where they are written alike, or as numbers, or where math-verify finds
that they mean the same. The verdict on each doubtful form is a row of
``tests/golden/test_boxed.py``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from reasonrl.grading.answers import canonical_number
from reasonrl.grading.base import Calculation, Claim, Grader
from reasonrl.grading.equivalence import equivalent

BOX = "\\boxed{"
MOST_CHARACTERS = 400  # of an answer; longer ones are none
_SPACES = re.compile(r"\\[,!;: ]|\\q?quad\b|\s+|~")
_IDLE = re.compile(r"\\(left|right|displaystyle|bigl?|bigr|,)(?![A-Za-z])")
_UNIT = re.compile(r"\\(?:text|mbox|mathrm)\{\s*[A-Za-z ./^0-9]*\}\s*$|\^\{?\\circ\}?$|\\?%$|\\?\$")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is none
# An operation between two numbers that is left to the reader, but a fraction.
_UNFINISHED = re.compile(r"[0-9)}]\s*(?:[-+*^!×÷]|\\(?:cdot|times|div)\b)|\\(?:sum|prod|binom)\b")


class Boxed(Grader):
    """An answer is what the last box has in it, a step is a line, a trace all lines."""

    step_delimiter: ClassVar[str] = "\n"
    answer_form: ClassVar[str] = "what stands in the last \\boxed{…}"
    instruction: ClassVar[str | None] = "Put the final answer in \\boxed{}."

    def answer(self, text: str) -> str | None:
        """The answer in the last box, in canonical form; None without a box that closes."""
        claims = self.claims(text)
        return claims[-1].answer if claims else None

    def read(self, text: str) -> str | None:
        """What would stand in a box, in canonical form; None if it is blank."""
        return canonical(text) or None

    def equal(self, answer: str | None, gold: str) -> bool:
        """Whether both are the same answer, see ``equal_each``."""
        return self.equal_each([answer], [gold])[0] is True

    def equal_each(
        self, answers: Sequence[str | None], golds: Sequence[str]
    ) -> Sequence[bool | None]:
        """Whether each answer is the gold answer beside it; None: it can't be decided in time.

        A calculation is no answer where the gold answer is a number: ``9+9`` isn't 18. A sign for
        percent counts for nothing, so ``10\\%`` is 10 and not 0.1, whichever version of the parser
        there is.
        """
        verdicts: list[bool | None] = [_by_form(a, g) for a, g in zip(answers, golds, strict=True)]
        asked = [
            (canonical(gold), canonical(answer))
            for answer, gold, verdict in zip(answers, golds, verdicts, strict=True)
            if answer is not None and verdict is None
        ]
        decided = iter(map(equivalent(asked).__getitem__, asked))
        return [next(decided) if verdict is None else verdict for verdict in verdicts]

    def claims(self, text: str) -> list[Claim]:
        """One claim for each box; one that doesn't close has no answer."""
        own = "\n".join(line for _, line in self.own_lines(text))  # a box may have several lines
        claims = []
        start = own.find(BOX)
        while start >= 0:
            end = _closing(own, start + len(BOX))
            inside = "" if end is None else own[start + len(BOX) : end]
            answer = canonical(inside) if len(inside) <= MOST_CHARACTERS else ""
            stop = len(own) if end is None else end + 1
            claims.append(Claim(start, stop, answer or None))
            start = own.find(BOX, stop)
        return claims

    def calculations(self, text: str) -> list[Calculation]:  # noqa: ARG002
        """It reads none."""
        return []

    def trace(self, text: str) -> tuple[str, ...]:
        """Its lines: see ``Grader.line_trace``."""
        return self.line_trace(text)

    def step_ends(self, text: str) -> list[int]:
        """The offset just after each step: see ``Grader.line_ends``."""
        return self.line_ends(text)


def canonical(text: str) -> str:
    """An answer as it is compared and voted on.

    It is a number's canonical form, or LaTeX without idle space, sizes, a unit or a percent sign.
    """
    text = _IDLE.sub("", text.strip())
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").rstrip(".").strip()
    shorter = _UNIT.sub("", text).strip() or text
    plain = shorter.replace("{,}", ",").replace("\\!", "").replace("\\ ", " ")
    return canonical_number(plain) or _SPACES.sub(" ", shorter).strip()


def _by_form(answer: str | None, gold: str) -> bool | None:
    """The verdict that needs no reading of LaTeX; None where that is needed."""
    if answer is None:
        return False
    one, other = canonical(answer), canonical(gold)
    if one.replace(" ", "") == other.replace(" ", ""):
        return True
    if canonical_number(other) is not None:
        if canonical_number(one) is not None:
            return False
        if _UNFINISHED.search(one.removeprefix("-")):
            return False
    return None


def _closing(text: str, start: int) -> int | None:
    """The place of the brace that closes one before ``start``; None if none does."""
    depth = 1
    for match in _BRACES.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return None
