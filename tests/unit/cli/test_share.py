"""Sharing a policy: what is uploaded, its card, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from huggingface_hub import RepoUrl
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM, AutoTokenizer

from reasonrl.cli.main import main
from reasonrl.config.resolve import resolve
from reasonrl.runs.folder import RunFolder, Status, write_config, write_status
from reasonrl.util.atomic import write_json
from tests.helpers.configs import ROOT
from tests.helpers.finished_runs import finished

ANSWERS = {"q0": (True, ["7"]), "q1": (False, ["3"])}


def estimate(value: float, low: float, high: float) -> dict[str, Any]:
    return {"estimates": {"maj@1": {"value": value, "low": low, "high": high, "n": 2}}}


class Hub:
    """Keeps what is uploaded in a folder, as the hub would."""

    folder: Path
    calls: list[tuple[Any, ...]]
    error: Exception | None

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> RepoUrl:
        if self.error:
            raise self.error
        self.calls.append(("repo", repo, private, exist_ok))
        return RepoUrl(f"https://huggingface.co/me/{repo}")

    def create_commit(self, repo: str, operations: list[Any], *, commit_message: str) -> None:
        self.calls.append(("commit", repo, commit_message))
        for operation in operations:
            with operation.as_file() as file:
                (self.folder / operation.path_in_repo).write_bytes(file.read())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    Hub.folder, Hub.calls, Hub.error = tmp_path / "hub", [], None
    Hub.folder.mkdir()
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    return Hub


@pytest.fixture
def run(tmp_path: Path, random_policy: str) -> RunFolder:
    overrides = ["init=pretrained", "algorithm.rounds=3", "model.path=org/base"]
    made = finished(tmp_path, *overrides, after=ANSWERS, before=ANSWERS)
    shutil.copytree(random_policy, made.policy)
    write_json(made.result, {"path": "/home/me/policy", "few_shot": True, "labels": {}})
    (protocol,) = made.evaluation.iterdir()
    write_json(protocol / "before" / "metrics.json", estimate(0.1, 0.05, 0.2))
    write_json(protocol / "after" / "metrics.json", estimate(0.5, 0.4, 0.6))
    write_json(protocol / "gain.json", estimate(0.4, 0.3, 0.5))
    command = [
        "/home/me/train.py",
        "algorithm.rounds=3",
        "runtime.outputs=/home/me/o",
        "model.path=/home/me/b",
    ]
    attempt = {"command": [*command, "dataset.test_size=10"], "commit": "abc", "dirty": False}
    write_json(made.provenance, {"attempts": [{**attempt, "packages": {"torch": "2.1"}}]})
    return made


def test_what_is_uploaded_loads_with_transformers(
    run: RunFolder, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["share", str(run.path), "math"]) == 0
    assert capsys.readouterr().out == "https://huggingface.co/me/math\n"
    assert hub.calls == [
        ("repo", "math", True, True),
        ("commit", "me/math", f"Policy of {run.path.name}"),
    ]
    assert {f.name for f in hub.folder.iterdir()} == {
        "README.md",
        *(f.name for f in run.policy.iterdir()),
    }
    assert '"me/math"' in (hub.folder / "README.md").read_text()
    assert not (run.policy / "README.md").exists()
    model = AutoModelForCausalLM.from_pretrained(hub.folder)
    assert len(AutoTokenizer.from_pretrained(hub.folder)) == model.config.vocab_size
    assert main(["share", str(run.path), "math", "--public"]) == 0
    assert hub.calls[2] == ("repo", "math", False, True)


def test_the_card_says_how_it_was_made(
    run: RunFolder, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["share", str(run.path), "me/math", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert hub.calls == []
    assert yaml.safe_load(text.split("---\n")[1]) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "org/base",
        "tags": ["reasonrl", "reasoning", "ei"],
    }
    for said in (
        "- Base model: org/base",
        "`init=pretrained`",
        "- Algorithm: `ei`",
        "`rounds=3`",
        "- Reward: `sparse`",
        "12 training, 8 validation",
        "- Seed: 0",
        "Q: {question}\nA:",
        "2 solved problems come before",
        "on 2 problems",
        "| maj@1 | 10.0% [5.0, 20.0] | 50.0% [40.0, 60.0] | +40.0% [+30.0, +50.0] |",
        'AutoTokenizer.from_pretrained("me/math")',
        "python train.py algorithm.rounds=3 model.path=b dataset.test_size=10\n",
        "commit abc\n",
        "torch 2.1",
    ):
        assert said in text, said
    assert "/home/me" not in text


def test_the_card_names_data_and_reward_of_ones_own(
    tmp_path: Path, random_policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["dataset=jsonl", "dataset.path=some/data.jsonl", "init=pretrained", "prompt=chat"]
    own += ["reward=function", "reward.path=some/mine.py:score"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(compose("train", own))
    read = dataclasses.replace(config.dataset, content="0123456789abcdef")
    made = finished(tmp_path, after=ANSWERS, before=ANSWERS)
    write_config(made, dataclasses.replace(config, dataset=read))
    shutil.copytree(random_policy, made.policy)
    write_json(made.result, {"path": "policy", "few_shot": False, "labels": {}})
    assert main(["share", str(made.path), "math", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert (
        "its function is `score` of `mine.py`, which the run's folder keeps as `reward.py`" in text
    )
    (line,) = [line for line in text.splitlines() if line.startswith("- Dataset: ")]
    assert line.startswith("- Dataset: `jsonl` (data.jsonl); problems: ")
    assert line.endswith("; hash of what they hold: `0123456789abcdef`")
    assert "\n{question}\n\nEnd with a line of #### and the number.\n" in text


@pytest.mark.parametrize("fault", ["running", "no policy", "no login", "no network"])
def test_what_cannot_be_shared_is_refused(
    fault: str,
    run: RunFolder,
    hub: type[Hub],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    why = {
        "running": "must be done",
        "no policy": "must be a run that makes a policy",
        "no login": "hf auth login",
        "no network": "no route Check the name",
    }
    if fault == "running":
        write_status(run, Status.here("running", 2))
    elif fault == "no policy":
        run.result.write_text(json.dumps(None))
    elif fault == "no login":
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    else:
        hub.error = ConnectionError("no route")
    assert main(["share", str(run.path), "math"]) == 2
    assert why[fault] in capsys.readouterr().err
    assert hub.calls == []


@pytest.mark.parametrize("repo", ["my team/math", "a/b/c", "-math", "math.git"])
def test_a_name_that_the_hub_does_not_take_is_told_before_anything_else(
    repo: str, run: RunFolder, hub: type[Hub], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["share", str(run.path), "--dry-run", "--", repo]
    assert main(command) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"repo={repo} must be a name that the hub takes: Repo" in said
    assert hub.calls == []


def test_before_is_what_the_run_that_made_the_start_has(
    tmp_path: Path, random_policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sft = finished(tmp_path, "algorithm=sft", after=ANSWERS, before=ANSWERS)
    ei = finished(tmp_path, "algorithm=ei", after=ANSWERS)
    shutil.copytree(random_policy, ei.policy)
    write_json(ei.result, {"path": "policy", "few_shot": False, "labels": {}})
    for made, value in ((sft, 0.25), (ei, 0.75)):
        (protocol,) = made.evaluation.iterdir()
        write_json(protocol / "after" / "metrics.json", estimate(value, 0.2, 0.8))
    assert main(["share", str(ei.path), "math", "--dry-run"]) == 0
    row = "| maj@1 | 25.0% [20.0, 80.0] | 75.0% [20.0, 80.0] | – |"
    assert row in capsys.readouterr().out
