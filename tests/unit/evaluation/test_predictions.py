"""Completions of other systems: read, graded and refused."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from reasonrl.cli.evaluate import evaluate_and_show as evaluate
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
    problems, rollouts = read_predictions(write(tmp_path, *ROWS), STRICT)
    assert [(p.id, p.answer) for p in problems] == [("a", "5"), ("Why?", "1800")]
    assert [(r.prompt.problem_id, r.completion.sample_index) for r in rollouts] == [
        ("a", 0), ("a", 1), ("a", 2), ("Why?", 0), ("Why?", 1), ("Why?", 2)
    ]  # fmt: skip
    assert [r.answer for r in rollouts] == ["5", "5", None, "1800", "7", "7"]
    assert [r.correct for r in rollouts] == [True, True, False, True, False, False]
    assert {r.completion.finish_reason for r in rollouts} == {"eos"}


def test_metrics(tmp_path: Path):
    evaluation = grade_predictions(write(tmp_path, *ROWS), STRICT, tmp_path / "verdicts")
    assert evaluation.problem_ids == ("a", "Why?")
    # a: 5, 5 and no vote: right. Why?: 7 has two votes of three: wrong.
    assert evaluation.scores["maj@3"].tolist() == [1.0, 0.0]
    # pass@k = 1 - C(3-c, k) / C(3, k); a has c = 2, Why? has c = 1.
    assert evaluation.scores["pass@1"] == pytest.approx([2 / 3, 1 / 3])
    assert evaluation.scores["pass@2"] == pytest.approx([1.0, 2 / 3])  # 1 - 1/3 for Why?
    assert evaluation.scores["pass@3"] == pytest.approx([1.0, 1.0])
    assert "maj@1" not in evaluation.scores  # nobody says which completion is the greedy one
    assert evaluation.statistics["sampled/unparsed"] == pytest.approx(1 / 6)


def test_one_completion_each(tmp_path: Path):
    rows = [row | {"completions": row["completions"][:1]} for row in ROWS]
    evaluation = grade_predictions(write(tmp_path, *rows), STRICT, tmp_path / "verdicts")
    assert {name: scores.tolist() for name, scores in evaluation.scores.items()} == {
        "pass@1": [1.0, 1.0]
    }


def test_verdicts(tmp_path: Path):
    file = write(tmp_path, *ROWS)
    verdicts = verdicts_of(file)
    grade_predictions(file, STRICT, verdicts)
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
    _, rollouts = read_predictions(write(tmp_path, "", row, ""), STRICT)
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
            "2: answer must be a number, or end in '#### NUMBER'.",
        ),
        ({"id": "b", "answer": "5"}, "2: completions must be a list of one text or more."),
        ({"id": "b", "answer": "5", "completions": []}, "2: completions must be a list of one"),
        ({"id": "b", "answer": "5", "completions": "x"}, "2: completions must be a list of one"),
        ({"id": "b", "answer": "5", "completions": ["x", 5]}, "2: completions must be a list of"),
        (
            {"id": "b", "answer": "5", "completions": ["x", "y"]},
            "2: completions must be as many for every problem; got 2 after 3.",
        ),
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
        grade_predictions(file, STRICT, tmp_path / "verdicts")
    assert str(error.value).startswith(f"{file}:{message}")
    assert list(tmp_path.iterdir()) == [file]


def test_files_without_predictions(tmp_path: Path):
    file = write(tmp_path)
    with pytest.raises(UserError, match="must hold predictions; it is empty"):
        read_predictions(file, STRICT)
    for missing in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match=f"{missing}: must be readable as UTF-8 text;"):
            read_predictions(missing, STRICT)


def test_evaluate_shows_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = write(tmp_path, *ROWS)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", [f"predictions={file}", f"runtime.outputs={tmp_path / 'o'}"])
    evaluate(config)
    shown, aside = capsys.readouterr()
    assert "predictions.jsonl: 2 problems" in shown
    rows = {line.split()[1]: line for line in shown.splitlines() if "@" in line}
    assert set(rows) == {"maj@3", "pass@1", "pass@2", "pass@3"}
    assert "50.0%" in rows["maj@3"]  # one of two
    assert "83.3%" in rows["pass@2"]  # (1 + 2/3) / 2
    assert aside == f"record: {tmp_path}/predictions.verdicts.jsonl\n"
    assert "samples without a readable answer: 16.7%" in shown  # one of six
    assert not (tmp_path / "o").exists()


def evaluated(folder: Path, *overrides: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        evaluate(compose("evaluate", [f"runtime.outputs={folder / 'o'}", *overrides]))


def test_where_nothing_is_readable_it_says_what_an_answer_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    row = {"id": "a", "answer": "3", "completions": ["The answer is 3.", "so \\boxed{3}"]}
    evaluated(tmp_path, f"predictions={write(tmp_path, row)}")
    assert "samples without a readable answer: 100.0%" in capsys.readouterr().out
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
