"""What the dense heuristic pays for: the declared verdict on every trick, one row each."""

import pytest

from reasonrl.rewards.dense import (
    ReferenceSteps,
    first_wrong_step,
    paid_calculations,
    step_fractions,
    wrong_places,
)
from reasonrl.types import Completion, Problem
from tests.helpers.grading import STRICT

# Two intermediate results, 24 and 72: each is worth a half.
CLIPS = Problem(
    id="clips",
    question="Natalia sold clips to 48 friends in April, and half as many in May. How many in all?",
    answer="72",
    solution="In May 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72.\n#### 72",
)
# Three: 12, 36 and 18. 12 stands in the question too.
COINS = Problem(
    id="coins",
    question="Ana has 12 coins and 3 bags of 4 coins. Tom triples those in the bags, takes half.",
    answer="18",
    solution="3*4=12\n12*3=36\n36/2=18\n#### 18",
)
SHARES = Problem(
    id="shares",
    question="Of 10 pies each of 3 people gets a share; two shares cost $1,200.50. And for 5%?",
    answer="6.67",
    solution="10/3=3.33\n2*3.33=<<3.33*2=6.66>>6.67\n1,200.50 - 0.50 = $1,200\n#### 6.67",
)
DEBT = Problem("debt", "Tom has 3, spends 8, earns 9.", "4", "3 - 8 = -5\n9 - 5 = 4\n#### 4")
NOTHING = Problem("nothing", "Ana has 12 coins. How many?", "12", "She has 12.\n#### 12")

# (what it shows, problem, completion, paid results, paid results if the order counts)
PAID = [
    # Honest work, however it is written.
    ("the reference", CLIPS, CLIPS.solution, ["24", "72"], ["24", "72"]),
    ("plain equations", CLIPS, "48 / 2 = 24\nso 48 + 24 = 72.", ["24", "72"], ["24", "72"]),
    ("bare annotations", CLIPS, "<<48/2=24>> <<48+24=72>>", ["24", "72"], ["24", "72"]),
    ("other operands' order", CLIPS, "48/2=24\n24+48=72", ["24", "72"], ["24", "72"]),
    ("another way to the end", CLIPS, "48/2=24\n24*3=72", ["24"], ["24"]),
    ("another way that is grounded", CLIPS, "48/2=24\n24+24+24=72", ["24", "72"], ["24", "72"]),
    ("half the way, then a slip", CLIPS, "48/2=24\n48+24=62\n#### 62", ["24"], ["24"]),
    ("a detour", CLIPS, "48-24=24\n48/2=24\n48+48=96\n48+24=72", ["24", "72"], ["24", "72"]),
    ("a step in the head", CLIPS, "48+24=72\n#### 72", ["72"], ["72"]),
    ("the steps the wrong way round", CLIPS, "48+24=72\n48/2=24", ["72", "24"], ["72"]),
    ("cut off", CLIPS, "In May 48/2 = <<48/2=24>>24 cl", ["24"], ["24"]),
    ("a result that the question names", COINS, "3*4=12\n12*3=36", ["12", "36"], ["12", "36"]),
    ("such a result, operands swapped", COINS, "4*3=12", ["12"], ["12"]),
    ("the reference's own rounding", SHARES, "10/3=3.33", ["3.33"], ["3.33"]),
    ("commas and currency", SHARES, "$1,200.50 - $0.50 = $1,200.00", ["1200"], ["1200"]),
    ("below zero", DEBT, "3 - 8 = -5\n9 - 5 = 4", ["-5", "4"], ["-5", "4"]),
    # Not calculating.
    ("nothing", CLIPS, "", [], []),
    ("the answer alone", CLIPS, "#### 72", [], []),
    ("the results listed", CLIPS, "24, 72\n24 72\n= 24\n= 72", [], []),
    ("the results as copies", CLIPS, "<<24=24>> <<72=72>> 24 = 24", [], []),
    ("a sum without its operands", CLIPS, "?/? = 24\n? + ? = 72", [], []),
    ("a shotgun of numbers", CLIPS, " ".join(map(str, range(100))), [], []),
    # Paid once.
    ("a result repeated", CLIPS, "48/2=24\n" * 9, ["24"], ["24"]),
    ("repeated in another spelling", CLIPS, "48/2=24\n48.0 ÷ 2 = $24.00", ["24"], ["24"]),
    ("repeated another way", CLIPS, "48/2=24\n48-24=24\n24*2/2=24", ["24"], ["24"]),
    # False arithmetic that names a right result.
    ("a false sum", CLIPS, "48+2=24\n48+48=72", [], []),
    ("the right operands, the wrong operator", CLIPS, "48*2=24\n48-24=72", [], []),
    ("a false sum, then the true one", CLIPS, "48*2=24\n48/2=24", ["24"], ["24"]),
    ("division by zero", CLIPS, "48/0=24\n48/(2-2)=24", [], []),
    ("rounding of one's own", SHARES, "10/3=3.3\n10/3=3.333\n10/3=3", [], []),
    ("parentheses that don't match", CLIPS, "48)/2=24", [], []),
    # True arithmetic from nowhere.
    ("operands from nowhere", CLIPS, "20+4=24\n70+2=72", [], []),
    ("a number laundered by a false sum", CLIPS, "48+48=20\n48/48=4\n20+4=24", [], []),
    ("a number laundered by an ungrounded sum", CLIPS, "19+1=20\n3+1=4\n20+4=24", [], []),
    # Nothing new.
    ("plus zero", CLIPS, "24+0=24\n72+0=72", [], []),
    ("times one", CLIPS, "24*1=24\n72/1=72", [], []),
    ("there and back in one", CLIPS, "24*2/2=24\n72+48-48=72", [], []),
    ("half of the right operands", CLIPS, "48-24=24", [], []),
    ("a number of the question plus zero", COINS, "3-3=0\n12+0=12", [], []),
    ("there and back in two", COINS, "12*3=36\n36/3=12", ["36"], ["36"]),
    ("a calculation of no use", COINS, "12-4=8\n12+3=15\n4-3=1", [], []),
    # Shotguns: 2 calculations in the reference, so the first 4 are looked at.
    ("the fourth is looked at", CLIPS, "48+48=96\n" * 3 + "48/2=24", ["24"], ["24"]),
    ("the fifth isn't", CLIPS, "48+48=96\n" * 4 + "48/2=24", [], []),
    ("every pair", CLIPS, "48+48=96\n48-48=0\n48*48=2304\n48/48=1\n48/2=24", [], []),
    ("many on a line", CLIPS, "<<48+48=96>>" * 4 + "<<48/2=24>>", [], []),
    ("counting up", CLIPS, "48/48=1\n" + "\n".join(f"{n}+1={n + 1}" for n in range(1, 99)), [], []),
    # After the answer.
    ("after the answer", CLIPS, "#### 72\n48/2=24\n48+24=72", [], []),
    ("on the answer's line", CLIPS, "48/2=24 #### 72 48+24=72", ["24"], ["24"]),
    ("in one's own next question", CLIPS, "Q: 48/2=24\n48+24=72", [], []),
    # Nothing to match.
    ("a reference without calculations", NOTHING, "12*1=12\n12+0=12\n#### 12", [], []),
]


@pytest.mark.parametrize(
    ("problem", "text", "paid", "paid_in_order"),
    [pytest.param(*row, id=name) for name, *row in PAID],
)
def test_what_pays(problem, text, paid, paid_in_order):
    assert [c.result for c in paid_calculations(text, problem, STRICT)] == paid
    assert [
        c.result for c in paid_calculations(text, problem, STRICT, ordered=True)
    ] == paid_in_order


def test_each_result_is_worth_its_share():
    assert step_fractions("48/2=24\n48+24=72", CLIPS, STRICT) == [(7, 0.5), (16, 0.5)]
    assert step_fractions("3*4=12, 36/2=18", COINS, STRICT) == [(6, 1 / 3), (15, 1 / 3)]
    assert step_fractions("<<48/2=24>>24", CLIPS, STRICT) == [(11, 0.5)]


def completion_of(tokenizer, text: str) -> Completion:
    ids = (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    return Completion("p", 0, ids, (0.0,) * len(ids), "eos", text)


# The tiny tokenizer has a token for each digit and sign. (completion, {token: reward}) at weight 2
TOKEN_REWARDS = [
    # "4 8 / 2 = 2 4 \n" are tokens 0-7, "4 8 + 2 4 = 7 2" 8-15: 2 * 1/2 on each result's last.
    ("48/2=24\n48+24=72\n#### 72", {6: 1.0, 15: 1.0}),
    ("48/2=24\n48+24=62\n#### 62", {6: 1.0}),
    ("48/2=24\n48/2=24\n", {6: 1.0}),
    ("48*2=24\n48/2=24\n", {14: 1.0}),
    ("24+0=24\n24, 72\n#### 72", {}),
    ("48+24=72\n48/2=24\n", {7: 1.0, 15: 1.0}),
    ("", {}),
]


@pytest.mark.parametrize(("text", "expected"), TOKEN_REWARDS)
def test_the_token_that_closes_a_calculation_is_paid(tokenizer, text, expected):
    completion = completion_of(tokenizer, text)
    (rewards,) = ReferenceSteps(tokenizer, STRICT, weight=2.0, ordered=False)([completion], [CLIPS])
    assert len(rewards) == len(completion.token_ids)
    assert {token: reward for token, reward in enumerate(rewards) if reward} == expected


def test_each_completion_is_held_to_its_own_problem(tokenizer):
    reward = ReferenceSteps(tokenizer, STRICT, weight=1.0, ordered=True)
    completions = [completion_of(tokenizer, text) for text in ("48+24=72\n48/2=24", "3*4=12", "")]
    no_tokens = Completion("p", 0, (), (), "length", "")
    assert reward([*completions, no_tokens], [CLIPS, COINS, COINS, COINS]) == [
        # 72 comes before 24 here, so that in order it alone pays; then EOS.
        (*[0.0] * 7, 0.5, *[0.0] * 9),
        (*[0.0] * 5, 1 / 3, 0.0),
        (0.0,),
        (),
    ]
    with pytest.raises(ValueError, match="shorter"):
        reward(completions, [CLIPS])


# (what it shows, problem, completion, number of the first wrong step)
WRONG = [
    ("the reference", CLIPS, CLIPS.solution, None),
    ("prose is never wrong", CLIPS, "Let us see.\n48/2=24\n48+24=72\n#### 72", None),
    ("the answer alone", CLIPS, "#### 72", None),
    ("a false first step", CLIPS, "48/2=23\n48+23=71\n#### 71", 0),
    ("a false second step", CLIPS, "48/2=24\n48+24=62\n#### 62", 1),
    ("a false step, then a right one", CLIPS, "48*2=96\n48/2=24\n48+24=72\n#### 72", 0),
    ("another answer than calculated", CLIPS, "48/2=24\n48+24=72\n#### 24", 2),
    ("a right step repeated", CLIPS, "48/2=24\n48/2=24\n48+24=72\n#### 72", None),
    ("repeated in another order", COINS, "3*4=12\n4*3=12\n12*3=36\n36/2=18\n#### 18", None),
    ("an answer never given", CLIPS, "48/2=24\n48+24=72", 1),
    ("an answer that can't be read", CLIPS, "48/2=24\n48+24=72\n#### 72 or 73", 2),
    ("an answer in mid-line", CLIPS, "48/2=24\nso #### 72", 1),
    ("in mid-line, then at its own", CLIPS, "48/2=24 #### 72\nfine\n#### 72", 0),
    ("right, then another answer", CLIPS, "48/2=24\n#### 72\n#### 73", 2),
    ("right, then a ramble", CLIPS, "48/2=24\n48+24=72\n#### 72\n1+1=3", None),
    ("blank lines aren't counted", CLIPS, "\n48/2=24\n\n48+24=62\n#### 62", 1),
    ("only one's own next question", CLIPS, "48/2=24\nQ: 1+1?\n#### 72", 0),
    ("nothing", CLIPS, "", 0),
    ("a reference without calculations", NOTHING, "She has 12.\n#### 12", None),
    ("a calculation where there is none", NOTHING, "She has 12.\n12+1=13\n#### 12", 1),
]


@pytest.mark.parametrize(
    ("problem", "text", "step"), [pytest.param(*row, id=name) for name, *row in WRONG]
)
def test_the_first_wrong_step(problem, text, step):
    assert first_wrong_step(text, problem, STRICT) == step


# (what it shows, problem, completion, the offset just after each thing that is wrong)
WRONG_PLACES = [
    ("the reference", CLIPS, CLIPS.solution, []),
    ("a false first step", CLIPS, "48/2=23\n48+23=71\n#### 71", [7, 16, 24]),
    ("a false step, then right ones", CLIPS, "48*2=96\n48/2=24\n48+24=72\n#### 72", [7]),
    ("a false annotation", CLIPS, "48/2 = <<48/2=23>>23 clips\n#### 72", [18]),
    ("a right and a false one on a line", CLIPS, "48/2=24, 48*2=96\n#### 72", [16]),
    ("two false ones on a line", CLIPS, "48*2=96, 48*3=144\n#### 72", [7, 17]),
    ("another answer than calculated", CLIPS, "48/2=24\n48+24=72\n#### 24", [24]),
    ("an answer that can't be read", CLIPS, "48/2=24\n#### 72 or 73\n", [21]),
    ("two other answers", CLIPS, "#### 71\n#### 72\n#### 73", [7, 23]),
    ("an answer in mid-line", CLIPS, "48/2=24\nso #### 72", [18]),
    ("an answer never given", CLIPS, "48/2=24", []),
    ("prose", CLIPS, "Let us see.\n24, 72\n#### 72", []),
    ("a right step repeated", CLIPS, "48/2=24\n48/2=24\n#### 72", []),
    ("the steps the wrong way round", CLIPS, "48+24=72\n48/2=24\n#### 72", []),
    ("after the answer", CLIPS, "#### 72\n48/2=23", []),
    ("in one's own next question", CLIPS, "48/2=24\nQ: 48*2=96\n#### 9", []),
    ("nothing", CLIPS, "", []),
]


@pytest.mark.parametrize(
    ("problem", "text", "places"), [pytest.param(*row, id=name) for name, *row in WRONG_PLACES]
)
def test_wrong_places(problem, text, places):
    assert sorted(wrong_places(text, problem, STRICT)) == places
