"""Reading answers and calculations out of a completion: the only place where text becomes a number.

A completion answers in GSM8K's format::

    She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.
    She makes 9 * 2 = $<<9*2=18>>18.
    #### 18

Every function is total (any text, no exception) and takes time linear in the text. What cannot be
read is None, "unparsed", and scores 0. The verdict on each doubtful form is a row of
``tests/golden/test_answers.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, takewhile

# [0-9], not \d: Python's \d and int() also take other scripts' digits. The bounds keep canonical
# forms short, and closed under canonical_number: a denominator of 9 digits divides 10**30 if it
# divides a power of ten at all.
_NUMBER = re.compile(
    r"""
    (?P<sign> [-+]?[$€£]? | [$€£][-+] ) \s*
    (?: (?P<fraction> [0-9]{1,30} / [0-9]{1,9} )
      | (?P<decimal> (?: [0-9]{1,3} (?:,[0-9]{3}){1,9} | [0-9]{1,30} ) (?: \.[0-9]{0,30} )?
                   | \.[0-9]{1,30} ) )
    (?: \s* (?P<unit> % | [A-Za-z]+ ) \.? )?
    """,
    re.VERBOSE,
)
_MULTIPLIERS = {"hundred", "thousand", "million", "billion", "trillion", "dozen", "k"}


def canonical_number(text: str) -> str | None:
    """The canonical form of the one number that ``text`` consists of, or None if it is not one.

    Canonical: an integer, else the shortest exact decimal, else p/q in lowest terms. So ``1,800``,
    ``$1800`` and ``1800.0`` are ``"1800"``; ``-0`` is ``"0"``; ``1/2``, ``.50`` are ``"0.5"``.

    Ignored: surrounding space, a leading ``+``, a currency sign (``$ € £``) before the number, and
    after it one ``%`` or one word, with or without a full stop (``18 dollars.``). Two words are
    refused, for they may hedge (``18 or nineteen``), and so is a multiplier (``18 thousand``).
    The minus sign may be Unicode's (U+2212), the digits may not.

    Also None: exponents (``1e3``), times (``18:30``), mixed numbers (``1 1/2``), commas that do not
    group by three (``1,80``), fractions not in lowest terms (``36/2`` is a calculation left undone)
    and more than 30 digits on one side of the point.
    """
    match = _NUMBER.fullmatch(text.strip().replace("−", "-"))
    if match is None or (match["unit"] or "").lower().removesuffix("s") in _MULTIPLIERS:
        return None
    if match["fraction"]:
        numerator, denominator = map(int, match["fraction"].split("/"))
        if denominator < 2 or Fraction(numerator, denominator).denominator != denominator:
            return None
        value = Fraction(numerator, denominator)
    else:
        value = Fraction(match["decimal"].replace(",", ""))
    return _canonical(-value if "-" in match["sign"] else value)


def _canonical(value: Fraction) -> str:
    places = value.denominator.bit_length()  # enough: 2**a * 5**b divides 10**max(a, b)
    if value.denominator == 1 or 10**places % value.denominator:
        return str(value)
    scaled = abs(value) * 10**places
    digits = str(scaled.numerator).zfill(places + 1)
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}".rstrip("0")


def extract_answer(text: str) -> str | None:
    """The answer a completion gives, in canonical form, or None: unparsed.

    An answer is a line of ``####`` and one number (see ``canonical_number``); prose does not count
    (``The answer is 18.``). Every ``####`` in the completion is held to it: if one does not open
    its line, is not followed by exactly one number, or names another number than the rest, the
    completion hedges and has no answer. Other text around the answer line is ignored, and so is
    everything from a line that begins with ``Q:`` on, where the model has gone on to a question of
    its own. Hence a completion stakes its score on one number, whatever else it lists.
    """
    claims: set[str | None] = set()
    for line in _own_lines(text):
        before, marker, after = line.partition("####")
        if marker:
            claims.add(None if before else canonical_number(after))
    return claims.pop() if len(claims) == 1 else None


def answers_equal(answer: str | None, gold: str) -> bool:
    """Whether both are the same number. An unparsed answer (None) equals nothing."""
    if answer is None:
        return False
    value = canonical_number(answer)
    return value is not None and value == canonical_number(gold)


def _own_lines(text: str) -> Iterator[str]:
    """The stripped lines before the first that begins with ``Q:``."""
    lines = (line.strip() for line in text.split("\n"))
    return takewhile(lambda line: not line.startswith("Q:"), lines)


@dataclass(frozen=True, slots=True)
class Calculation:
    """One equation of a completion, as written: its arithmetic may be wrong.

    expression: an operation on two or more numbers, normalised: numbers in canonical form, ``* /``
        for ``× x ÷``, no space, currency, percent sign or enclosing parentheses.
    result: what it is said to equal, in canonical form.
    """

    expression: str
    result: str


_ANNOTATION = re.compile(r"<<([^<>\n]*)>>")
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "÷": "/"} | dict.fromkeys("$€£%", " "))
_TIMES = re.compile(r"(?<=[0-9) ])[xX](?= ?[0-9.(])")  # 2 x 3, not 2x = 6 or 2 xylophones
_NUMERAL = re.compile(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+")
_ARITHMETIC = re.compile(rf"(?:{_NUMERAL.pattern}|[-+*/=() ])+")
_SPACED_OPERATOR = re.compile(r" ?([-+*/=()]) ?")
_ENCLOSED = re.compile(r"^\(([^()]*)\)$")
# Numbers joined by operators, or by juxtaposition with a parenthesis: 40(0.1). Possessive
# repetition (*+, ++), so that no input makes it backtrack.
_DECIMAL = r"[0-9]++(?:\.[0-9]++)?+"
_EXPRESSION = re.compile(
    rf"[-(]*+{_DECIMAL}(?:\)*+(?:[-+*/]|(?<=\))|(?=\())[-(]*+{_DECIMAL})++\)*+"
)


def calculations(text: str) -> list[Calculation]:
    """Every calculation of a completion, in order, up to a line that begins with ``Q:``.

    A line whose calculator annotations (``<<48/2=24>>``) calculate something is read from these
    alone, any other from its plain equations (``48 / 2 = $24``), so that both spellings give the
    same. A chain ``a + b = c = d`` gives ``a + b = c``. A copy (``<<24=24>>``), algebra
    (``2x = 6``) and plain operands with units (``48 eggs / 2 = 24``) are not calculations.
    """
    found: list[Calculation] = []
    for line in _own_lines(text):
        annotated = [c for source in _ANNOTATION.findall(line) for c in _equations(source)]
        found.extend(annotated or _equations(strip_annotations(line)))
    return found


def _equations(text: str) -> Iterator[Calculation]:
    text = _TIMES.sub("*", " ".join(text.translate(_SIGNS).split()))
    for run in _ARITHMETIC.findall(text):
        run = _NUMERAL.sub(lambda match: canonical_number(match[0]) or "?", run)
        # A space that is left parts two numbers (1 1/2): neither side may hold one.
        sides = [side.strip() for side in _SPACED_OPERATOR.sub(r"\1", run).split("=")]
        for left, right in pairwise(sides):
            opened_in_prose = left.count("(") - left.count(")")  # (3 + 4 = 7)
            expression = _ENCLOSED.sub(r"\1", left.removeprefix("(" * opened_in_prose))
            result = canonical_number(right.strip("()"))
            if result is not None and _EXPRESSION.fullmatch(expression):
                yield Calculation(expression, result)


def intermediate_results(text: str) -> list[str]:
    """The results of ``calculations(text)``, in order."""
    return [calculation.result for calculation in calculations(text)]


def solution_trace(text: str) -> tuple[str, ...]:
    """The sequence of arithmetic operations, each as ``expression=result``; empty if there is none.

    Two solutions count as identical if they share it: the paper's measure of diversity, and the
    key by which Expert Iteration de-duplicates. Wording, spacing, commas, ``18.0`` for ``18`` and
    annotations make no difference; the order of operands does.
    """
    return tuple(f"{c.expression}={c.result}" for c in calculations(text))


def strip_annotations(text: str) -> str:
    """``text`` without calculator annotations: ``48/2 = <<48/2=24>>24`` becomes ``48/2 = 24``."""
    return _ANNOTATION.sub("", text)
