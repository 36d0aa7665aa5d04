"""What counts as an answer: the declared verdict on every doubtful form, one row each."""

import json
import os
from fractions import Fraction
from pathlib import Path

import pytest

from reasonrl.grading.answers import (
    answers_equal,
    canonical_number,
    numerals,
    strip_annotations,
    value_of,
)
from reasonrl.grading.base import Calculation
from tests.helpers.grading import STRICT, intermediate_results

DATA = Path(os.environ.get("REASONRL_DATA", Path(__file__).parents[2].parent / "shared" / "data"))

SOLUTION = (
    "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\n"
    "She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer’s market.\n"
    "#### 18"
)
RAMBLE = "So that is what she makes on a day like any other. " * 7  # 357 characters

# (what it shows, completion, gold, extracted answer or None for unparsed, correct)
ANSWERS = [
    # The format.
    ("a whole solution", SOLUTION, "18", "18", True),
    ("the answer line alone", "#### 18", "18", "18", True),
    ("a wrong answer", "#### 19", "18", "19", False),
    ("no space after the marker", "####18", "18", "18", True),
    ("spaces around", "  ####   18  ", "18", "18", True),
    ("a carriage return", "so 18\r\n#### 18\r\n", "18", "18", True),
    ("prose is no answer", "The answer is 18.", "18", None, False),
    ("a boxed answer", "\\boxed{18}", "18", None, False),
    ("a bare number", "18", "18", None, False),
    ("a calculation without an answer", "9 * 2 = <<9*2=18>>18", "18", None, False),
    ("three hashes", "### 18", "18", None, False),
    ("five hashes", "##### 18", "18", None, False),
    ("the marker in mid-line", "So it is #### 18", "18", None, False),
    ("the number on the next line", "####\n18", "18", None, False),
    ("a marker with nothing", "####", "18", None, False),
    ("a marker with words", "#### eighteen", "18", None, False),
    ("markup", "#### **18**", "18", None, False),
    ("empty", "", "18", None, False),
    ("only white space", " \n\t\n ", "18", None, False),
    # Spellings of one number.
    ("a decimal integer", "#### 18.0", "18", "18", True),
    ("a final point", "#### 18.", "18", "18", True),
    ("a dollar sign", "#### $18", "18", "18", True),
    ("dollars and cents", "#### $18.00", "18", "18", True),
    ("a dollar sign and a space", "#### $ 18", "18", "18", True),
    ("another currency", "#### €18", "18", "18", True),
    ("thousands", "#### 1,800", "1800", "1800", True),
    ("millions", "#### $1,800,000.00", "1800000", "1800000", True),
    ("leading zeros", "#### 018", "18", "18", True),
    ("a leading plus", "#### +18", "18", "18", True),
    ("a gold with commas", "#### 109200000", "109,200,000", "109200000", True),
    ("a gold stored as a float", "#### 51", "51.0", "51", True),
    ("that float itself", "#### 51.0", "51", "51", True),
    ("a neighbouring float", "#### 51.5", "51.0", "51.5", False),
    ("one cent off", "#### 18.01", "18", "18.01", False),
    ("negative", "#### -18", "-18", "-18", True),
    ("negative for positive", "#### -18", "18", "-18", False),
    ("negative money", "#### -$18", "-18", "-18", True),
    ("negative money, sign inside", "#### $-18", "-18", "-18", True),
    ("Unicode minus", "#### \u221218", "-18", "-18", True),
    ("en dash", "#### \u201318", "-18", None, False),
    ("two minus signs", "#### --18", "18", None, False),
    ("minus zero", "#### -0", "0", "0", True),
    ("minus zero point zero", "#### -0.00", "0", "0", True),
    ("a fraction", "#### 1/2", "0.5", "0.5", True),
    ("a negative fraction", "#### -1/3", "-1/3", "-1/3", True),
    ("no digit before the point", "#### .5", "1/2", "0.5", True),
    ("a repeating fraction is not its rounding", "#### 0.33", "1/3", "0.33", False),
    # Units.
    ("percent", "#### 18%", "18", "18", True),
    ("percent and a space", "#### 18 %", "18", "18", True),
    ("percent is not a hundredth", "#### 18%", "0.18", "18", False),
    ("a unit", "#### 18 dollars", "18", "18", True),
    ("a unit and a full stop", "#### 18 apples.", "18", "18", True),
    ("a unit without a space", "#### 18kg", "18", "18", True),
    ("two words", "#### 18 square feet", "18", None, False),
    ("a word before", "#### about 18", "18", None, False),
    ("a multiplier for 18", "#### 18 thousand", "18", None, False),
    ("a multiplier with a capital", "#### 18 Thousand", "18", None, False),
    ("a dozen is one too", "#### 2 dozen", "2", None, False),
    ("a multiplier for its product", "#### 18k", "18000", None, False),
    # Not one number.
    ("a time", "#### 18:30", "18", None, False),
    ("a range", "#### 18-19", "18", None, False),
    ("an exponent", "#### 1e3", "1000", None, False),
    ("a calculation left undone", "#### 36/2", "18", None, False),
    ("a product left undone", "#### 9*2", "18", None, False),
    ("an equation", "#### 9*2=18", "18", None, False),
    ("over one", "#### 18/1", "18", None, False),
    ("over zero", "#### 18/0", "18", None, False),
    ("a mixed number", "#### 1 1/2", "1.5", None, False),
    ("a comma out of place", "#### 1,80", "180", None, False),
    ("a decimal comma", "#### 18,0", "18", None, False),
    ("two points", "#### 1.8.0", "18", None, False),
    ("an underscore", "#### 1_8", "18", None, False),
    ("hexadecimal", "#### 0x12", "18", None, False),
    ("full-width digits", "#### １８", "18", None, False),
    ("Arabic-Indic digits", "#### ١٨", "18", None, False),
    ("a superscript", "#### 18²", "18", None, False),
    ("infinity", "#### inf", "18", None, False),
    ("not a number", "#### nan", "18", None, False),
    ("30 digits", "#### " + "9" * 30, "9" * 30, "9" * 30, True),
    ("31 digits", "#### " + "9" * 31, "9" * 31, None, False),
    ("100 kB of digits", "#### " + "1" * 100_000, "18", None, False),
    ("100 kB of digits in prose", "1" * 100_000 + "\n#### 18", "18", "18", True),
    # Hedges and shotguns: staking on two numbers wins neither.
    ("wrong, then right", "#### 19\n#### 18", "18", None, False),
    ("right, then wrong", "#### 18\n#### 19", "18", None, False),
    ("wrong and right on a line", "#### 19 … #### 18", "18", None, False),
    ("wrong in mid-line, then right", "Is it #### 19? No:\n#### 18", "18", None, False),
    ("unreadable, then right", "#### 18 or 19\n#### 18", "18", None, False),
    ("right, then an empty marker", "#### 18\n####", "18", None, False),
    ("twice the same", "#### 18\n#### 18", "18", "18", True),
    ("twice the same, spelt differently", "#### $18.00\nIndeed.\n#### 18", "18", "18", True),
    ("two numbers", "#### 18 19", "18", None, False),
    ("or", "#### 18 or 19", "18", None, False),
    ("or, in words", "#### 18 or nineteen", "18", None, False),
    ("a list", "#### 17, 18, 19", "18", None, False),
    ("a list without spaces", "#### 17,18,19", "18", None, False),
    ("a shotgun of answers", "\n".join(f"#### {n}" for n in range(100)), "18", None, False),
    ("a shotgun in prose", " ".join(map(str, range(100))), "18", None, False),
    ("a shotgun, then an answer", " ".join(map(str, range(100))) + "\n#### 7", "18", "7", False),
    # What follows the answer.
    ("right, then 357 characters", f"#### 18\n{RAMBLE}", "18", "18", True),
    ("right, then other numbers", "#### 18\nOr 19, or 20 = 4 * 5.", "18", "18", True),
    ("the ramble on the same line", f"#### 18 {RAMBLE}", "18", None, False),
    ("a next question", "#### 18\nQ: How many are 3 and 4?\nA: 7", "18", "18", True),
    ("a next answer", "#### 18\nQ: How many are 3 and 4?\nA: 3 + 4 = 7\n#### 7", "18", "18", True),
    ("a next question on the same line", "#### 18 Q: How many are 3 and 4? 7", "18", None, False),
    ("wrong, then right to one's own question", "#### 19\nQ: 9 * 2?\n#### 18", "18", "19", False),
    ("right only to one's own question", "Q: What is 9 * 2?\n#### 18", "18", None, False),
    ("a question within the reasoning", "So, Q: how many?\n#### 18", "18", "18", True),
]


@pytest.mark.parametrize(
    ("text", "gold", "extracted", "correct"),
    [pytest.param(*row, id=name) for name, *row in ANSWERS],
)
def test_the_declared_verdict(text, gold, extracted, correct):
    assert STRICT.answer(text) == extracted
    assert answers_equal(STRICT.answer(text), gold) is correct


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("18", "18"),
        ("1,800", "1800"),
        ("18.50", "18.5"),
        ("0.05", "0.05"),
        ("-0.125", "-0.125"),
        ("3/8", "0.375"),
        ("1/3", "1/3"),
        ("-22/7", "-22/7"),
        ("1/1024", "0.0009765625"),  # 2**-10
        ("100000000000000000000000000000", "100000000000000000000000000000"),
        ("1,80", None),
        ("", None),
        ("-", None),
        ("$", None),
        (".", None),
        ("%", None),
    ],
)
def test_the_canonical_form(text, canonical):
    assert canonical_number(text) == canonical


def test_an_unparsed_answer_equals_nothing():
    assert not answers_equal(None, "18")
    assert not answers_equal(None, "None")
    assert not answers_equal("eighteen", "eighteen")


# (what it shows, line, trace)
TRACES = [
    ("an annotation", "48/2 = <<48/2=24>>24", ("48/2=24",)),
    ("plain", "48/2=24", ("48/2=24",)),
    ("plain with spaces and prose", "He sold 48 / 2 = 24 clips.", ("48/2=24",)),
    ("money", "That is $9 * 2 = $18.", ("9*2=18",)),
    ("money annotated", "That is $9 * 2 = $<<9*2=18>>18.", ("9*2=18",)),
    ("percent", "40% + 20% = 60%", ("40+20=60",)),
    ("commas", "1,000 + 500 = 1,500", ("1000+500=1500",)),
    ("decimal integers", "18.0 - 3.50 = 14.50", ("18-3.5=14.5",)),
    ("parentheses around all", "( 76.0 - 25.0 ) = 51", ("76-25=51",)),
    ("parentheses within", "2 * (3 + 4) = 14", ("2*(3+4)=14",)),
    ("parentheses that touch", "(1/2)(20) = 10", ("(1/2)(20)=10",)),
    ("a product by juxtaposition", "Shells:80(.95)=76", ("80(0.95)=76",)),
    ("an equation in parentheses", "so much (that is 3 + 4 = 7)", ("3+4=7",)),
    ("x for times", "0.2 x 50 = 10", ("0.2*50=10",)),
    ("a word with x", "5 + 3 = 8 xylophones", ("5+3=8",)),
    ("a sentence in parentheses", "(3 + 4 = 7)", ("3+4=7",)),
    ("× and ÷", "3×4=12 and 12 ÷ 2 = 6", ("3*4=12", "12/2=6")),
    ("Unicode minus and en dash", "9 \u2212 2 = 7, 7 – 9 = \u22122", ("9-2=7", "7-9=-2")),
    ("a chain", "2 * 3 + 1 = 6 + 1 = 7", ("6+1=7",)),
    ("an equality repeated", "2 * 3 = 6 = 6", ("2*3=6",)),
    ("two sentences", "3 + 4 = 7. 7 * 2 = 14.", ("3+4=7", "7*2=14")),
    ("wrong arithmetic stays as written", "<<3+4=8>>8", ("3+4=8",)),
    ("a result in lowest terms", "<<3*1/4=3/4>>3/4", ("3*1/4=0.75",)),
    ("two annotations", "<<3+4=7>>7 and <<7*2=14>>14", ("3+4=7", "7*2=14")),
    ("an annotation that copies", "700 - 3 - 10 = <<687=687>>687 feet", ("700-3-10=687",)),
    ("an annotation cut short", "48/2 = <<48/2=24", ("48/2=24",)),
    ("only a copy", "<<24=24>>24", ()),
    ("no result", "48/2 = ", ()),
    ("no operator", "x = 24", ()),
    ("algebra", "2x + 3 = 7 so 2x = 4", ()),
    ("a mixed number", "2 - 1/2 = 1 1/2", ()),
    ("units", "48 eggs / 2 = 24", ()),
    ("an operator too many", "3 + * 4 = 7", ()),
    ("prose", "The answer is 18.", ()),
    ("the answer line", "#### 18", ()),
    ("the model's own next question", "3+4=7\nQ: more?\n7*2=14", ("3+4=7",)),
    ("empty", "", ()),
]


@pytest.mark.parametrize(("text", "trace"), [pytest.param(*r, id=name) for name, *r in TRACES])
def test_the_trace_of(text, trace):
    assert STRICT.trace(text) == trace


def test_a_solution_read_three_ways():
    assert STRICT.calculations(SOLUTION) == [
        Calculation("16-3-4", "9", end=38),
        Calculation("9*2", "18", end=84),
    ]
    assert intermediate_results(SOLUTION) == ["9", "18"]
    assert strip_annotations(SOLUTION) == (
        "Janet sells 16 - 3 - 4 = 9 duck eggs a day.\n"
        "She makes 9 * 2 = $18 every day at the farmer’s market.\n"
        "#### 18"
    )


# (what it shows, text, the text up to the end of each calculation)
ENDS = [
    ("an annotation", "48/2 = <<48/2=24>>24 clips", ["48/2 = <<48/2=24>>"]),
    ("plain", "48/2=24 clips", ["48/2=24"]),
    ("spaces", "  48 \t /  2  =   24   clips", ["  48 \t /  2  =   24"]),
    ("no-break spaces", "48\u00a0/\u00a02\u00a0= 24\u2003", ["48\u00a0/\u00a02\u00a0= 24"]),
    ("percent and currency", "20% + 4% = $24%, or", ["20% + 4% = $24"]),
    ("commas and decimals", "2,000 + 0.50 = 2,000.50.", ["2,000 + 0.50 = 2,000.50"]),
    ("in parentheses", "so (3 + 4 = 7) left", ["so (3 + 4 = 7"]),
    ("a result in parentheses", "3 + 4 = (7) left", ["3 + 4 = (7"]),
    ("a chain", "2 * 3 + 1 = 6 + 1 = 7.", ["2 * 3 + 1 = 6 + 1 = 7"]),
    ("an equality repeated", "2*3=6=6", ["2*3=6"]),
    ("two on a line", "3+4=7. 7*2=14.", ["3+4=7", "3+4=7. 7*2=14"]),
    ("two in an annotation", "<<3+4=7, 7*2=14>>", ["<<3+4=7, 7*2=14>>"] * 2),
    ("an annotation that copies", "7 - 3 = <<4=4>>4 feet", ["7 - 3 = <<4=4>>4"]),
    ("one that parts two numbers", "3 + 4 = 7<<4=4>>1", []),
    ("an annotation on the second line", "so\n<<3+4=7>>7", ["so\n<<3+4=7>>"]),
    ("times and spaces", "2  x  3 = 6", ["2  x  3 = 6"]),
    ("times", "2 x 3 = 6 and 3×4=12", ["2 x 3 = 6", "2 x 3 = 6 and 3×4=12"]),
    (
        "other lines",
        "\r\nwell,\n\n 3+4=7\r\n7*2=14",
        ["\r\nwell,\n\n 3+4=7", "\r\nwell,\n\n 3+4=7\r\n7*2=14"],
    ),
    ("characters of four bytes", "😀 3+4=7 😀", ["😀 3+4=7"]),
]


@pytest.mark.parametrize(("text", "parts"), [pytest.param(*r, id=name) for name, *r in ENDS])
def test_where_a_calculation_ends(text, parts):
    assert [text[: calculation.end] for calculation in STRICT.calculations(text)] == parts


def test_where_it_stands_does_not_tell_two_calculations_apart():
    assert Calculation("3+4", "7", end=5) == Calculation("3+4", "7", end=11)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("48/2", Fraction(24)),
        ("16-3-4", Fraction(9)),  # from the left: (16 - 3) - 4
        ("24/2/3", Fraction(4)),
        ("2+3*4", Fraction(14)),
        ("2*(3+4)", Fraction(14)),
        ("10/3", Fraction(10, 3)),
        ("0.1+0.2", Fraction(3, 10)),  # not 0.30000000000000004
        ("-5+3", Fraction(-2)),
        ("3--5", Fraction(8)),
        ("-(3+4)*2", Fraction(-14)),
        ("80(0.95)", Fraction(76)),
        ("(1/2)(20)", Fraction(10)),
        ("1/2(20)", Fraction(10)),
        ("9" * 30 + "+1", Fraction(10**30)),
        ("+".join(["1"] * 100), Fraction(100)),  # 199 characters
        ("+".join(["1"] * 101), None),  # 201
        ("1/0", None),
        ("1/(2-2)", None),
        ("(1+2", None),
        ("1+2)", None),
        ("(" * 190 + "1+2", None),
        ("-" * 190 + "1+2", Fraction(3)),
        ("", None),
    ],
)
def test_the_value_of_an_expression(expression, value):
    assert value_of(expression) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("40(0.1)-5", ["40", "0.1", "5"]),
        ("Of 1,200 clips 50% cost $0.50 each.", ["1200", "50", "0.5"]),
        ("1/2 of 18.0, or -3?", ["1", "2", "18", "3"]),
        ("9" * 31 + " and 7", ["7"]),
        ("twelve", []),
    ],
)
def test_the_numerals_of(text, expected):
    assert numerals(text) == expected


def test_own_lines():
    assert list(STRICT.own_lines("\n 3+4=7\r\n\n Q: x\n7")) == [(0, ""), (1, " 3+4=7\r"), (9, "")]
    assert list(STRICT.own_lines("one\n")) == [(0, "one"), (4, "")]
    assert list(STRICT.own_lines("")) == [(0, "")]
    assert list(STRICT.own_lines("Q:")) == []


def test_different_solutions_to_one_problem_differ():
    one_sum, two_steps = "16 - 7 = 9", "16 - 3 = 13\n13 - 4 = 9"
    assert STRICT.trace(one_sum) != STRICT.trace(two_steps)
    assert STRICT.trace("3 + 4 = 7") != STRICT.trace("3 + 4 = 8")


# Measured. The rest: algebra, answers restated with other units, sums with units in the text.
@pytest.mark.parametrize(
    ("split", "size", "last_result_is_answer", "same_trace_without_annotations"),
    [("train", 7473, 7183, 5467), ("test", 1319, 1267, 966)],
)
def test_the_reference_solutions_of_gsm8k(
    split, size, last_result_is_answer, same_trace_without_annotations
):
    path = DATA / "gsm8k" / f"{split}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is absent: set REASONRL_DATA to a folder that holds gsm8k/")
    solutions = [json.loads(line)["answer"] for line in path.read_text("utf-8").splitlines()]
    golds = [str(int(s.rpartition("####")[2].replace(",", ""))) for s in solutions]
    assert len(solutions) == size
    assert [STRICT.answer(s) for s in solutions] == golds
    assert (
        sum(intermediate_results(s)[-1:] == [g] for s, g in zip(solutions, golds, strict=True))
        == last_result_is_answer
    )
    assert (
        sum(STRICT.trace(s) == STRICT.trace(strip_annotations(s)) for s in solutions)
        == same_trace_without_annotations
    )


def test_the_answers_of_svamp_are_integers_stored_as_floats():
    path = DATA / "svamp" / "SVAMP.json"
    if not path.exists():
        pytest.skip(f"{path} is absent: set REASONRL_DATA to a folder that holds svamp/")
    golds = [problem["Answer"] for problem in json.loads(path.read_text("utf-8"))]
    assert len(golds) == 1000
    assert all(answers_equal(STRICT.answer(f"#### {int(g)}"), str(g)) for g in golds)
