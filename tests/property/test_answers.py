"""What holds for any text: no exception, no reward by hedging, linear time."""

import time
from fractions import Fraction

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from reasonrl.grading.answers import answers_equal, canonical_number, strip_annotations, value_of
from tests.helpers.grading import STRICT, intermediate_results

deterministic = settings(derandomize=True, deadline=None, max_examples=200)

SOLUTIONS = [
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
    "Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.\n"
    "Working 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
    "Under 30: 40(.10)=4\n30-50 years old:40(.60)=24\nOver 50:40-4-24=12 Judges\n#### 12",
    "It costs $1,200 * 3 = $<<1200*3=3600>>3,600 in all.\n#### 3,600",
]
# Fragments from which the grammar's corner cases assemble themselves.
FRAGMENTS = st.sampled_from(
    [
        *"01=/*x().,-−$%×²１ \n\r\x00",
        "####",
        "<<",
        ">>",
        "Q:",
        "18",
        "19",
        "1,800",
        "1/2",
        "1e3",
        "or",
    ]
)
ANY_TEXT = st.text() | st.lists(FRAGMENTS, max_size=40).map("".join)
# Text around an answer line that claims nothing itself.
PROSE = st.text("abc 0123456789+-*/=.,<>\n").map(lambda text: f"so {text}")


@st.composite
def mutations(draw):
    """A reference solution, some spans of it replaced."""
    text = draw(st.sampled_from(SOLUTIONS))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = draw(st.integers(start, min(len(text), start + 10)))
        text = text[:start] + draw(FRAGMENTS | st.text(max_size=3)) + text[stop:]
    return text


@deterministic
@given(ANY_TEXT | mutations())
def test_no_text_raises_and_every_result_is_canonical(text):
    answer, number = STRICT.answer(text), canonical_number(text)
    for value in [answer, number, *intermediate_results(text)]:
        assert value is None or canonical_number(value) == value
    assert len(STRICT.trace(text)) == len(STRICT.calculations(text))
    for calculation in STRICT.calculations(text):
        assert text[: calculation.end].endswith((">>", *"0123456789"))
        assert isinstance(value_of(calculation.expression), Fraction | None)
    assert not strip_annotations(text).count("<<") > text.count("<<")
    assert answers_equal(answer, text) in (True, False)


@deterministic
@given(mutations())
def test_only_the_answer_line_scores(text):
    without = "\n".join(line for line in text.split("\n") if "####" not in line)
    assert STRICT.answer(without) is None
    assert STRICT.answer(without + "\n#### 41") in {"41", None}  # None: after a "Q:"


@deterministic
@given(ANY_TEXT | mutations())
def test_no_addition_turns_a_wrong_answer_right(text):
    wrong = STRICT.answer(text)
    assume(wrong not in {None, "18"})
    assert STRICT.answer(f"{text}\n#### 18") in {wrong, None}
    assert STRICT.answer(f"{text}\nQ: And now?\n#### 18") == wrong


@deterministic
@given(st.lists(st.integers(-99, 99), min_size=2, max_size=6), PROSE)
def test_answers_that_disagree_score_for_no_gold(numbers, prose):
    text = "\n".join(f"{prose}\n#### {number}" for number in numbers)
    expected = str(numbers[0]) if len(set(numbers)) == 1 else None
    assert STRICT.answer(text) == expected


@deterministic
@given(
    st.lists(st.integers(0, 99), min_size=2, max_size=6),
    st.sampled_from(
        [" ", ", ", " or ", " and ", ";", ":", "|", "=", "-", "+", "*", "\t", " #### "]
    ),
)
def test_a_list_of_numbers_is_no_answer(numbers, separator):
    assert STRICT.answer("#### " + separator.join(map(str, numbers))) is None


@deterministic
@given(st.integers(-(10**12), 10**12))
def test_the_spellings_of_an_integer_are_one(number):
    for spelling in [
        f"{number}",
        f"{number:,}",
        f"{number}.00",
        f" {number} dollars.",
        f"{number}%",
    ]:
        assert canonical_number(spelling) == str(number)
    assert canonical_number(f"{number}".replace("-", "−")) == str(number)


@deterministic
@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9 - 1))
@example(1, 2**29)  # the most decimal places there are: 29
@example(-1, 5**12)
@example(1, 3)
def test_a_fraction_keeps_its_value(numerator, denominator):
    value = Fraction(numerator, denominator)
    canonical = canonical_number(str(value))
    assert Fraction(canonical) == value
    terminates = 10**30 % value.denominator == 0
    assert ("/" not in canonical) == terminates


NUMBERS = st.integers(0, 10**6)
OPERATORS = st.sampled_from(["+", "-", "*", "/"])


@deterministic
@given(NUMBERS, OPERATORS, NUMBERS, NUMBERS)
def test_the_spellings_of_an_equation_share_a_trace(a, operator, b, c):
    written = {"*": "×", "/": "÷", "-": "−"}.get(operator, operator)
    spellings = [
        f"<<{a}{operator}{b}={c}>>",
        f"So {a} {operator} {b} = <<{a}{operator}{b}={c}>>{c} in all.",
        f"So {a}{operator}{b}={c} in all.",
        f"${a:,} {written} ${b:,} = ${c:,}.",
        f"  {a}.0  {written}  {b}.00  =  {c}.0 clips",
        f"( {a}.0 {operator} {b}.0 ) = {c}",
    ]
    assert {STRICT.trace(text) for text in spellings} == {(f"{a}{operator}{b}={c}",)}


@deterministic
@given(
    PROSE,
    NUMBERS,
    OPERATORS,
    NUMBERS,
    st.sampled_from(["{} {} {} = {}", "{}{}{}=${}", " ( {}{} {})={}"]),
)
def test_a_calculation_ends_with_its_result(prose, a, operator, b, form):
    text = f"{prose}.\nSo " + form.format(a, operator, b, 7)
    assert STRICT.calculations(text)[-1].end == len(text)
    annotated = f"{prose}.\nSo {a}{operator}{b} = <<{a}{operator}{b}=7>>"
    assert STRICT.calculations(annotated + "7 clips.")[-1].end == len(annotated)


@deterministic
@given(NUMBERS, OPERATORS, NUMBERS)
def test_the_value_of_an_operation(a, operator, b):
    if operator == "/" and b == 0:
        assert value_of(f"{a}/{b}") is None
        return
    expected = {"+": a + b, "-": a - b, "*": a * b, "/": Fraction(a, b or 1)}[operator]
    assert value_of(f"{a}{operator}{b}") == expected
    assert value_of(f"-({a}{operator}{b})") == -expected


@deterministic
@given(
    st.tuples(NUMBERS, OPERATORS, NUMBERS, NUMBERS), st.tuples(NUMBERS, OPERATORS, NUMBERS, NUMBERS)
)
def test_different_equations_differ(one, other):
    assume(one != other)
    traces = [STRICT.trace(f"{a} {op} {b} = {c}") for a, op, b, c in (one, other)]
    assert traces[0] != traces[1]


SINGLE = [*"1( )<>-.#x$²\n\x00"]
REPEATED = [
    "1+",
    "1x",
    "=1",
    "1/",
    ".1",
    "1(1)",
    "((1)",
    "(1+",
    "1,111",
    "1+1=",
    "<<1",
    "<<1+1=2>>",
]
SPACED = ["1 ", " x", "2 x ", "1\t+\t", "\u00a0", "1+1=1 ", "#### ", "#### 18\n", "<<1=1>>"]


def seconds_to_read(pattern: str) -> float:
    """Of a completion of 100 kB."""
    text = pattern * (100_000 // len(pattern))
    start = time.process_time()
    for line in (text, f"#### {text}", f"#### 18 {text}"):
        STRICT.answer(line)
    canonical_number(text)
    STRICT.trace(text)
    value_of(text)
    strip_annotations(text)
    return time.process_time() - start


def test_long_completions_take_linear_time():
    """Quadratic time would be 10**10 steps, minutes; linear takes at most half a second."""
    assert [p for p in (*SINGLE, *REPEATED, *SPACED) if seconds_to_read(p) >= 5] == []
