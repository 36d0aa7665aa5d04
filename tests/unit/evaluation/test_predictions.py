"""Completions of other systems: read, graded and refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from reasonrl.cli.predictions import grade_and_show as evaluate
from reasonrl.evaluation.predictions import grade_predictions, read_predictions, verdicts_of
from reasonrl.util.errors import UserError
from tests.helpers.configs import ROOT
from tests.helpers.grading import STRICT

CONF = ROOT / "conf"
ROWS = [
    {"id": "a", "answer": "2+3=5\n#### 5", "completions": ["#### 5", "2+3=5\n#### 5.0", "5"]},
    {"question": "Why?", "answer": 1800.0, "completions": ["#### $1,800", "#### 7", "#### 7"]},
]


def write(folder: Path, *rows: dict | str) -> Path:
    file = folder / "predictions.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_read(tmp_path: Path):
    problems, rollouts = read_predictions(write(tmp_path, *ROWS), STRICT, dict)
    assert [(p.id, p.answer) for p in problems] == [("a", "5"), ("Why?", "1800")]
    assert [(r.prompt.problem_id, r.completion.sample_index) for r in rollouts] == [
        ("a", 0), ("a", 1), ("a", 2), ("Why?", 0), ("Why?", 1), ("Why?", 2)
    ]  # fmt: skip
    assert [r.answer for r in rollouts] == ["5", "5", None, "1800", "7", "7"]
    assert [r.correct for r in rollouts] == [True, True, False, True, False, False]
    assert {r.completion.finish_reason for r in rollouts} == {"eos"}


def test_metrics(tmp_path: Path):
    evaluation = grade_predictions(write(tmp_path, *ROWS), STRICT, dict, tmp_path / "verdicts")
    assert evaluation.problem_ids == ("a", "Why?")
    # a: 5, 5 and no vote: right. Why?: 7 has two votes of three: wrong.
    assert evaluation.scores["maj@3"].tolist() == [1.0, 0.0]
    # pass@k = 1 - C(3-c, k) / C(3, k); a has c = 2, Why? has c = 1.
    assert evaluation.scores["pass@1"] == pytest.approx([2 / 3, 1 / 3])
    assert evaluation.scores["pass@2"] == pytest.approx([1.0, 2 / 3])  # 1 - 1/3 for Why?
    assert evaluation.scores["pass@3"] == pytest.approx([1.0, 1.0])
    assert "maj@1" not in evaluation.scores  # nobody says which completion is the greedy one
    assert evaluation.statistics["sampled/unparsed"] == pytest.approx(1 / 6)
    assert evaluation.scores["unparsed"] == pytest.approx([1 / 3, 0.0])
    assert "sampled/mean_length" not in evaluation.statistics  # nobody knows the tokens


def test_one_completion_each(tmp_path: Path):
    rows = [row | {"completions": row["completions"][:1]} for row in ROWS]
    evaluation = grade_predictions(write(tmp_path, *rows), STRICT, dict, tmp_path / "verdicts")
    assert {name: scores.tolist() for name, scores in evaluation.scores.items()} == {
        "maj@1": [1.0, 1.0],
        "pass@1": [1.0, 1.0],
        "unparsed": [0.0, 0.0],
    }


def test_verdicts(tmp_path: Path):
    file = write(tmp_path, *ROWS)
    verdicts = verdicts_of(file)
    grade_predictions(file, STRICT, dict, verdicts)
    assert verdicts == tmp_path / "predictions.verdicts.jsonl"
    lines = [json.loads(line) for line in verdicts.read_text().splitlines()]
    assert len(lines) == 6
    assert lines[1] == {"id": "a", "completion": 1, "answer": "5", "gold": "5", "correct": True}
    assert lines[2] == {"id": "a", "completion": 2, "answer": None, "gold": "5", "correct": False}
    assert lines[4] == {
        "id": "Why?", "completion": 1, "answer": "7", "gold": "1800", "correct": False
    }  # fmt: skip


def test_text_is_read_as_it_is(tmp_path: Path):
    """Line separators of Unicode inside a text, and blank lines between, break no line."""
    row = '{"id": "a", "answer": "5", "completions": ["line\u2028#### 5", "one\u0085\\n#### 5"]}'
    _, rollouts = read_predictions(write(tmp_path, "", row, ""), STRICT, dict)
    assert [r.completion.text for r in rollouts] == ["line\u2028#### 5", "one\u0085\n#### 5"]
    assert [r.answer for r in rollouts] == [None, "5"]  # #### must open its line


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": "b"', "2: must be JSON;"),
        ("[]", "2: must be a JSON object; got list."),
        ({"answer": "5", "completions": ["x"]}, "2: question must be there and not empty."),
        ({"id": "b", "completions": ["x"]}, "2: answer must be there and not empty."),
        (
            {"id": "b", "answer": "five", "completions": ["x"]},
            "2: the gold answer must be one line of #### and a number, as in: #### 18, or only "
            "what it has there; got 'five'. Other kinds of answers have another grader=.",
        ),
        ({"id": "b", "answer": "5"}, "2: completions must be a list of one text or more."),
        ({"id": "b", "answer": "5", "completions": []}, "2: completions must be a list of one"),
        ({"id": "b", "answer": "5", "completions": "x"}, "2: completions must be a list of one"),
        ({"id": "b", "answer": "5", "completions": ["x", 5]}, "2: completions must be a list of"),
        (
            {"id": "a", "answer": "5", "completions": ["x", "y", "z"]},
            "2: each problem must be there once; a is again.",
        ),
    ],
)
def test_malformed_rows_are_refused_with_file_and_line(
    tmp_path: Path, row: dict | str, message: str
):
    file = write(tmp_path, ROWS[0], row)
    with pytest.raises(UserError) as error:
        grade_predictions(file, STRICT, dict, tmp_path / "verdicts")
    assert str(error.value).startswith(f"{file}:{message}")
    assert list(tmp_path.iterdir()) == [file]


def test_files_without_predictions(tmp_path: Path):
    file = write(tmp_path)
    with pytest.raises(UserError, match="must hold predictions; it is empty"):
        read_predictions(file, STRICT, dict)
    for missing in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match=f"{missing}: must be readable as UTF-8 text;"):
            read_predictions(missing, STRICT, dict)


def test_evaluate_shows_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = write(tmp_path, *ROWS)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", [f"predictions={file}", f"runtime.outputs={tmp_path / 'o'}"])
    evaluate(config)
    shown, aside = capsys.readouterr()
    assert "predictions.jsonl: 2 problems" in shown
    rows = {line.split()[1]: line for line in shown.splitlines() if "@" in line}
    assert set(rows) == {"maj@3", "pass@1", "pass@2", "pass@3"}
    assert "unparsed │ 16.7%" in " ".join(shown.split())  # one of six
    assert "50.0%" in rows["maj@3"]  # one of two
    assert "83.3%" in rows["pass@2"]  # (1 + 2/3) / 2
    assert aside == f"record: {tmp_path}/predictions.verdicts.jsonl\n"
    record = json.loads((tmp_path / "predictions.metrics.json").read_text())
    assert record["problems"] == 2
    assert record["estimates"]["maj@3"]["value"] == 0.5
    assert record["estimates"]["unparsed"]["value"] == pytest.approx(1 / 6)
    assert record["statistics"]["pass_curve/2"] == pytest.approx(5 / 6)
    assert not (tmp_path / "o").exists()


def evaluated(folder: Path, *overrides: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        evaluate(compose("evaluate", [f"runtime.outputs={folder / 'o'}", *overrides]))


def test_where_nothing_is_readable_it_says_what_an_answer_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    row = {"id": "a", "answer": "3", "completions": ["The answer is 3.", "so \\boxed{3}"]}
    evaluated(tmp_path, f"predictions={write(tmp_path, row)}")
    assert "unparsed │ 100.0%" in " ".join(capsys.readouterr().out.split())
    (warning,) = caplog.messages
    assert warning == (
        "An answer is one line of #### and a number, as in: #### 18; all else counts as wrong."
    )


def test_names_with_brackets_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "exp [" / "old]"  # together as rich closes a style
    folder.mkdir(parents=True)
    file = write(folder, *ROWS).rename(folder / "preds[v1].jsonl")
    evaluated(tmp_path, f"predictions='{file}'")
    shown, aside = capsys.readouterr()
    assert shown.startswith("preds[v1].jsonl: 2 problems")
    assert aside == f"record: {folder}/preds[v1].verdicts.jsonl\n"


def test_the_verdicts_on_what_lies_where_one_may_not_write_are_among_the_outputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    mount = tmp_path / "mount"
    mount.mkdir()
    file = write(mount, *ROWS)
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != mount)
    evaluated(tmp_path, f"predictions={file}")
    shown, aside = capsys.readouterr()
    assert "predictions.jsonl: 2 problems" in shown
    (verdicts,) = (tmp_path / "o" / "evaluations").glob("*/predictions.verdicts.jsonl")
    assert aside == f"record: {verdicts}\n"
    assert len(verdicts.read_text().splitlines()) == 6
    assert list(mount.iterdir()) == [file]


def batch(custom_id: str, *texts: str | None, ended: str = "stop", **changes: object) -> dict:
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": ended}
        for i, text in enumerate(texts)
    ]
    body = {"object": "chat.completion", "choices": choices}
    row = {"id": "batch_req_1", "custom_id": custom_id, "error": None}
    return row | {"response": {"status_code": 200, "body": body}} | changes


FORMATS = {
    "prediction": [
        {"id": "a", "answer": "5", "prediction": "#### 5"},
        {"question": "Why?", "answer": 7, "prediction": "#### 8"},
    ],
    "completion": [
        {"id": "a", "answer": "5", "completion": "#### 5"},
        {"question": "Why?", "answer": 7, "completion": "#### 8"},
    ],
    "lm-evaluation-harness": [
        {"doc_id": "a", "doc": {"question": "Who?", "answer": "2+3=5\n#### 5"},
         "target": "2+3=5\n#### 5", "resps": [["#### 5"]], "filtered_resps": ["5"],
         "filter": "strict-match", "exact_match": 1.0},
        {"doc_id": "a", "doc": {"question": "Who?", "answer": "2+3=5\n#### 5"},
         "target": "2+3=5\n#### 5", "resps": [["#### 5"]], "filtered_resps": ["5"],
         "filter": "flexible-extract", "exact_match": 1.0},
        {"doc_id": "Why?", "doc": {"answer": "7"}, "resps": [["#### 8"]]},
    ],
    "lm-evaluation-harness, filtered": [
        {"doc_id": "a", "target": "5", "filtered_resps": ["#### 5"]},
        {"doc_id": "Why?", "target": 7, "filtered_resps": ["#### 8"]},
    ],
    "OpenAI batch": [batch("a", "#### 5"), batch("Why?", "#### 8")],
}  # fmt: skip


@pytest.mark.parametrize("rows", FORMATS.values(), ids=FORMATS)
def test_formats(tmp_path: Path, rows: list[dict]):
    problems, rollouts = read_predictions(
        write(tmp_path, *rows), STRICT, lambda: {"a": "5", "Why?": "7"}
    )
    assert [(p.id, p.answer) for p in problems] == [("a", "5"), ("Why?", "7")]
    verdicts = [(r.completion.problem_id, r.answer, r.correct) for r in rollouts]
    assert verdicts == [("a", "5", True), ("Why?", "8", False)]


def test_repeats_of_the_harness_and_choices_of_a_batch_are_samples(tmp_path: Path):
    harness = {"doc_id": 0, "target": "5", "resps": [["#### 5", "#### 6"]]}
    _, rollouts = read_predictions(write(tmp_path, harness), STRICT, dict)
    assert [r.correct for r in rollouts] == [True, False]
    cut = batch("a", "#### 5", None, ended="length")
    _, rollouts = read_predictions(write(tmp_path, cut), STRICT, lambda: {"a": "5"})
    assert [r.answer for r in rollouts] == [None, None]  # what was cut off is wrong


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"id": "a", "output": "5"},
            "must be in a known format; got the keys id, output. The known formats have the keys: "
            "id or question, answer, completions; id or question, answer, prediction;",
        ),
        ({}, "must be in a known format; got the keys (none)."),
        ({"id": "a", "answer": "5", "prediction": 5}, "prediction must be a text."),
        (
            {"doc_id": 0, "target": "5", "resps": [[[-1.5, True]]]},
            "resps must be a list of one text or more.",
        ),
        (
            batch("a", error={"code": "x"}),
            "a request must have succeeded; got error={'code': 'x'}. Send it again,",
        ),
        (
            batch("a", response={"status_code": 500, "body": {}}),
            "response.body.choices must be a list of one message or more; got status_code=500.",
        ),
        (
            batch("z", "#### 5"),
            "custom_id must be the id of a problem of the dataset, such as stories-test-0; got z.",
        ),
    ],
)
def test_what_no_format_has_is_refused(tmp_path: Path, row: dict, message: str):
    file = write(tmp_path, row)
    with pytest.raises(UserError) as error:
        read_predictions(file, STRICT, lambda: {"stories-test-0": "5"})
    assert str(error.value).startswith(f"{file}:1: {message}")


@pytest.mark.parametrize(
    ("grader", "gold", "right", "wrong"),
    [
        ("strict", 5, "#### 5.0", "#### 6"),
        ("exact", "New York", "#### new  york", "#### York"),
        ("exact", "Z\u00fcrich", "#### Zu\u0308rich", "#### Zurich"),
        ("choice", "B", "#### (B)", "#### C"),
        ("boxed", "x+1", "so \\boxed{x + 1}", "so \\boxed{x}"),
    ],
)
def test_the_grader_is_chosen(tmp_path: Path, grader: str, gold: object, right: str, wrong: str):
    row = {"id": "a", "answer": gold, "completions": [right, wrong]}
    evaluated(tmp_path, f"predictions={write(tmp_path, row)}", f"grader={grader}")
    verdicts = (tmp_path / "predictions.verdicts.jsonl").read_text().splitlines()
    assert [json.loads(line)["correct"] for line in verdicts] == [True, False]


def test_problems_with_more_completions_than_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [ROWS[0], ROWS[1] | {"completions": ["#### 7", "#### 1800"]}]
    evaluated(tmp_path, f"predictions={write(tmp_path, *rows)}", "format=json")
    shown, aside = capsys.readouterr()
    said = "problems have 2 to 3 completions: the metrics are of the first 2 of each"
    assert " ".join(aside.split()).startswith(said)
    (row,) = json.loads(shown)
    assert list(row) == ["name", "maj@2", "pass@1", "pass@2", "unparsed"]
    assert row["pass@1"]["value"] == 0.75  # both, and one of two
    assert row["unparsed"]["value"] == 0.0  # the third isn't among them
    assert len((tmp_path / "predictions.verdicts.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("csv", "predictions.jsonl,1.0,0.025000000000000022,1.0,,1,1,1.0,"),
        (
            "markdown",
            "| predictions.jsonl | 100.0% [2.5, 100.0] | 100.0% [2.5, 100.0] | 0.0% [",
        ),
        ("latex", "\\begin{tabular}{lrrr}"),
    ],
)
def test_tables_for_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, line: str
):
    row = {"id": "a", "answer": "5", "completion": "#### 5"}
    evaluated(tmp_path, f"predictions={write(tmp_path, row)}", f"format={kind}")
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run=a", "predictions=b must be evaluated by themselves; got run=a. Pass one of them."),
        ("reward_model=a", "predictions=b must be evaluated by themselves; got reward_model=a."),
        ("format=xls", "format must be one of table, csv, latex, markdown, json; got format=xls."),
        ("grader=x", "grader must be one of strict, boxed, exact, choice; got grader=x."),
    ],
)
def test_what_does_not_go_with_predictions_is_refused(tmp_path: Path, override: str, message: str):
    with pytest.raises(UserError) as error:
        evaluated(tmp_path, "predictions=b", override)
    assert str(error.value).startswith(message)


def test_a_batch_is_graded_by_the_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = write(tmp_path, batch("stories-test-0", "#### 5"), batch("stories-test-1", "5"))
    evaluated(tmp_path, f"predictions={file}", "dataset=stories")
    assert "predictions.jsonl: 2 problems" in capsys.readouterr().out


def test_predictions_need_no_torch(tmp_path: Path):
    """Nor transformers; scipy only once there are scores."""
    file = write(tmp_path, *ROWS)
    code = (
        "import sys, runpy; import reasonrl.cli.predictions\n"
        "early = {'torch', 'transformers', 'scipy.stats', 'pandas'} & {*sys.modules}\n"
        f"sys.argv = ['evaluate.py', 'predictions={file}']\n"
        "runpy.run_path('evaluate.py', run_name='__main__')\n"
        "print(early, {'torch', 'transformers', 'datasets'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "predictions.jsonl: 2 problems" in out
    assert out.endswith("set() set()\n")
