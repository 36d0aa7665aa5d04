r"""What counts as an answer in a \boxed{…}, or beside ####: the verdict on each doubtful form."""

from __future__ import annotations

import time

import pytest

from reasonrl.grading import equivalence
from reasonrl.grading.boxed import Boxed, canonical
from reasonrl.grading.choice import Choice
from reasonrl.grading.equivalence import equivalent, is_costly
from reasonrl.grading.exact import Exact

BOXED, EXACT, CHOICE = Boxed("Q:"), Exact("Q:"), Choice("Q:")

# (completion, the answer that is read from it)
READ = [
    (r"So it is \boxed{18}.", "18"),
    (r"\boxed{1} or rather \boxed{18}", "18"),  # the last one counts
    (r"\boxed{18}" + "\n\n" + r"\boxed{7}", "7"),
    (r"\boxed{18", None),
    ("18", None),
    ("#### 18", None),
    (r"\boxed{}", None),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),  # an escaped brace closes nothing
    ("\\boxed{1,\n 800}", "1, 800"),
    (r"\boxed{1,800}", "1800"),
    (r"\boxed{1{,}800}", "1800"),
    (r"\boxed{\$18.00}", "18"),
    (r"\boxed{18\text{ dollars}}", "18"),
    (r"\boxed{90^\circ}", "90"),
    (r"\boxed{10\%}", "10"),
    (r"\boxed{\dfrac12}", r"\frac12"),
    (r"\boxed{\left(1,\, 2\right)}", "(1, 2)"),
    ("\\boxed{5}\nQ: next?\nA: \\boxed{6}", "5"),  # the model's own next question
    (r"\boxed{" + "9" * 401 + "}", None),
]


@pytest.mark.parametrize(("text", "answer"), READ)
def test_what_is_read(text: str, answer: str | None) -> None:
    assert BOXED.answer(text) == answer


SQUARE = "x^2 + 2x + 1"
# (gold, answer, whether they are the same)
EQUAL = [
    ("18", "18", True),
    ("18", "18.0", True),
    ("18", "19", False),
    ("18", None, False),
    ("18", "9+9", False),  # a calculation that is left to the reader
    ("18", "6^2/2", False),
    ("18", r"3 \cdot 6", False),
    ("-18", "-18", True),
    ("18", "x=18", True),
    ("18", "18:30", False),
    ("1800", "1,800", True),
    ("1000", "1e3", False),
    ("10", r"10\%", True),
    ("0.1", r"10\%", False),
    (r"10\%", r"10\%", True),
    (r"\frac{1}{3}", "1/3", True),
    (r"\frac{1}{3}", r"\frac13", True),
    (r"\frac{1}{3}", r"\dfrac{2}{6}", True),
    (r"\frac{1}{3}", "0.33", False),
    (r"-\frac{1}{2}", "-0.5", True),
    (r"1\frac12", "1.5", True),
    (r"\sqrt{2}", "2^{1/2}", True),
    ("x^2+2x+1", "(x+1)^2", True),
    ("x^2+2x+1", "(x-1)^2", False),
    ("[1,2]", "(1,2)", False),
    ("(1,2)", r"\left( 1, 2 \right)", True),
    (r"\{1,2\}", r"\{2,1\}", True),
    (r"\text{B}", "B", True),
    ("5", "five", False),
    ("3", "2<3", False),
    ("18", "1 2 3 4 5 18", False),
    ("18", "18 or 19", False),
    ("18", "{" * 150 + "}" * 150, False),
]


@pytest.mark.parametrize(("gold", "answer", "same"), EQUAL)
def test_what_is_the_same(gold: str, answer: str | None, same: bool) -> None:
    assert BOXED.equal(answer, gold) == same


# Each is made unique by a number in it.
HOSTILE = [
    "9^{9^{9^{%d}}}", "%d^{10^{10}}", "x+%d^{-9^{9^9}}", "%d000!", "((%d)!)!", "2^{%d00000000}",
    "(x+%d)^{100000}", "(x+y+z+%d)^{60}", r"\sum_{k=1}^{10^9} k^{%d}", r"\prod_{k=1}^{%d000000} k",
    r"\int_0^{%d} e^{-x^2}\sin(x^3) dx", "(" * 190 + "%d" + ")" * 190, "{" * 190 + "%d" + "}" * 190,
    r"\sqrt{" * 55 + "%d" + "}" * 55, r"\frac{1}{" * 30 + "%d" + "}" * 30, r"\sin(" * 40 + "%d",
    r"\binom{%d000000000}{500000000}", r"\{" * 60 + "%d" + r"\}" * 60,
    "(0,%d)" + r"\cup (0,1)" * 30,
    r"\log_2(" * 25 + "%d" + ")" * 25, "%d" + "(" * 100_000, "%d" + "{}" * 50_000,
    "{" * 50_000 + "%d" + "}" * 50_000, "%d" + r"\frac{1}{" * 30_000,
]  # fmt: skip
HARMLESS = [
    "x+%d", "%dx^2", r"\frac{%d}{7}", "(x+%d)^2", r"%d\sqrt{2}", "2^{%d}", r"e^{x^{%d}}", "[%d,2]",
    "3^2+%d^2", r"2^3 \cdot 3^{%d}", r"\frac{(%dn)!}{(n+1)!}", "%d!", r"f(%d(g(x)))",
    r"\{1,%d\}", r"\binom{%d}{5}", r"x \in (0,%d) \cup (2,3)", r"\text{%d of them}",
]  # fmt: skip


@pytest.mark.parametrize("form", HOSTILE)
def test_what_is_beyond_comparison_is_not_tried(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "_pool", None)  # nor called
    answer = BOXED.answer(r"\boxed{%s}" % (form % 3))
    verdict = BOXED.equal_each([answer], [SQUARE])
    assert verdict == [None if answer else False]
    assert BOXED.equal(answer, SQUARE) is False


@pytest.mark.parametrize("form", HARMLESS)
def test_what_answers_look_like_is_tried(form: str) -> None:
    assert not is_costly(form % 12)


def graded(number: int) -> float:
    """Grades so many strings of all kinds; every one has a verdict. Returns the seconds it took."""
    kinds = [*HOSTILE, *HARMLESS[:4]]
    texts = [r"\boxed{%s}" % (kinds[i % len(kinds)] % (i + 10)) for i in range(number)]
    started = time.monotonic()
    answers = [BOXED.answer(text) for text in texts]
    verdicts = BOXED.equal_each(answers, [SQUARE] * number)
    assert len(verdicts) == number
    assert {*verdicts} == {None, False}
    return time.monotonic() - started


def test_hundreds_of_hostile_strings_take_seconds() -> None:
    assert graded(280) < 30


@pytest.mark.slow
def test_thousands_of_hostile_strings_take_a_minute() -> None:
    assert graded(3_000) < 90


def test_what_fails_is_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TypeError

    monkeypatch.setattr("math_verify.parse", fail)
    assert equivalence._verify("x", "y") is None


def test_verdicts_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalence, "MOST_KNOWN", 3)
    monkeypatch.setattr(equivalence, "_known", {("a", str(i)): False for i in range(3)})
    pairs = [("a", "2"), (SQUARE, "(x+1)^2"), ("x", "x+1")]
    assert equivalent(pairs) == dict(zip(pairs, [False, True, False], strict=True))
    assert [*equivalence._known] == pairs


@pytest.mark.slow
def test_hostile_expressions_are_decided_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nested = ["(" * 200 + "x" + ")" * 200, r"\sqrt{" * 90 + "2" + "}" * 90]
    hostile = ["9^{9^{9^9}}", "10^{10^{10}}", *nested]
    monkeypatch.setattr(equivalence, "is_costly", lambda _: False)
    started = time.monotonic()
    verdicts = equivalent([("y", text) for text in hostile] + [(SQUARE, "(x+1)^2")])
    assert time.monotonic() - started < 120
    *hostile_verdicts, last = verdicts.values()
    assert not any(hostile_verdicts)
    assert last is True
    assert equivalent([(SQUARE, "(x+1)^2")]) == {(SQUARE, "(x+1)^2"): True}


def test_ten_thousand_texts_take_seconds() -> None:
    """Of which none is lost, and each is read in a time that its length bounds."""
    texts = [r"\boxed{" * 50 + "{" * (i % 100) + str(i) + "}" * (i % 150) for i in range(10_000)]
    texts += [r"\boxed{" * 100_000, "{" * 100_000, r"\boxed{1}" * 20_000]
    started = time.monotonic()
    answers = [BOXED.answer(text) for text in texts]
    assert time.monotonic() - started < 20
    assert len(answers) == 10_003
    assert answers[-3:] == [None, None, "1"]


def test_steps_and_traces_are_lines() -> None:
    text = "Let x be 2.\n\nThen \\boxed{4}.\nQ: next"
    assert BOXED.step_ends(text) == [13, 29]
    assert BOXED.trace(text) == ("Let x be 2.", "Then \\boxed{4}.")
    assert BOXED.calculations("1 + 2 = 3") == []


@pytest.mark.parametrize(
    ("text", "gold", "answer", "correct"),
    [
        ("So\n#### Paris", "paris", "paris", True),
        ("####  New   York ", "New York", "new york", True),
        ("#### London", "Paris", "london", False),
        ("Paris", "Paris", None, False),
        ("####", "Paris", None, False),
        ("#### Paris\n#### London", "Paris", None, False),
    ],
)
def test_exact_text(text: str, gold: str, answer: str | None, correct: bool) -> None:
    assert EXACT.answer(text) == answer
    assert EXACT.equal(answer, gold) == correct


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### B", "B"),
        ("#### (B)", "B"),
        ("#### B) 12 cm", "B"),
        ("#### B.", "B"),
        ("#### b", None),
        ("#### Boat", None),
        ("#### A or B", None),
        ("#### A\n#### B", None),
        ("The answer is B", None),
    ],
)
def test_choice(text: str, answer: str | None) -> None:
    assert CHOICE.answer(text) == answer
    assert CHOICE.equal(answer, "(B)") == (answer == "B")


def test_canonical_is_where_it_stays() -> None:
    for text, answer in READ:
        if answer is not None:
            assert canonical(answer) == answer, text
