"""Reading numbers and calculations: the only place where text becomes a number.

Every function is total (any text, no exception) and takes time linear in the text. What cannot be
read is None. The verdict on each doubtful form is a row of ``tests/golden/test_answers.py``.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

from reasonrl.grading.base import Calculation

# A digit is [0-9], not \d, for Python's \d and int() also take other scripts' digits. The bounds
# keep canonical forms short, and closed under canonical_number: a denominator of 9 digits divides
# 10**30 if it divides a power of ten at all.
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

    The canonical form is an integer, else the shortest exact decimal, else p/q in lowest terms. So
    ``1,800``, ``$1800`` and ``1800.0`` are ``"1800"``; ``-0`` is ``"0"``; ``1/2``, ``.50`` are
    ``"0.5"``.

    The function ignores surrounding space, a leading ``+``, a currency sign (``$ € £``) before the
    number, and after it one ``%`` or one word, with or without a full stop (``18 dollars.``). Two
    words are refused, for they may hedge (``18 or nineteen``), and so is a multiplier (``18
    thousand``). The minus sign may be Unicode's (U+2212), the digits may not.

    These are refused too: exponents (``1e3``), times (``18:30``), mixed numbers (``1 1/2``), commas
    that do not group by three (``1,80``), fractions not in lowest terms (``36/2`` is a calculation
    left undone) and more than 30 digits on one side of the point.
    """
    if len(text) <= 30 and text.isascii() and text.isdigit():  # nearly all, and ten times as fast
        return str(int(text))
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


def answers_equal(answer: str | None, gold: str) -> bool:
    """Whether both are the same number. An unparsed answer (None) equals nothing."""
    if answer is None:
        return False
    value = canonical_number(answer)
    return value is not None and value == canonical_number(gold)


_ANNOTATION = re.compile(r"<<([^<>\n]*)>>")
# Each character is replaced by one, so that offsets stay true.
_SIGNS = str.maketrans({"−": "-", "–": "-", "×": "*", "÷": "/"} | dict.fromkeys("$€£%", " "))
_SPACE = re.compile(r"\s")
_TIMES = re.compile(r"(?<=[0-9) ])[xX](?= *[0-9.(])")  # 2 x 3, not 2x = 6 or 2 xylophones
_NUMERAL = re.compile(r"[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+")
_ARITHMETIC = re.compile(rf"(?:{_NUMERAL.pattern}|[-+*/=() ])+")
_SPACED_OPERATOR = re.compile(r" ?([-+*/()]) ?")
_ENCLOSED = re.compile(r"^\(([^()]*)\)$")
# Numbers are joined by operators, or by juxtaposition with a parenthesis: 40(0.1). Repetition is
# possessive (*+, ++), so that no input makes it backtrack.
_DECIMAL = r"[0-9]++(?:\.[0-9]++)?+"
_EXPRESSION = re.compile(
    rf"[-(]*+{_DECIMAL}(?:\)*+(?:[-+*/]|(?<=\))|(?=\())[-(]*+{_DECIMAL})++\)*+"
)


def line_calculations(line: str, offset: int) -> list[Calculation]:
    """Every calculation of a line that begins at ``offset``, in order.

    A line whose calculator annotations (``<<48/2=24>>``) calculate something is read from these
    alone, any other is read from its plain equations (``48 / 2 = $24``), so that both spellings
    give the same. A chain ``a + b = c = d`` gives ``a + b = c``. A copy (``<<24=24>>``), algebra
    (``2x = 6``) and plain operands with units (``48 eggs / 2 = 24``) are not calculations. A
    calculation ends after the ``>>`` of its annotation, or after the last digit of its result.
    """
    annotated = [
        replace(calculation, end=offset + match.end())
        for match in _ANNOTATION.finditer(line)
        for calculation in _equations(match[1], 0)
    ]
    return annotated or list(_equations(_ANNOTATION.sub(_blank, line), offset))


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])


def _equations(text: str, offset: int) -> Iterator[Calculation]:
    """The equations of a line, or of a part of one, that begins at ``offset``."""
    spaced = _SPACE.sub(" ", text.translate(_SIGNS))
    stripped = spaced.lstrip()
    offset += len(spaced) - len(stripped)
    for run in _ARITHMETIC.finditer(_TIMES.sub("*", stripped)):
        if "=" not in run[0]:
            continue  # nearly all: every space between two words is a run
        sides = run[0].split("=")
        start = offset + run.start() + len(sides[0]) + 1  # of the right side
        for (left, _), (right, written) in pairwise((_normalised(side), side) for side in sides):
            opened_in_prose = left.count("(") - left.count(")")  # (3 + 4 = 7)
            expression = _ENCLOSED.sub(r"\1", left.removeprefix("(" * opened_in_prose))
            result = canonical_number(right.strip("()"))
            if result is not None and _EXPRESSION.fullmatch(expression):
                yield Calculation(expression, result, start + len(written.rstrip("() ")))
            start += len(written) + 1


def _normalised(side: str) -> str:
    """A side of an equation, normalised; a space left in it parts two numbers (1 1/2)."""
    side = _NUMERAL.sub(lambda match: canonical_number(match[0]) or "?", side)
    return _SPACED_OPERATOR.sub(r"\1", " ".join(side.split())).strip()


def numerals(text: str) -> list[str]:
    """The numbers written in digits, in canonical form and without their signs, in order.

    In an expression these are its operands. A fraction counts as two numbers; a number with more
    than 30 digits on one side of the point doesn't count.
    """
    numbers = map(canonical_number, _NUMERAL.findall(text))
    return [number for number in numbers if number is not None]


OPERATORS = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
}
_LONGEST_EXPRESSION = 200  # characters: neither deep recursion nor long arithmetic


def value_of(expression: str) -> Fraction | None:
    """What a calculation's ``expression`` equals, exactly; None where it has no value.

    It has none where it divides by zero, where its parentheses don't match, or where it is longer
    than 200 characters. A product by juxtaposition is a product like others: ``1/2(20)`` is 10.
    """
    if len(expression) > _LONGEST_EXPRESSION:
        return None
    # Every number becomes a fraction in parentheses, for Python would read 0.1 as a float.
    exact = _NUMERAL.sub(lambda match: f"({Fraction(match[0])})", expression)
    try:
        return _value(ast.parse(exact.replace(")(", ")*("), mode="eval").body)
    except (SyntaxError, ZeroDivisionError):
        return None


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            _, function = OPERATORS[type(op)]
            return Fraction(function(_value(left), _value(right)))
    raise SyntaxError(f"{ast.unparse(node)} is no arithmetic")


def strip_annotations(text: str) -> str:
    """``text`` without calculator annotations: ``48/2 = <<48/2=24>>24`` becomes ``48/2 = 24``."""
    return _ANNOTATION.sub("", text)
