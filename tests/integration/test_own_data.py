"""docs/own-data.md: its file and its commands, as they stand there."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer, GenerationConfig

from reasonrl.config.resolve import resolve
from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline.examples import examples
from reasonrl.pipeline.planner import plan
from reasonrl.util.errors import UserError
from tests.helpers.configs import ROOT
from tests.helpers.tokenizers import save_instruct_model

PAGE = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
REWARDS = (ROOT / "docs" / "own-rewards.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\{.+\}$", PAGE, re.MULTILINE)
WITH_SOLUTIONS, WITHOUT, ALL_OF_ONES_OWN = (
    shlex.split(command.replace("\\\n", " "))[1:]
    for command in re.findall(r"^```bash\n(.+?)^```", PAGE, re.DOTALL | re.MULTILINE)
)
SMALL = ["algorithm.rounds=1", "algorithm.num_samples_per_prompt=[2]", "algorithm.epochs=1"]
SMALL += ["init.sft.epochs=1", "dataset.max_new_tokens=24", "evaluation.num_samples_per_prompt=2"]
SMALL += ["runtime.threads=1", "tracking=none"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds riddles.jsonl: thirty lines like the three of the page."""
    rows = [
        dict(json.loads(line), riddle=json.loads(line)["riddle"].replace(".", f" {extra}.", 1))
        for line, extra in itertools.product(LINES, ["", *(f"and {i} books" for i in range(9))])
    ]
    text = "".join(json.dumps(row).replace(" .", ".") + "\n" for row in rows)
    (tmp_path / "riddles.jsonl").write_text(text)
    return tmp_path


def test_the_first_command_makes_a_run_and_shows_what_it_reads(folder: Path) -> None:
    program, *overrides = WITH_SOLUTIONS
    command = [sys.executable, str(ROOT / program), *overrides, *SMALL]
    command.append(f"model.path={ROOT / 'models' / 'tiny'}")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = " ".join(done.stderr.split())
    assert said.count("gold answer") == 3
    assert "reference 3 + 5 = 8 #### 8 gold answer 8 strict reads 8" in said
    (run,) = folder.glob("outputs/runs/ei-sparse-tiny-sft-jsonl-s0-*")
    assert json.loads((run / "status.json").read_text())["state"] == "done"


def test_an_instruct_model_its_own_data_and_its_own_reward_make_a_policy(folder: Path) -> None:
    """By the page's command alone; the policy's folder says where its answers end."""
    (code,) = re.findall(r"^```python title=my_reward.py\n(.+?)^```", REWARDS, re.DOTALL | re.M)
    (folder / "my_reward.py").write_text(code)
    random = save_instruct_model(folder / "instruct")
    program, *overrides = (o.replace("FOLDER_OR_HUB_ID", random) for o in ALL_OF_ONES_OWN)
    # A random policy is right by no chance: what pleases the function is learnt from.
    own = [*SMALL, "reward.threshold=0.2", "dataset.train_size=8", "model.compute_dtype=float32"]
    command = [sys.executable, str(ROOT / program), *overrides, *own, "init.sft.learning_rate=0.01"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = "".join(done.stderr.split())
    assert "<|im_end|><|im_start|>assistant" in said
    assert "3+5=8####8<|im_end|>" in said
    (run,) = folder.glob("outputs/runs/ei-function-*")
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    policy = run / "policy"
    tokenizer = AutoTokenizer.from_pretrained(policy)
    assert tokenizer.chat_template
    ends = GenerationConfig.from_pretrained(policy).eos_token_id
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ends == [256, turn]


def resolved(folder: Path, overrides: list[str]) -> TrainConfig:
    own = [f"dataset.path={folder / 'riddles.jsonl'}", f"runtime.outputs={folder / 'outputs'}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("train", [*overrides, *own, "tracking=none"]))


def test_without_solutions_it_is_planned_from_the_pretrained_model_alone(folder: Path) -> None:
    planned = plan(resolved(folder, WITHOUT[1:]))
    assert {problem.solution for problem in planned.train} == {"#### 8", "#### 5", "#### 13"}
    assert len([*examples(planned)]) == 3
    sizes = [len(of) for of in (planned.train, planned.exemplars, planned.validation, planned.test)]
    assert sizes == [21, 2, 1, 6]
    from_references = [word for word in WITHOUT[1:] if word != "init=pretrained"]
    with pytest.raises(UserError, match="dataset=jsonl must have solutions to fine-tune on"):
        resolved(folder, from_references)
