"""What a grader says of a text. A dataset names the grader that reads its completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from reasonrl.config.base import undeclared


@dataclass(frozen=True, slots=True)
class Calculation:
    """One equation of a text, as it is written: its arithmetic may be wrong."""

    # An operation on two or more numbers, normalised: numbers in canonical form, ``* /`` for
    # ``× x ÷``, no space, currency, percent sign or enclosing parentheses.
    expression: str
    result: str  # what the expression is said to equal, in canonical form
    end: int = field(compare=False)  # the offset in the text just after the calculation


@dataclass(frozen=True, slots=True)
class Claim:
    """One place where a text gives an answer, or seems to."""

    start: int  # the offset of its first character
    end: int  # the offset just after it
    answer: str | None  # in canonical form; None where it names no answer that can be read


@dataclass(frozen=True)
class Grader:
    """The base of all graders.

    Every concrete subclass declares what ``DECLARATIONS`` names; a missing declaration raises
    TypeError when the subclass is defined. All methods are total (any text, no exception), and none
    reads further than the model's own next question (``own_lines``).
    """

    next_question: str  # how the line of the model's own next question begins; "": no line does

    step_delimiter: ClassVar[str]  # what ends a step of a completion as soon as it is sampled
    answer_form: ClassVar[str] = "what the dataset's grader reads"  # an answer is, for people
    # What a template may tell a model of that, where it has ``{instruction}``; None: nothing.
    instruction: ClassVar[str | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        missing = undeclared(cls, Grader, DECLARATIONS)
        if missing:
            raise TypeError(f"grader {cls.__name__} must declare {', '.join(missing)}")

    def answer(self, text: str) -> str | None:
        """The answer that the text gives; None if it can't be read.

        It is in canonical form: wrong answers that are written alike are one in a vote.
        """
        raise NotImplementedError

    def read(self, text: str) -> str | None:
        """The answer that a text consists of, in canonical form; None if it is none."""
        return text.strip() or None

    def equal(self, answer: str | None, gold: str) -> bool:
        """Whether both are the same answer. None equals nothing."""
        raise NotImplementedError

    def claims(self, text: str) -> list[Claim]:
        """Every place where the text gives an answer, in order."""
        raise NotImplementedError

    def calculations(self, text: str) -> list[Calculation]:
        """Every calculation of the text, in order; a grader that reads none gives []."""
        raise NotImplementedError

    def trace(self, text: str) -> tuple[str, ...]:
        """The trace of the text: two solutions with the same trace count as the same."""
        raise NotImplementedError

    def step_ends(self, text: str) -> list[int]:
        """The offset just after each step, ascending; a text without a step gives []."""
        raise NotImplementedError

    def equal_each(
        self, answers: Sequence[str | None], golds: Sequence[str]
    ) -> Sequence[bool | None]:
        """Whether each answer is the gold answer beside it; None: it can't be decided in time."""
        return [self.equal(a, g) for a, g in zip(answers, golds, strict=True)]

    def line_trace(self, text: str) -> tuple[str, ...]:
        """The text's lines, without space around them: solutions of other words are others."""
        return tuple(line.strip() for _, line in self.own_lines(text) if line.strip())

    def line_ends(self, text: str) -> list[int]:
        """The offset just after each step, where a step is a line.

        It is a line that isn't blank, with its newline and the blank lines after it; blank lines at
        the very beginning belong to the first. The last step ends where the text does, or where the
        model's own next question begins. A text without a step gives [].
        """
        starts: list[int] = []
        end = 0
        for offset, line in self.own_lines(text):
            end = min(offset + len(line) + 1, len(text))
            if line.strip():
                starts.append(offset)
        return [*starts[1:], end] if starts else []

    def own_lines(self, text: str) -> Iterator[tuple[int, str]]:
        """Offset and text, without its newline, of each line before the model's next question."""
        offset = 0
        for line in text.split("\n"):
            if self.next_question and line.lstrip().startswith(self.next_question):
                return
            yield offset, line
            offset += len(line) + 1


DECLARATIONS = (
    "step_delimiter",
    "answer",
    "equal",
    "claims",
    "calculations",
    "trace",
    "step_ends",
)
