"""Generated word problems: fixed, in splits that share no question, and right."""

import hashlib
import re
from collections import Counter
from itertools import combinations, islice

import pytest
from transformers import AutoTokenizer

from models.pretrain import documents
from reasonrl.problems import stories
from reasonrl.types import Problem
from tests.helpers.configs import TINY

SPLITS = ("train", "validation", "test", "ood")
CALCULATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


def load(split: str, size: int, seed: int = 0, steps: tuple[int, int] = (2, 5)) -> list[Problem]:
    return stories.load(split, size, seed=seed, min_steps=steps[0], max_steps=steps[1])


def load_questions(split: str, size: int, **how) -> list[str]:
    return [p.question for p in load(split, size, **how)]


def test_a_story_is_what_it_was():
    # By hand: 60 + 4 = 64, half of it 32, half of that 16; Mia has 16 + 24 = 40; in all 56.
    assert load("train", 5)[4] == Problem(
        id="stories-train-4",
        question="There are 60 pencils in the packs of Lea. Then Mia gives Lea 4 pencils. "
        "Lea gives half of the pencils to Mia. Lea gives half of the pencils to Mia. "
        "Lea has 24 fewer pencils than Mia. How many do they have together?",
        answer="56",
        solution="60+4=64\n64/2=32\n32/2=16\n16+24=40\n16+40=56\n#### 56",
    )
    # By hand: 23 + 11 = 34; 3 * 7 = 21 more make 55; twice that is 110; Ben has 25 fewer, 85.
    assert load("test", 1)[0].question == (
        "Kim has 23 apples. 11 more apples come from Ben. Ben gives Kim 3 packs with 7 apples in "
        "each. Then Ben doubles what Kim has. Kim has 25 more apples than Ben. How many apples "
        "does Ben have?"
    )
    assert load("test", 1)[0].answer == "85"


def test_the_splits_stay_as_they_are():
    """Models were pretrained beside these splits: a new draw would leak test questions to them."""
    drawn = load("train", 100)
    text = "\n".join(f"{p.question}\n{p.solution}" for p in drawn)
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "df529599161d33ac346948ac1dee7998f7fe0334b3727f3f73d5fa8a15926ec1"
    )
    assert load("train", 10) == drawn[:10]


def test_no_two_splits_share_a_question_whatever_the_seed():
    questions = {
        (split, seed): {p.question for p in load(split, 500, seed)}
        for split in (*SPLITS, "pretrain")
        for seed in (0, 1)
    }
    assert all(len(drawn) == 500 for drawn in questions.values())  # none twice in one draw
    for (split, seed), (other_split, other_seed) in combinations(questions, 2):
        shared = questions[split, seed] & questions[other_split, other_seed]
        assert not shared or split == other_split
    assert questions["train", 0] != questions["train", 1]


def test_pretraining_text_holds_no_question_of_another_split():
    asked = [
        question
        for document in islice(documents(seed=0), 300)
        for question in re.findall(r"^Q: (.*)$", document, re.MULTILINE)
    ]
    assert len(asked) > 300
    assert {stories.split_of(question) for question in asked} == {"pretrain"}
    wordings = " ".join(load_questions("ood", 200))
    assert "starts with" in wordings
    assert "starts with" not in " ".join(asked)


@pytest.mark.parametrize("split", SPLITS)
def test_solutions_calculate_right_and_end_in_the_answer(split: str):
    for problem in load(split, 300):
        *lines, last = problem.solution.split("\n")
        known = {int(n) for n in re.findall(r"\d+", problem.question)} | {2, 3}
        for line in lines:
            left, operator, right, result = CALCULATION.fullmatch(line).groups()
            a, b, c = int(left), int(right), int(result)
            # Division is checked by multiplying back: it must leave no remainder.
            assert {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": b * c == a}[operator]
            assert {a, b} <= known  # numbers come from the question or an earlier line
            assert 1 <= c <= 120
            known.add(c)
        assert last == f"#### {c}" == f"#### {problem.answer}"


@pytest.mark.parametrize(
    ("split", "steps", "expected"),
    [
        ("train", (2, 5), {2, 3, 4, 5}),
        ("test", (3, 3), {3}),
        ("validation", (1, 1), {1}),
        ("ood", (2, 5), {4, 5, 6, 7}),  # chains two longer
    ],
)
def test_number_of_calculations(split: str, steps: tuple[int, int], expected: set[int]):
    lengths = Counter(p.solution.count("\n") for p in load(split, 200, steps=steps))
    assert set(lengths) == expected


def test_ood_has_wordings_of_its_own():
    """Each sentence of ood comes from a last wording, each of the others from another."""

    def pattern(wording: str) -> str:
        return re.sub(r"\\\{\w+\\\}", r"\\w+", re.escape(wording))

    wordings = [stories.OPENINGS] + [
        w for kinds in (stories.EVENTS, stories.ENDINGS) for _, w in kinds.values()
    ]
    own = re.compile("|".join(pattern(ws[-1]) for ws in wordings))
    other = re.compile("|".join(pattern(w) for ws in wordings for w in ws[:-1]))
    for question in load_questions("ood", 200):
        assert own.sub("", question).strip() == ""
        assert other.search(question) is None
    for question in load_questions("train", 200):
        assert other.sub("", question).strip() == ""


def test_ids_count_from_zero():
    assert [p.id for p in load("ood", 3)] == ["stories-ood-0", "stories-ood-1", "stories-ood-2"]


def test_words_are_all_there_are():
    used = {
        word
        for split in (*SPLITS, "pretrain")
        for question in load_questions(split, 1000, steps=(1, 5))
        for word in re.findall(r"[A-Za-z]+", question)
    }
    assert used == set(stories.words())  # a thousand stories of each split use every word


def test_the_embedded_tokenizer_reads_and_writes_every_story():
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    texts = [
        text
        for split in SPLITS
        for p in load(split, 300)
        for text in (f"Q: {p.question}\nA: {p.solution}\n\n", f" {p.solution}")
    ]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_every_solution_fits_in_the_default_completion():
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    texts = [f" {p.solution}" for split in SPLITS for p in load(split, 1000)]
    # One token more for EOS; dataset.max_new_tokens is 80.
    assert max(len(ids) + 1 for ids in tokenizer(texts)["input_ids"]) <= 80
