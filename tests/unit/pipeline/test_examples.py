"""The first problems of one's own data, as they are shown before anything is computed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra import compose, initialize_config_dir
from rich.console import Console

from reasonrl.config.resolve import resolve
from reasonrl.grading import grader_of
from reasonrl.pipeline.examples import examples
from reasonrl.problems import load_problems
from tests.helpers.configs import ROOT


def shown(folder: Path, rows: list[dict[str, Any]], *overrides: str) -> list[list[str]]:
    """The lines of each example of a file with these rows, without the space around their words."""
    file = folder / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["dataset=jsonl", f"dataset.path={file}", "init=pretrained", *overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(compose("train", own))
    planned: Any = SimpleNamespace(
        config=config,
        train=load_problems(config.dataset, "train"),
        grader=grader_of(config.dataset),
        has_model=False,
    )
    found = []
    for table in examples(planned):
        console = Console(width=80)
        with console.capture() as printed:
            console.print(table)
        lines = [" ".join(line.split()) for line in printed.get().splitlines()]
        found.append([line for line in lines if line])
    return found


def test_the_first_three_problems_are_shown_as_they_are_used(tmp_path: Path) -> None:
    rows = [
        {"question": f"How many are {i} [and 1]?", "answer": i + 1, "text": f"It is {i + 1}."}
        for i in range(10)
    ]
    own = ["dataset.fields.solution=text", "dataset.held_out.validation=1"]
    first, *others = shown(tmp_path, rows, *own, "dataset.held_out.test=1")
    assert first == [
        "jsonl-train-0",
        "prompt Q: How many are 0 [and 1]?",
        "A:",
        "reference It is 1.",
        "#### 1",
        "gold answer 1",
        "strict reads 1",
    ]
    assert len(others) == 2


def test_without_solutions_the_reference_is_the_answer(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": "\\frac12"} for i in range(6)]
    for example in shown(tmp_path, rows, "dataset.grader=boxed"):
        assert example[-3:] == [
            "reference \\boxed{\\frac12}",
            "gold answer \\frac12",
            "boxed reads \\frac12",
        ]


def test_of_a_dataset_of_known_form_nothing_is_shown() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        planned: Any = SimpleNamespace(config=resolve(compose("train", [])))
    assert [*examples(planned)] == []
