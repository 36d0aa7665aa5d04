"""Graders: named by a dataset, cut off where its prompt begins a question, whole or not at all."""

import dataclasses
from typing import ClassVar

import pytest

from reasonrl.config.dataset import DATASETS
from reasonrl.grading import GRADERS, grader_of, next_question
from reasonrl.grading.base import DECLARATIONS, Claim, Grader
from reasonrl.grading.strict import Strict
from reasonrl.pipeline.planner import Planner
from reasonrl.util.errors import UserError
from tests.helpers.grading import STRICT


@pytest.mark.parametrize(
    ("prompt", "begins"),
    [
        ("Q: {question}\nA:", "Q:"),
        ("Question: {question}\nAnswer:", "Question:"),
        ("  Q:\n\n{question}", "Q:"),
        ("Solve this.\n\n Problem: {question}\nSolution:", "Problem:"),
        ("{question}\nAnswer:", ""),
        (" \n{question}", ""),
    ],
)
def test_what_a_question_begins_with(prompt, begins):
    assert next_question(prompt) == begins


def test_the_models_next_question_is_told_by_the_prompt(configure):
    text = " 2+3=5\n#### 5\nQuestion: next\nAnswer: 1+1=2\n#### 2"
    dataset = configure().dataset
    asked = dataclasses.replace(dataset, prompt="Question: {question}\nAnswer:")
    assert grader_of(asked).answer(text) == "5"
    assert grader_of(asked).step_ends(text) == [7, 14]
    assert grader_of(asked).trace(text) == ("2+3=5",)
    assert grader_of(dataset).answer(text) is None
    assert grader_of(dataset).answer(text.replace("Question:", "Q:")) == "5"


def test_without_a_word_before_the_question_nothing_is_cut():
    assert Strict(next_question="").answer("#### 5\nQ: next\n#### 5") == "5"
    assert Strict(next_question="").answer("#### 5\nQ: next\n#### 2") is None


def test_claims():
    text = "2+3=5 #### 5\n\n #### $6.00 \n####\nQ: x\n#### 7"
    claims = STRICT.claims(text)
    assert claims == [Claim(6, 12, None), Claim(15, 26, "6"), Claim(27, 31, None)]
    assert [text[c.start : c.end] for c in claims] == ["#### 5", "#### $6.00 ", "####"]


def test_every_dataset_names_a_grader_that_is_there():
    assert {dataset.grader for dataset in DATASETS.values()} <= {*GRADERS}


def test_an_unknown_grader_is_refused_when_a_run_is_planned(configure, monkeypatch):
    config = configure("algorithm=sft")
    monkeypatch.setattr(type(config.dataset), "grader", "sympy")
    said = (
        "dataset=stories must declare one of the graders strict, boxed, exact, choice; "
        r"got grader=sympy. "
        r"Add it to grading.GRADERS."
    )
    with pytest.raises(UserError, match=said):
        Planner().plan(config)


@pytest.mark.parametrize("left_out", DECLARATIONS)
def test_a_grader_declares_all_that_is_asked_of_it(left_out):
    members = {name: vars(Strict)[name] for name in DECLARATIONS if name != left_out}
    with pytest.raises(TypeError, match=f"grader Half must declare {left_out}$"):
        type("Half", (Grader,), members)


class Wordy(Grader):
    """It reads no calculations, and its steps end with semicolons."""

    step_delimiter: ClassVar[str] = ";"

    def answer(self, text):
        return text.split()[-1] if text.split() else None

    def equal(self, answer, gold):
        return answer == gold

    def claims(self, text):  # noqa: ARG002
        return []

    def calculations(self, text):  # noqa: ARG002
        return []

    def trace(self, text):
        return tuple(text.split())

    def step_ends(self, text):
        return [i for i, character in enumerate(text, start=1) if character == ";"]


def test_a_grader_that_reads_no_calculations_gives_the_dense_reward_nothing_to_pay(
    configure, monkeypatch
):
    monkeypatch.setitem(GRADERS, "wordy", Wordy)
    config = configure("algorithm=ppo", "reward=dense", "init=pretrained")
    Planner().plan(config)
    monkeypatch.setattr(type(config.dataset), "grader", "wordy")
    said = (
        "reward=dense must have calculations in the reference solutions to pay for; got "
        "dataset=stories, where grader=wordy reads none. Pass reward=sparse."
    )
    with pytest.raises(UserError, match=said):
        Planner().plan(config)
    Planner().plan(configure("algorithm=ppo", "reward=sparse", "init=pretrained"))
    Planner().plan(configure("algorithm=sft", "reward=dense"))
