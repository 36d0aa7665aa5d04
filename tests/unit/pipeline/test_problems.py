"""What a plan says of its problems: shared questions, and solutions that can't be sampled."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from reasonrl.config.resolve import resolve
from reasonrl.pipeline import text
from reasonrl.pipeline.planner import plan
from reasonrl.problems import load_problems
from reasonrl.util.errors import UserError
from tests.helpers.configs import ROOT
from tests.helpers.gsm8k_files import Row, write_gsm8k

SMALL = ["algorithm=sft", "init=pretrained", "tracking=none", "dataset.train_size=12"]
SMALL += ["dataset=gsm8k", "dataset.num_exemplars=0", "dataset.max_new_tokens=80"]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # model.path=models/tiny


def warnings(data: Path, *overrides: str) -> tuple[str, ...]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        said = [f"runtime.outputs={data}", f"dataset.path={data}", *SMALL, *overrides]
        config = resolve(compose("train", said))
    return plan(config).warnings


def test_nothing_is_said_of_good_problems(tmp_path: Path):
    assert warnings(write_gsm8k(tmp_path)) == ()


def test_a_question_in_two_splits_is_named(tmp_path: Path):
    data = write_gsm8k(tmp_path)
    row = json.loads((data / "train.jsonl").read_text().splitlines()[0])
    row["question"] = row["question"].replace(" ", "  ", 1)
    lines = (data / "test.jsonl").read_text().splitlines()
    (data / "test.jsonl").write_text("\n".join([json.dumps(row), *lines[1:]]))
    assert warnings(data) == (
        "1 of 12 questions of the split test are in the split train too, the first as "
        "gsm8k-train-0 and gsm8k-test-0. Remove them from one of the files",
    )


def test_an_exemplar_that_is_asked_is_named_with_a_remedy(tmp_path: Path):
    """A training question is the first exemplar too: another split for evaluation is no help."""
    data = write_gsm8k(tmp_path)
    lines = (data / "train.jsonl").read_text().splitlines()
    lines[20] = lines[3]  # the first validation problem
    (data / "train.jsonl").write_text("\n".join(lines))
    said = (
        "dataset.num_exemplars=2 must leave out the problems that are asked; gsm8k-train-20 asks "
        "what gsm8k-train-3 does. Remove one of them from its file, or pass"
    )
    with pytest.raises(UserError, match=re.escape(said)):
        warnings(data, "dataset.num_exemplars=2")


def test_solutions_that_hold_what_ends_completions(tmp_path: Path):
    """All of them: an error. One in twelve: a warning."""

    def with_paragraphs(row: Row, _: str) -> Row:
        return row | {"answer": row["answer"].replace("\n####", "\n\n####")}

    data = write_gsm8k(tmp_path, with_paragraphs)
    with pytest.raises(UserError, match=r"got 12 of 12 that hold one, gsm8k-train-0 the first. P"):
        warnings(data)
    assert warnings(data, "dataset.stop=[]") == ()
    first = (data / "train.jsonl").read_text().splitlines()[0]
    good = (write_gsm8k(tmp_path) / "train.jsonl").read_text().splitlines()
    (data / "train.jsonl").write_text("\n".join([first, *good[1:]]))
    (said,) = warnings(data)
    assert "got 1 of 12 that hold one, gsm8k-train-0 the first. Pass dataset.stop=[]" in said


def test_what_ends_completions_may_not_stand_in_their_answers(tmp_path: Path):
    """Nothing that is sampled could be graded: an error for whoever learns from samples."""
    samples = "algorithm=ei"
    data = write_gsm8k(tmp_path)
    said = (
        "dataset.stop=['####'] must not be in an answer, which dataset.grader=strict reads from "
        "one line of #### and a number, as in: #### 18; got 12 of 12 reference solutions whose "
        "answer holds one, gsm8k-train-0 the first. Pass dataset.stop=[]."
    )
    with pytest.raises(UserError, match=re.escape(said)):
        warnings(data, samples, "dataset.stop=['####']")
    assert warnings(data, samples, "dataset.stop=['1+']") == ()  # in no answer
    rows = map(json.loads, (data / "train.jsonl").read_text().splitlines())
    answers = [row["answer"].splitlines()[-1] for row in rows]
    number = sum(answers[0] in answer for answer in answers[:12])
    assert 0 < number < 6
    (warning,) = warnings(data, samples, "init=pretrained", f"dataset.stop=['{answers[0]}']")
    assert f"got {number} of 12 reference solutions whose answer holds one" in warning


def test_a_question_with_two_answers_is_named(tmp_path: Path):
    data = write_gsm8k(tmp_path)
    lines = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    lines[5]["question"] = lines[2]["question"].replace(" ", "  ", 1)
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert warnings(data) == (
        "1 of 12 problems have another gold answer than one with the same question, the first "
        "gsm8k-train-5 than gsm8k-train-2. Remove the wrong ones",
    )
    lines[5]["answer"] = lines[2]["answer"]
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert warnings(data) == ()


def test_solutions_that_are_longer_than_may_be_said(tmp_path: Path):
    def long(row: Row, _: str) -> Row:
        return row | {"answer": "1+1=2\n" * 20 + row["answer"]}  # 6 tokens a line

    data = write_gsm8k(tmp_path, long)
    with pytest.raises(UserError, match=r"max_new_tokens=80 must let .* got 12 of 12 that are l"):
        warnings(data)
    lines = (data / "train.jsonl").read_text().splitlines()
    good = (write_gsm8k(tmp_path) / "train.jsonl").read_text().splitlines()
    (data / "train.jsonl").write_text("\n".join([lines[0], *good[1:]]))
    (said,) = warnings(data)
    assert re.search(r"got 1 of 12 that are longer, gsm8k-train-0 the longest with 1\d\d", said)


def test_a_solution_that_is_longer_than_the_context_is_an_error(tmp_path: Path):
    """Of 512 tokens."""

    def long(row: Row, name: str) -> Row:
        return row | {"answer": "1+1=2\n" * 90 + row["answer"]} if name == "train" else row

    with pytest.raises(UserError, match=r"gsm8k-train-0 must fit the model's context of 512 tok"):
        warnings(write_gsm8k(tmp_path, long), "dataset.max_new_tokens=200")


def test_a_warning_is_said_once():
    class One:
        warnings = ("a [b]", "c")

        def in_order(self) -> list[One]:
            return [self, self]

    said = list(text.doubts([One(), One()]))  # type: ignore[list-item]
    assert said == [f"[bold yellow]warning:[/] {one}" for one in (r"a \[b]", "c")]


def test_an_unknown_split_is_refused():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        dataset = resolve(compose("train", ["dataset=gsm8k", "dataset.path=none"])).dataset
    with pytest.raises(
        UserError, match="split=ood must be one of train, validation, test, platinum, plus, "
    ):
        load_problems(dataset, "ood")
