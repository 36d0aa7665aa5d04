"""Problems of one's own: files, folders and datasets of any field names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pytest

from reasonrl.config.dataset.jsonl import FORMS, JSONLConfig
from reasonrl.grading import GRADERS
from reasonrl.problems import load_problems
from reasonrl.problems.tables import rows_of_file
from reasonrl.types import Problem
from reasonrl.util.errors import UserError

FIELDS = {"question": "q", "answer": "a", "solution": "s", "id": None}
SPLITS = ("train", "validation", "test")


def own(path: Path | str | None, grader: str = "strict", **changes) -> JSONLConfig:
    values = {
        "train_size": None,
        "validation_size": None,
        "test_size": None,
        "reward_train_size": None,
        "num_references": None,
        "prompt": "Q: {question}\nA:",
        "stop": [],
        "max_new_tokens": 64,
        "num_exemplars": 0,
        "subset": None,
        "fields": FIELDS,
        "files": dict.fromkeys(SPLITS),
        "held_out": {"validation": 1, "test": 2},
    }
    path = None if path is None else str(path)
    return JSONLConfig(name="jsonl", path=path, grader=grader, **(values | changes))


def rows(number: int, name: str = "row") -> list[dict]:
    return [{"q": f"{name} {i}?", "a": i, "s": f"It is {i}."} for i in range(number)]


def lines(file: Path, values: list[dict]) -> Path:
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return file


def questions(config: JSONLConfig) -> dict[str, list[str]]:
    return {split: [p.question for p in load_problems(config, split)] for split in SPLITS}


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "saved", "hub"])
def test_each_form_has_the_same_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = datasets.Dataset.from_list(rows(6))
    path: Path | str = tmp_path / f"x.{kind}"
    if kind == "jsonl":
        lines(Path(path), rows(6))
    elif kind == "json":
        Path(path).write_text(json.dumps(rows(6)))
    elif kind == "csv":
        table.to_csv(path)
    elif kind == "parquet":
        table.to_parquet(path)
    elif kind == "saved":
        table.save_to_disk(path)
    else:
        path = "someone/sums"
        served = {("someone/sums", None): datasets.DatasetDict(train=table)}
        monkeypatch.setattr(datasets, "load_dataset", lambda *asked: served[asked])
    # In the order of SHA-256 the first is row 2, then come rows 4 and 5.
    assert questions(own(path)) == {
        "train": ["row 0?", "row 1?", "row 3?"],
        "validation": ["row 2?"],
        "test": ["row 4?", "row 5?"],
    }
    assert load_problems(own(path), "test")[1] == Problem(
        id="jsonl-train-5", question="row 5?", answer="5", solution="It is 5.\n#### 5"
    )


def test_cells_of_csv_are_the_texts_that_they_are(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    # The first would be floats together, and each of the second a number or missing by itself.
    golds = ["00501", "1.00", "9007199254740993", "0.5", "12345678901234567000", "True", "1e3"]
    golds += ["NA", "None", "nan", '"a, ""b"""', '"two\nlines"']
    file.write_text("".join(f"{line}\n" for line in ["a,n", *(f"{gold},0.5" for gold in golds)]))
    read = [row.values["a"] for row in rows_of_file(file)]
    assert read == [*golds[:-2], 'a, "b"', "two\nlines"]
    assert rows_of_file(file)[0].place == f"{file}:2"


@pytest.mark.parametrize(
    ("number", "text"),
    [("1e-07", "0.0000001"), ("1.5", "1.5"), ("1e20", "100000000000000000000"), ("2.0", "2")],
)
def test_a_number_of_json_is_read_whatever_its_exponent(
    tmp_path: Path, number: str, text: str
) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("".join(f'{{"q": "{i}?", "a": {number}}}\n' for i in range(4)))
    config = own(file, fields=FIELDS | {"solution": None})
    assert {problem.answer for problem in load_problems(config, "train")} == {text}


@pytest.mark.parametrize("value", [[{"role": "user", "content": "1?"}], {"text": "1?"}])
def test_a_question_with_parts_is_refused(tmp_path: Path, value: object) -> None:
    lines(tmp_path / "x.jsonl", [*rows(3), rows(4)[3] | {"q": value}])
    with pytest.raises(UserError, match=r"x.jsonl:4: q must be a text or a number; got a (li|di)"):
        load_problems(own(tmp_path / "x.jsonl"), "train")


@pytest.mark.parametrize("row", [",x", '"",x', "  ,x", "\n,"])
def test_an_empty_cell_of_csv_is_missing(tmp_path: Path, row: str) -> None:
    file = tmp_path / "x.csv"
    file.write_text(f"q,s,a\none?,x,1\n{row}\n")
    with pytest.raises(UserError, match=r"x.csv:\d: [qa] must be there and not empty"):
        load_problems(own(file), "train")


@pytest.mark.parametrize("gold", ["NA", "None", "nan", "00501", "1.00"])
def test_an_answer_of_csv_is_the_text_of_its_cell(tmp_path: Path, gold: str) -> None:
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.csv").write_text(f"q,a\n{name}?,{gold}\n")
    config = own(tmp_path, "exact", fields=FIELDS | {"solution": None})
    assert load_problems(config, "test")[0].answer == gold.lower()


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    values = {"a": [9007199254740993, None], "b": [0.5, 1.0], "c": ["NA", "00501"]}
    datasets.Dataset.from_dict(values).to_parquet(tmp_path / "x.parquet")
    assert [row.values for row in rows_of_file(tmp_path / "x.parquet")] == [
        {"a": 9007199254740993, "b": 0.5, "c": "NA"},
        {"a": None, "b": 1.0, "c": "00501"},
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [("x.csv", "q,a\none?,1\n"), ("x.jsonl", '{"q": "one?", "a": "1"}\n'),
     ("x.json", '[{"q": "one?", "a": "1"}]'), ("y.json", '{"q": "one?", "a": "1"}')],
)  # fmt: skip
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert [row.values for row in rows_of_file(tmp_path / name)] == [{"q": "one?", "a": "1"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [("x.csv", ""), ("x.csv", "q,a\n"), ("x.jsonl", ""), ("x.jsonl", "\n"), ("x.json", "[]")],
)
def test_a_file_without_rows_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        load_problems(own(tmp_path / name), "train")
    assert str(error.value) == f"{tmp_path / name}: must have rows; there are none."


def test_a_table_without_rows_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = datasets.Dataset.from_dict({"q": [], "a": []})
    table.to_parquet(tmp_path / "x.parquet")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(train=table))
    for path, place in ((tmp_path / "x.parquet", tmp_path / "x.parquet"), ("a/b", "a/b train")):
        with pytest.raises(UserError) as error:
            load_problems(own(path), "train")
        assert str(error.value) == f"{place}: must have rows; there are none."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q,a\none, two?,1\n", "x.csv:2: must have 2 cells, as the header has; got more"),
        ("q,a,a\none?,1,2\n", "x.csv: must have columns of different names; got ['q', 'a', 'a']"),
        (
            "q;a\none?;1\n",
            "x.csv: must have commas between its cells; got the header 'q;a'. Replace ';'",
        ),
        ("q\ta\none?\t1\n", "got the header 'q\\ta'. Replace '\\t', or convert the file"),
        ('q,a\n"one?,1\n', "x.csv: must be readable as CSV in UTF-8; unexpected end of data"),
    ],
)
def test_a_broken_csv_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError) as error:
        rows_of_file(tmp_path / "x.csv")
    assert message in str(error.value)


def test_a_csv_of_one_column_may_have_any_mark_in_its_cells(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("q\none; or two?\n")
    assert [row.values for row in rows_of_file(tmp_path / "x.csv")] == [{"q": "one; or two?"}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"data": [{"q": "one?", "a": 1}]}', "x.json: must be rows; got one object around them"),
        ('{\n "data": [\n{"q": "one?", "a": 1}\n],\n "n": 1}\n', "x.json: must be rows; got one"),
        ('{"1": {"q": "one?", "a": 1}, "2": {"q": "two?", "a": 2}}', "x.json: must be rows; got"),
        ('{"q": "one?", "a": 1}\n{"q"\n', "x.json:2: must be JSON; Expecting"),
        ('"one?"', "x.json:1: must be a JSON object; got str"),
    ],
)
def test_json_of_another_form_is_told_which_forms_there_are(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=f"{re.escape(message)}.* Write an array of objects, or an"):
        rows_of_file(tmp_path / "x.json")


def test_the_only_row_may_have_lists_beside_its_texts(tmp_path: Path) -> None:
    row = {"q": "one?", "a": 1, "tags": ["easy"], "more": [], "turns": [{"by": "me"}]}
    (tmp_path / "x.json").write_text(json.dumps(row))
    assert len(rows_of_file(tmp_path / "x.json")) == 1


def test_a_cell_of_csv_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"q,a\n{'x' * 131_073},1\n")
    (row,) = rows_of_file(tmp_path / "x.csv")
    assert len(row.text("q")) == 131_073


def test_splits_are_the_files_of_a_folder(tmp_path: Path) -> None:
    for split, number in (("train", 5), ("test", 2)):
        lines(tmp_path / f"{split}.jsonl", rows(number, split))
    found = questions(own(tmp_path))
    assert found["test"] == ["test 0?", "test 1?"]
    assert len(found["validation"]) == 1
    assert sorted(found["train"] + found["validation"]) == [f"train {i}?" for i in range(5)]


def test_splits_are_files_beside_a_file(tmp_path: Path) -> None:
    file = lines(tmp_path / "x.jsonl", rows(3))
    lines(tmp_path / "dev.jsonl", rows(1, "dev"))
    lines(tmp_path / "final.jsonl", rows(1, "final"))
    files = {"train": None, "validation": "dev.jsonl", "test": "final.jsonl"}
    assert questions(own(file, files=files)) == {
        "train": ["row 0?", "row 1?", "row 2?"],
        "validation": ["dev 0?"],
        "test": ["final 0?"],
    }


def test_equal_questions_are_on_one_side(tmp_path: Path) -> None:
    file = lines(tmp_path / "x.jsonl", [*rows(10), *rows(10)])
    found = questions(own(file, held_out={"validation": 0.2, "test": 0.3}))
    assert {split: len(of) for split, of in found.items()} == {
        "train": 10,
        "validation": 4,
        "test": 6,
    }
    sides = [{*of} for of in found.values()]
    assert len(sides[0] | sides[1] | sides[2]) == sum(map(len, sides)) == 10


GOLDS = [
    ("strict", "1,800", "some", "1800", "some\n#### 1800"),
    ("strict", "3*6=18\n#### 18", "3*6=18\n#### 18", "18", "3*6=18\n#### 18"),
    ("strict", 18.0, "18 it is\n#### 18", "18", "18 it is\n#### 18"),
    ("boxed", "\\frac{1}{2}", "half", "\\frac{1}{2}", "half\n\\boxed{\\frac{1}{2}}"),
    ("boxed", "so $\\boxed{\\frac12}$", "\\boxed{\\frac12}", "\\frac12", "\\boxed{\\frac12}"),
    ("exact", "New  York", "a city", "new york", "a city\n#### new york"),
    ("choice", "(B)", "not A", "B", "not A\n#### B"),
]


@pytest.mark.parametrize(("grader", "gold", "written", "answer", "solution"), GOLDS)
def test_answers_and_solutions_are_as_the_grader_reads(
    tmp_path: Path, grader: str, gold: str, written: str, answer: str, solution: str
) -> None:
    file = lines(tmp_path / "x.jsonl", [{"q": "one", "a": gold, "s": written}])
    lines(tmp_path / "o.jsonl", [{"q": "other", "a": gold, "s": written}])
    files = {"train": None, "validation": "o.jsonl", "test": "o.jsonl"}
    problem = load_problems(own(file, grader, files=files), "train")[0]
    assert (problem.answer, problem.solution) == (answer, solution)


def test_without_solutions_the_reference_is_the_answer(tmp_path: Path) -> None:
    file = lines(tmp_path / "x.jsonl", [{"q": f"{i}?", "a": i, "key": f"k{i}"} for i in range(5)])
    config = own(file, fields={"question": "q", "answer": "a", "solution": None, "id": "key"})
    assert not config.has_solutions
    found = {p.id: p for split in SPLITS for p in load_problems(config, split)}
    assert found["k3"] == Problem(id="k3", question="3?", answer="3", solution="#### 3")


def bad(**changes) -> list[dict]:
    return [*rows(4), {"q": "five?", "a": 5, "s": "5"} | changes]


ERRORS = [
    (bad(a="five"), {}, "x.jsonl:5: a must be an answer that dataset.grader=strict reads; got "),
    (bad(s="#### 6"), {}, "x.jsonl:5: s must come to the gold answer 5; the grader reads 6"),
    (bad(q=" "), {}, "x.jsonl:5: q must be there and not empty"),
    (bad(a=None), {}, "x.jsonl:5: a must be there and not empty"),
    (bad(), {"question": "riddle"}, "x.jsonl:1: dataset.fields.question=riddle must be one of its "
     "fields q, a, s"),
    (bad(q="row 1?", a=1), {"id": "q"}, "x.jsonl:5: q must differ from row to row; got 'row 1?', "),
    (rows(2), {}, "must leave problems to train on; got 2 different questions in all"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "fields", "message"), ERRORS)
def test_bad_rows_are_named(tmp_path: Path, values: list[dict], fields: dict, message: str) -> None:
    file = lines(tmp_path / "x.jsonl", values)
    with pytest.raises(UserError) as error:
        load_problems(own(file, fields=FIELDS | fields), "train")
    assert message in str(error.value)


def test_bad_places_are_named(tmp_path: Path) -> None:
    lines(tmp_path / "test.jsonl", rows(2))
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "x.parquet").write_text("no parquet")
    files = {"train": None, "validation": None, "test": "none.jsonl"}
    for config, message in (
        (own(tmp_path), "must have training problems; there is no split train"),
        (own(tmp_path / "none.jsonl"), "must be a file, a folder or a dataset's id"),
        (own(tmp_path / "x.txt"), "must end in one of .jsonl, .json, .parquet, .csv"),
        (own(tmp_path / "x.parquet"), "x.parquet: must be readable; got "),
        (own(tmp_path, files=files), "dataset.files.test must be the name of a file"),
    ):
        with pytest.raises(UserError, match=message):
            load_problems(config, "test" if config.files["test"] else "train")


SETTINGS = [
    ({"path": None}, "dataset.path must name the file or folder"),
    ({"grader": "lenient"}, "dataset.grader must be one of strict, boxed, exact, choice"),
    ({"fields": FIELDS | {"hint": "h"}}, "must be one of question, answer, solution, id; got "),
    ({"fields": FIELDS | {"answer": None}}, "dataset.fields.answer must name a field"),
    ({"held_out": {"validation": 1.5, "test": 1}}, "dataset.held_out.validation must be a share"),
]


@pytest.mark.parametrize(("changes", "message"), SETTINGS)
def test_bad_settings_are_named(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        own(**{"path": "x.jsonl", **changes}).check()


def test_every_form_is_read_by_its_grader() -> None:
    for grader, form in FORMS.items():
        assert GRADERS[grader]("").answer(form.format("B" if grader == "choice" else "7")), grader
