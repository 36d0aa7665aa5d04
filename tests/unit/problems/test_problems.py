"""GSM8K and SVAMP, from local files and through the `datasets` library."""

import json
import logging
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from reasonrl.config.dataset.gsm8k import GSM8KConfig
from reasonrl.config.dataset.svamp import SVAMPConfig
from reasonrl.problems import gsm8k as gsm8k_module
from reasonrl.problems import load_problems
from reasonrl.problems import svamp as svamp_module
from reasonrl.problems.sources import Row, json_lines
from reasonrl.problems.svamp import written_out
from reasonrl.types import Problem
from reasonrl.util.errors import UserError
from tests.helpers.configs import ROOT
from tests.helpers.grading import STRICT

REAL_DATA = Path(os.environ.get("REASONRL_DATA", ROOT.parent / "shared" / "data"))
needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(),
    reason=f"{REAL_DATA} is missing: set REASONRL_DATA to a folder with gsm8k/ and svamp/",
)

COMMON = {
    "train_size": None,
    "validation_size": None,
    "test_size": None,
    "num_references": None,
    "prompt": "Q: {question}\nA:",
    "stop": [],
    "max_new_tokens": 64,
    "num_exemplars": 0,
    "reward_train_size": None,
}


def gsm8k(path: Path | None, hub: str = "openai/gsm8k", **changes) -> GSM8KConfig:
    values = {**COMMON, "annotations": True, **changes}
    return GSM8KConfig(name="gsm8k", hub=hub, path=path and str(path), **values)


def svamp(path: Path | None, hub: str = "ChilleD/SVAMP", **changes) -> SVAMPConfig:
    return SVAMPConfig(name="svamp", hub=hub, path=path and str(path), **(COMMON | changes))


def gsm8k_rows(source: str, number: int) -> list[dict]:
    return [
        {
            "question": f"{source} {i}: twice {i}, and one more? ",
            "answer": f"Twice is 2*{i}=<<2*{i}={2 * i}>>{2 * i}.\n"
            f"One more is <<{2 * i}+1={2 * i + 1}>>{2 * i + 1}.\n#### {2 * i + 1}",
        }
        for i in range(number)
    ]


def svamp_rows(number: int = 1000) -> list[dict]:
    return [
        {
            "ID": f"chal-{i}",
            "Body": f"Ann had {i} pens and lost one",
            "Question": "How many are left?",
            "Equation": f"( {i}.0 - 1.0 )",
            "Answer": float(i - 1),
            "Type": "Subtraction",
        }
        for i in range(1, number + 1)
    ]


def write_lines(folder: Path, name: str, rows: list[dict]) -> None:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def gsm8k_folder(tmp_path: Path) -> Path:
    write_lines(tmp_path, "train.jsonl", gsm8k_rows("train", 300))
    write_lines(tmp_path, "test.jsonl", gsm8k_rows("test", 5))
    return tmp_path


@pytest.fixture
def svamp_folder(tmp_path: Path) -> Path:
    (tmp_path / "SVAMP.json").write_text(json.dumps(svamp_rows(), indent=4))
    return tmp_path


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes a folder in the hub's layout: a README that names the configs, and parquet files."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(config: str, **splits: list[dict]) -> str:
        folder = tmp_path / "hub"
        (folder / config).mkdir(parents=True)
        lines = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            file = f"{config}/{split}-00000-of-00001.parquet"
            pq.write_table(pa.Table.from_pylist(rows), folder / file)
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
        (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
        return str(folder)

    return write


def test_gsm8k_validation_is_the_end_of_the_training_file(gsm8k_folder: Path):
    config = gsm8k(gsm8k_folder)
    ids = {s: [p.id for p in load_problems(config, s)] for s in ("train", "validation", "test")}
    # 300 lines - 256 = 44 train.
    assert ids["train"] == [f"gsm8k-train-{i}" for i in range(44)]
    assert ids["validation"] == [f"gsm8k-train-{i}" for i in range(44, 300)]
    assert ids["test"] == [f"gsm8k-test-{i}" for i in range(5)]


def test_gsm8k_platinum_is_a_split_with_a_place_of_its_own(
    gsm8k_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = [{**row, "cleaning_status": "revised"} for row in gsm8k_rows("test", 2)]
    write_lines(gsm8k_folder, "platinum.jsonl", rows)
    read = load_problems(gsm8k(gsm8k_folder), "platinum")
    assert [(p.id, p.answer) for p in read] == [
        ("gsm8k-platinum-0", "1"),
        ("gsm8k-platinum-1", "3"),
    ]
    asked: list[tuple[object, ...]] = []

    def from_the_hub(hub: str, split: str, config: str) -> list[Row]:
        asked.append((hub, split, config))
        return [Row(row, "row") for row in rows]

    monkeypatch.setattr(gsm8k_module, "hub_rows", from_the_hub)
    assert load_problems(gsm8k(None), "platinum") == read
    assert len(load_problems(gsm8k(None), "test")) == 2
    assert asked == [("madrylab/gsm8k-platinum", "test", "main"), ("openai/gsm8k", "test", "main")]


@pytest.mark.parametrize(
    ("split", "place"),
    [
        ("symbolic", ("apple/GSM-Symbolic", "test", "main")),
        ("symbolic_p1", ("apple/GSM-Symbolic", "test", "p1")),
        ("symbolic_p2", ("apple/GSM-Symbolic", "test", "p2")),
    ],
)
def test_gsm_symbolic_has_a_split_for_each_of_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, place: tuple[str, str, str]
):
    row = {
        "id": 7,
        "instance": 3,
        "question": "Ann has 4 fish. Ben has 2 more. How many has Ben?",
        "answer": "Ben has 4 + 2 = 6 fish.\n#### 6",
        "original_id": 93,
        "original_question": "Ann has 2 fish. Ben has 3 more. How many has Ben?",
        "original_answer": "#### 5",
    }
    write_lines(tmp_path, f"{split}.jsonl", [row])
    read = load_problems(gsm8k(tmp_path), split)
    assert read == [
        Problem(
            id=f"gsm8k-{split}-0",
            question="Ann has 4 fish. Ben has 2 more. How many has Ben?",
            answer="6",
            solution="Ben has 4 + 2 = 6 fish.\n#### 6",
        )
    ]

    def from_the_hub(hub: str, split: str, config: str) -> list[Row]:
        assert (hub, split, config) == place
        return [Row(row, "row")]

    monkeypatch.setattr(gsm8k_module, "hub_rows", from_the_hub)
    assert load_problems(gsm8k(None), split) == read


def test_gsm_plus_leaves_out_what_has_no_number_as_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    rows = [
        {"question": f"{answer}?", "solution": "It is so.", "answer": answer, "seed_answer": "1"}
        for answer in ("1,800", None, "None", "about 3", "4.50")
    ]
    write_lines(tmp_path, "plus.jsonl", rows)
    with caplog.at_level(logging.INFO):
        read = load_problems(gsm8k(tmp_path), "plus")
    assert read == [
        Problem("gsm8k-plus-0", "1,800?", "1800", "It is so.\n#### 1800"),
        Problem("gsm8k-plus-4", "4.50?", "4.5", "It is so.\n#### 4.5"),
    ]
    assert caplog.messages == [
        "3 of 5 problems of GSM-Plus have no number as their answer and are left out"
    ]

    def from_the_hub(hub: str, split: str, config: None) -> list[Row]:
        assert (hub, split, config) == ("qintongli/GSM-Plus", "test", None)
        return [Row(row, "row") for row in rows]

    monkeypatch.setattr(gsm8k_module, "hub_rows", from_the_hub)
    assert load_problems(gsm8k(None), "plus") == read


def test_gsm8k_problem(gsm8k_folder: Path):
    problems = load_problems(gsm8k(gsm8k_folder), "train")
    assert problems[3] == Problem(
        id="gsm8k-train-3",
        question="train 3: twice 3, and one more?",
        answer="7",
        solution="Twice is 2*3=<<2*3=6>>6.\nOne more is <<6+1=7>>7.\n#### 7",
    )
    bare = load_problems(gsm8k(gsm8k_folder, annotations=False), "train")
    assert bare[3].solution == "Twice is 2*3=6.\nOne more is 7.\n#### 7"


def test_sizes_take_the_first(gsm8k_folder: Path):
    config = gsm8k(gsm8k_folder, train_size=2, validation_size=3, test_size=1)
    ids = {s: [p.id for p in load_problems(config, s)] for s in ("train", "validation", "test")}
    assert ids == {
        "train": ["gsm8k-train-0", "gsm8k-train-1"],
        "validation": ["gsm8k-train-44", "gsm8k-train-45", "gsm8k-train-46"],
        "test": ["gsm8k-test-0"],
    }


def test_gsm8k_through_the_datasets_library(gsm8k_folder: Path, hub_folder: Callable[..., str]):
    hub = hub_folder("main", train=gsm8k_rows("train", 300), test=gsm8k_rows("test", 5))
    for split in ("train", "validation", "test"):
        from_hub = load_problems(gsm8k(None, hub), split)
        assert from_hub == load_problems(gsm8k(gsm8k_folder), split)


def test_svamp_splits_by_place(svamp_folder: Path):
    config = svamp(svamp_folder)
    ids = {s: [p.id for p in load_problems(config, s)] for s in ("train", "validation", "test")}
    assert ids["train"] == [f"svamp-chal-{i}" for i in range(1, 631)]
    assert ids["validation"] == [f"svamp-chal-{i}" for i in range(631, 701)]
    assert ids["test"] == [f"svamp-chal-{i}" for i in range(701, 1001)]


def test_svamp_problem(svamp_folder: Path):
    assert load_problems(svamp(svamp_folder), "train")[51] == Problem(
        id="svamp-chal-52",
        question="Ann had 52 pens and lost one. How many are left?",
        answer="51",  # 51.0 in the file
        solution="52 - 1 = 51\n#### 51",
    )


def test_svamp_through_the_datasets_library(svamp_folder: Path, hub_folder: Callable[..., str]):
    """The hub's copy has a split of its own and another order: the file's order is restored."""
    rows = [row | {"Answer": str(row["Answer"])} for row in svamp_rows()]
    hub = hub_folder("default", train=rows[700:250:-1] + rows[701:], test=rows[:251])
    for split in ("train", "validation", "test"):
        from_hub = load_problems(svamp(None, hub), split)
        assert from_hub == load_problems(svamp(svamp_folder), split)


def svamp_platinum_rows() -> list[dict]:
    targets = {700: ["1"], 701: ["699.0", "699"], 702: None, 1000: ["998"]}  # 1000's own is 999
    return [
        row | {"platinum_target": targets[i], "cleaning_status": "verified"}
        for i, row in enumerate(svamp_rows(), 1)
        if i in targets
    ]


def test_svamp_platinum_has_test_problems_that_were_not_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    write_lines(tmp_path, "platinum.jsonl", svamp_platinum_rows())
    with caplog.at_level(logging.INFO):
        read = load_problems(svamp(tmp_path), "platinum")
    ask = "Ann had {} pens and lost one. How many are left?".format
    assert read == [
        Problem("svamp-chal-701", ask(701), "699", "#### 699"),
        Problem("svamp-chal-1000", ask(1000), "998", "#### 998"),
    ]
    assert caplog.messages == [
        "2 of 4 problems of SVAMP-Platinum are left out: 1 rejected ones, and 1 of the training "
        "and validation problems"
    ]

    def from_the_hub(hub: str, split: str, config: str) -> list[Row]:
        assert (hub, split, config) == ("madrylab/platinum-bench", "test", "svamp")
        return [Row(row, "row") for row in svamp_platinum_rows()]

    monkeypatch.setattr(svamp_module, "hub_rows", from_the_hub)
    assert load_problems(svamp(None), "platinum") == read


@pytest.mark.parametrize("target", [["1", "2"], ["many"], []])
def test_svamp_platinum_needs_one_number(tmp_path: Path, target: list[str]):
    write_lines(tmp_path, "platinum.jsonl", [svamp_rows()[800] | {"platinum_target": target}])
    with pytest.raises(UserError) as refused:
        load_problems(svamp(tmp_path), "platinum")
    assert str(refused.value) == (
        f"{tmp_path}/platinum.jsonl:1: platinum_target must be one number; got {target}."
    )


@pytest.mark.parametrize(
    ("body", "question"),
    [
        ("Ann had 2 pens", "Ann had 2 pens. How many?"),
        ("Ann had 2 pens. ", "Ann had 2 pens. How many?"),
        ("If Ann had 2 pens,", "If Ann had 2 pens, How many?"),
    ],
)
def test_svamp_joins_body_and_question(tmp_path: Path, body: str, question: str):
    row = {"ID": "chal-1", "Body": body, "Question": "How many?", "Equation": "2.0", "Answer": 2.0}
    (tmp_path / "SVAMP.json").write_text(json.dumps([row]))
    assert load_problems(svamp(tmp_path), "train")[0].question == question


@pytest.mark.parametrize(
    ("equation", "steps", "value"),
    [
        ("( 76.0 - 25.0 )", ["76 - 25 = 51"], 51),
        ("( ( 5.0 + 3.0 ) - 2.0 )", ["5 + 3 = 8", "8 - 2 = 6"], 6),
        # The right side is nested: it is calculated between the two others.
        ("( 10.0 - ( 2.0 * ( 6.0 / 3.0 ) ) )", ["6 / 3 = 2", "2 * 2 = 4", "10 - 4 = 6"], 6),
        ("( 7.0 / 2.0 )", ["7 / 2 = 3.5"], Fraction(7, 2)),
        ("( 1.0 / 3.0 )", ["1 / 3 = 1/3"], Fraction(1, 3)),
        ("( 0.1 + 0.2 )", ["0.1 + 0.2 = 0.3"], Fraction(3, 10)),  # 0.30000000000000004 as floats
        ("8.0", [], 8),
    ],
)
def test_equations_are_written_out(equation: str, steps: list[str], value: Fraction):
    assert written_out(equation) == (steps, value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "x"', "train.jsonl:2: must be JSON"),
        ('["x", "#### 3"]', "train.jsonl:2: must be a JSON object; got list."),
        ('{"question": "x"}', "train.jsonl:2: answer must be there and not empty."),
        ('{"question": " ", "answer": "#### 3"}', "train.jsonl:2: question must be there"),
        (
            '{"question": "x", "answer": "three"}',
            "train.jsonl:2: answer must end in a line '#### NUMBER'.",
        ),
    ],
)
def test_malformed_gsm8k_names_file_and_line(tmp_path: Path, line: str, message: str):
    good = json.dumps({"question": "x", "answer": "#### 3"})
    (tmp_path / "train.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError) as error:
        load_problems(gsm8k(tmp_path), "train")
    assert f"{tmp_path}/{message}" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Answer": 3.0}, "entry 2: Equation must give Answer=3; got 1."),
        ({"Answer": "many"}, "entry 2: Answer must be a number; got 'many'."),
        ({"Answer": None}, "entry 2: Answer must be there and not empty."),
        ({"Equation": "( 2.0 - "}, "entry 2: Equation must be arithmetic on numbers;"),
        ({"Equation": "( x - 1.0 )"}, "entry 2: Equation must be arithmetic on numbers; x is"),
        ({"Equation": "( 2.0 / 0.0 )"}, "entry 2: Equation must be arithmetic on numbers;"),
        ({"Equation": "__import__('os')"}, "entry 2: Equation must be arithmetic on numbers;"),
    ],
)
def test_malformed_svamp_names_file_and_entry(tmp_path: Path, change: dict, message: str):
    first, second = svamp_rows(2)
    (tmp_path / "SVAMP.json").write_text(json.dumps([first, second | change]))
    with pytest.raises(UserError) as error:
        load_problems(svamp(tmp_path), "train")
    assert f"{tmp_path}/SVAMP.json, {message}" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"ID": "chal-1"},\n{]', "SVAMP.json:3: must be JSON;"),
        ('{"ID": "chal-1"}', "SVAMP.json: must be a JSON array of objects."),
        ("[1, 2]", "SVAMP.json: must be a JSON array of objects."),
    ],
)
def test_svamp_file_that_is_no_array(tmp_path: Path, text: str, message: str):
    (tmp_path / "SVAMP.json").write_text(text)
    with pytest.raises(UserError) as error:
        load_problems(svamp(tmp_path), "train")
    assert f"{tmp_path}/{message}" in str(error.value)


@pytest.mark.parametrize(("make", "name"), [(gsm8k, "train.jsonl"), (svamp, "SVAMP.json")])
def test_missing_and_unreadable_files(tmp_path: Path, make: Callable, name: str):
    with pytest.raises(UserError, match=f"dataset.path={tmp_path} must be a folder that holds"):
        load_problems(make(tmp_path), "train")
    (tmp_path / name).write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=f"{tmp_path}/{name}: must be readable as UTF-8 text;"):
        load_problems(make(tmp_path), "train")


def test_empty_splits(tmp_path: Path):
    (tmp_path / "test.jsonl").write_text("\n")
    with pytest.raises(UserError, match="dataset=gsm8k must have problems in its split test; got"):
        load_problems(gsm8k(tmp_path), "test")
    (tmp_path / "SVAMP.json").write_text("[]")
    with pytest.raises(UserError, match="dataset=svamp must have problems in its split train; got"):
        load_problems(svamp(tmp_path), "train")


def test_hub_that_has_no_such_dataset(tmp_path: Path, hub_folder: Callable[..., str]):
    with pytest.raises(UserError, match=r"dataset\.hub=\S+ must be a dataset the hub can serve"):
        load_problems(gsm8k(None, str(tmp_path / "nothing")), "train")
    hub = hub_folder("socratic", train=gsm8k_rows("train", 3))
    with pytest.raises(UserError, match="got ValueError: BuilderConfig 'main' not found"):
        load_problems(gsm8k(None, hub), "train")


def test_svamp_on_the_hub_needs_numbered_ids(hub_folder: Callable[..., str]):
    rows = svamp_rows(2)
    hub = hub_folder("default", train=[rows[0] | {"ID": "first"}], test=rows[1:])
    with pytest.raises(UserError, match=r"hub train, row 0: ID must be chal-NUMBER; got 'first'."):
        load_problems(svamp(None, hub), "train")


@pytest.mark.parametrize("key", ["question", "answer"])
def test_half_a_character_is_named_with_its_place(tmp_path: Path, key: str):
    """Of an emoji in JSON's escapes, cut in its midst."""
    row = {"question": "1 + 2?", "answer": "#### 3"}
    broken = json.dumps(row | {key: f"{row[key]} \ud83d"})
    (tmp_path / "test.jsonl").write_text(f"{json.dumps(row)}\n{broken}\n")
    with pytest.raises(UserError) as refused:
        load_problems(gsm8k(tmp_path), "test")
    assert str(refused.value) == (
        f"{tmp_path}/test.jsonl:2: must be valid Unicode; got '\\ud83d', half of a character. "
        "Remove it."
    )
    (tmp_path / "SVAMP.json").write_text(f"[{json.dumps(row)}, {broken}]")
    with pytest.raises(
        UserError, match=r"SVAMP.json, entry 2: must be valid Unicode; got '.ud83d'"
    ):
        load_problems(svamp(tmp_path), "train")


def test_a_whole_character_in_escapes_is_read(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": "\\ud83d\\ude00"}')
    assert [row.values["a"] for row in json_lines(file)] == ["😀"]


def test_a_line_ends_at_a_newline_only(tmp_path: Path):
    """JSON strings may hold the line separators of Unicode as they are."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"a": "one\u2028two\x85three"}\r\n\n{"a": "four"}', encoding="utf-8")
    rows = list(json_lines(file))
    assert [row.values["a"] for row in rows] == ["one\u2028two\x85three", "four"]
    assert [row.place for row in rows] == [f"{file}:1", f"{file}:3"]


def real(name: str, split: str) -> list[Problem]:
    make = {"gsm8k": gsm8k, "svamp": svamp}[name]
    return load_problems(make(REAL_DATA / name), split)


@needs_real_data
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("gsm8k", {"train": 7217, "validation": 256, "test": 1319}),  # 7,473 - 256 = 7,217
        ("svamp", {"train": 630, "validation": 70, "test": 300}),  # paper: 700 and 300
    ],
)
def test_real_data(name: str, counts: dict[str, int]):
    splits = {split: real(name, split) for split in counts}
    assert {split: len(problems) for split, problems in splits.items()} == counts
    every = [p for problems in splits.values() for p in problems]
    assert len({p.id for p in every}) == sum(counts.values())
    for problem in every:
        assert STRICT.answer(problem.solution) == problem.answer
    questions = {split: {p.question for p in problems} for split, problems in splits.items()}
    assert not questions["train"] & questions["test"]
    assert not questions["validation"] & questions["test"]
    assert not questions["train"] & questions["validation"]


@needs_real_data
def test_real_problems():
    # The only entry whose Answer (1.0) isn't what its Equation gives: 4 apples - 2 picked + 3 new.
    erratum = real("svamp", "validation")[49]
    assert (erratum.id, erratum.answer) == ("svamp-chal-680", "5")
    assert erratum.solution == "4 - 2 = 2\n2 + 3 = 5\n#### 5"
    assert real("gsm8k", "test")[0].answer == "18"
    first = real("svamp", "train")[0]
    assert (first.answer, first.solution) == ("51", "76 - 25 = 51\n#### 51")
    assert first.question == (
        "Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on each pack. "
        "How much do you have to pay to buy each pack?"
    )
