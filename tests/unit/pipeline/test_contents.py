"""Other data or weights under the same settings are another run; the same elsewhere are not."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from reasonrl.config.resolve import resolve
from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.planner import Planner, plan
from reasonrl.policy.policy import Policy, save_policy
from reasonrl.runs.folder import (
    GAIN,
    RunFolder,
    Status,
    is_done,
    read_config,
    write_config,
    write_status,
)
from reasonrl.types import SavedPolicy
from reasonrl.util import digest
from reasonrl.util.atomic import write_json
from reasonrl.util.errors import UserError
from tests.helpers.configs import ROOT
from tests.helpers.gsm8k_files import Row, write_gsm8k

SMALL = ["algorithm=sft", "init=pretrained", "tracking=none", "dataset.train_size=12"]
SMALL += ["dataset.num_exemplars=0", "dataset.validation_size=8", "dataset.test_size=10"]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # model.path=models/tiny


@pytest.fixture
def configured(tmp_path: Path) -> Callable[..., TrainConfig]:
    def configure(*overrides: str) -> TrainConfig:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            outputs = f"runtime.outputs={tmp_path / 'outputs'}"
            return resolve(compose("train", [outputs, *SMALL, *overrides]))

    return configure


@pytest.fixture
def planned(configured: Callable[..., TrainConfig]) -> Callable[..., Plan]:
    return lambda *overrides: plan(configured(*overrides))


def files(folder: Path) -> list[str]:
    return ["dataset=gsm8k", f"dataset.path={folder}"]


def finish(one: Plan) -> None:
    """As if the run had been made and evaluated."""
    write_config(one.run, one.config)
    write_status(one.run, Status.here("done", 1))
    write_json(one.run.evaluated(one.config.protocol) / GAIN, {"estimates": {}})
    assert is_done(one.run)


def mended(name: str) -> Callable[[Row, str], Row]:
    """A change of the solutions in one of the two files."""
    return lambda row, of: row | {"answer": "1+1=2\n" + row["answer"]} if of == name else row


def test_a_run_on_other_data_is_another_run(tmp_path: Path, planned: Callable[..., Plan]):
    """Own problems in GSM8K's format, then others under the same path and the same settings."""
    toy = write_gsm8k(tmp_path / "data")
    first = planned(*files(toy))
    finish(first)
    assert is_done(planned(*files(toy)).run)
    moved = shutil.copytree(toy, tmp_path / "moved")
    assert planned(*files(moved)).run == first.run
    write_gsm8k(toy, mended("train"))
    second = planned(*files(toy))
    assert second.run.path != first.run.path
    assert not is_done(second.run)


def test_other_test_problems_are_another_evaluation_of_the_same_run(
    tmp_path: Path, planned: Callable[..., Plan]
):
    data = write_gsm8k(tmp_path / "data")
    first = planned(*files(data))
    finish(first)
    write_gsm8k(data, mended("test"))
    second = planned(*files(data))
    assert second.run.path == first.run.path
    assert second.run.protocol != first.run.protocol
    assert not is_done(second.run)


@pytest.fixture
def save(
    make_model: Callable[..., LlamaForCausalLM], tokenizer: PreTrainedTokenizerBase
) -> Callable[[Path, int], None]:
    def save_model(folder: Path, seed: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        save_policy(Policy(make_model(seed), tokenizer), folder)

    return save_model


def test_a_run_of_other_weights_is_another_run(
    tmp_path: Path, planned: Callable[..., Plan], save: Callable[[Path, int], None]
):
    for folder in ("model", "copy"):
        save(tmp_path / folder, 0)
    first, same = (planned(f"model.path={tmp_path / name}") for name in ("model", "copy"))
    finish(first)
    assert same.run == first.run
    save(tmp_path / "model", 1)
    second = planned(f"model.path={tmp_path / 'model'}")
    assert second.run.path != first.run.path
    assert not is_done(second.run)


def test_runs_of_the_same_name_are_told_apart_by_what_they_hold(
    tmp_path: Path,
    configured: Callable[..., TrainConfig],
    planned: Callable[..., Plan],
    save: Callable[[Path, int], None],
):
    for place, seed in (("a", 0), ("b", 1), ("c", 0)):
        run = RunFolder(tmp_path / place / "best")
        write_config(run, configured())
        save(run.policy, seed)
        write_json(run.result, asdict(SavedPolicy(str(run.policy), few_shot=False)))
    a, b, c = (
        planned("init=run", f"init.run={tmp_path / place / 'best'}") for place in ("a", "b", "c")
    )
    assert a.run == c.run
    assert a.run.path != b.run.path


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path, planned: Callable[..., Plan]):
    """Its stored configuration says what it was planned with."""
    data = write_gsm8k(tmp_path / "data")
    first = planned(*files(data))
    write_config(first.run, first.config)
    stored = read_config(first.run)
    assert plan(stored).run == first.run
    for name, key in (
        ("test", "evaluation.split=test of dataset=gsm8k"),
        ("train", "dataset.path"),
    ):
        write_gsm8k(data, mended(name))
        with pytest.raises(UserError, match=f"^{key}.* must hold what it held when the run was"):
            plan(stored)


def test_files_are_read_once_for_many_runs(
    configured: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
):
    read: Counter[str] = Counter()

    def counted(file: Path) -> str:
        read[file.name] += 1
        return "0" * 64

    monkeypatch.setattr(digest, "_read", counted)
    planner, config = Planner(), configured("algorithm=ei", "init=sft")
    for seed in range(6):
        planner.plan(replace(config, seed=seed))
    names = ["PROVENANCE.json", "config.json", "generation_config.json", "model.safetensors"]
    names += ["tokenizer.json", "tokenizer_config.json"]
    assert read == dict.fromkeys(names, 1)
