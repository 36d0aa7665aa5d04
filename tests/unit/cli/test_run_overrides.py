"""What evaluate.py is told of a finished run: it is applied, or refused with what to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from reasonrl.cli import evaluate as module
from reasonrl.cli.evaluate import (
    _Asked,
    _asked,
    evaluate_all_and_show,
    evaluate_and_show,
)
from reasonrl.config.resolve import resolve
from reasonrl.evaluation.summary import Evaluation
from reasonrl.runs.folder import RunFolder, read_config, write_config
from reasonrl.types import SavedPolicy
from reasonrl.util.atomic import write_json
from reasonrl.util.errors import UserError
from reasonrl.util.progress import output
from tests.helpers.configs import ROOT, TINY
from tests.helpers.gsm8k_files import write_gsm8k

OWN = ["dataset=gsm8k", "dataset.test_size=10", "dataset.max_new_tokens=80", "algorithm=sft"]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # model.path=models/tiny


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run on files in GSM8K's format, which has a policy."""
    data = write_gsm8k(tmp_path / "data")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", [*OWN, f"dataset.path={data}", "init=pretrained"])
    run = RunFolder(tmp_path / "sft-1a2b3c4d")
    write_config(run, resolve(composed))
    write_json(run.result, asdict(SavedPolicy(str(TINY), few_shot=False)))
    return run


@pytest.fixture
def asked(run: RunFolder) -> Callable[..., _Asked]:
    def ask(*overrides: str) -> _Asked:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("evaluate", [f"run={run.path}", *overrides])
        return _asked(config, overrides)

    return ask


def test_the_rest_is_as_the_run_is(asked: Callable[..., _Asked]):
    one = asked()
    assert (one.config.dataset.name, one.config.dataset.max_new_tokens) == ("gsm8k", 80)
    assert len(one.problems) == 10
    assert one.config.evaluation.num_samples_per_prompt == 96


def test_a_run_is_named_by_a_part_of_its_name(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def compose_evaluate(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose("evaluate", list(overrides))

    named = tmp_path / "outputs" / "runs" / run.path.name
    named.parent.mkdir(parents=True)
    run.path.rename(named)
    said = ["run=1a2b", f"runtime.outputs={tmp_path / 'outputs'}"]
    one = _asked(compose_evaluate(*said), said)
    assert (one.name, len(one.problems)) == (run.path.name, 10)
    assert named in one.record.parents
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1a2b").mkdir()  # which is no run
    assert _asked(compose_evaluate(*said), said).name == one.name
    with pytest.raises(UserError, match="reward_model must name a run; got nothing"):
        _asked(compose_evaluate(*said, "reward_model="), said)


def test_what_no_run_depends_on_is_applied(asked: Callable[..., _Asked], tmp_path: Path):
    assert len(asked("dataset.test_size=4").problems) == 4
    assert asked("model.resources.gpus=2").config.model.resources.gpus == 2
    assert asked("evaluation.temperature=1").config.evaluation.temperature == 1
    assert asked("sampler.batch_size=3", "runtime.threads=1").config.sampler.batch_size == 3
    other = write_gsm8k(tmp_path / "other", lambda row, _: row | {"answer": "#### 3"})
    elsewhere = asked(f"dataset.path={other}")
    assert {problem.answer for problem in elsewhere.problems} == {"3"}
    assert elsewhere.record != asked().record


def test_what_says_the_same_as_the_run_is_no_matter(asked: Callable[..., _Asked]):
    same = ["dataset=gsm8k", "model=tiny", "seed=0", "dataset.max_new_tokens=80", "prompt=plain"]
    assert asked(*same).record == asked().record


def test_an_older_run_is_asked_plainly(asked: Callable[..., _Asked], run: RunFolder):
    stored = OmegaConf.load(run.config)
    del stored["prompt"]
    OmegaConf.save(stored, run.config)
    assert asked("prompt=plain").config.prompt.name == "plain"
    with pytest.raises(UserError, match="prompt=chat must be the run's own, plain,"):
        asked("prompt=chat")


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["model=small"], "model=small must be the run's own, tiny,"),
        (["dataset=svamp"], "dataset=svamp must be the run's own, gsm8k,"),
        (["prompt=chat"], "prompt=chat must be the run's own, plain,"),
        (["seed=3"], "seed=3 must be the run's own, 0,"),
        (["dataset=gsm8k", "dataset.annotations=false"], "must be the run's own, true,"),
        (["dataset.max_new_tokens=400"], "must be the run's own, 80, with which its policy has"),
        (["model.path=models/small"], "must be the run's own, models/tiny,"),
        (["scale=medium"], "scale=medium must be left out"),
    ],
)
def test_what_cannot_be_applied_is_refused(
    asked: Callable[..., _Asked], overrides: list[str], rule: str
):
    with pytest.raises(UserError, match=f"{rule}.*Leave it out, or evaluate the policy as a model"):
        asked(*overrides)


def test_a_split_must_be_one_of_the_run_s_own_dataset(asked: Callable[..., _Asked]):
    """Stories, the command's dataset, would have it."""
    with pytest.raises(
        UserError, match=r"split=ood must be one of train, validation, test, platinum, plus, "
    ):
        asked("evaluation.split=ood")


# Tells what evaluate.py says of each command, and then whether it has imported torch.
TOLD = """
import sys
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from reasonrl.cli.evaluate import evaluate_and_show
from reasonrl.util.errors import UserError
initialize_config_dir(sys.argv[1], version_base="1.3")
for command in sys.argv[2:]:
    said = command.split()
    try:
        evaluate_and_show(compose("evaluate", said), said)
    except UserError as error:
        print(error)
print("torch" in sys.modules)
"""


def test_mistakes_are_told_without_torch(run: RunFolder):
    mistakes = {
        f"run={run.path} evaluation.num_samples_per_prompt=0": "evaluation.num_samples_per_prompt "
        "must be 1 or more; got 0.",
        f"run={run.path} reward_model=none": "reward_model=none must be a run's folder, or a part",
        f"run={run.path} reward_model={run.path}": "reward_model=",
        "evaluation.num_samples_per_prompt=0": "evaluation.num_samples_per_prompt must be 1 or",
    }
    command = [sys.executable, "-c", TOLD, str(ROOT / "conf"), *mistakes]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *lines, torch = told.stdout.splitlines()
    assert torch == "False"
    for line, mistake in zip(lines, mistakes.values(), strict=True):
        assert line.startswith(mistake)


def test_what_ends_completions_may_not_stand_in_the_answers_of_what_is_asked(tmp_path: Path):
    data = write_gsm8k(tmp_path)
    said = ["dataset=gsm8k", f"dataset.path={data}", "dataset.stop=['####']"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("evaluate", said)
    with pytest.raises(UserError, match=r"must not be in an answer, .*; got 12 of 12 reference"):
        _asked(config, said)


def test_a_record_is_among_the_outputs_where_the_run_may_not_be_written_to(
    asked: Callable[..., _Asked], run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert run.path in asked().record.parents
    monkeypatch.setattr("os.access", lambda path, _: run.path not in (path, *Path(path).parents))
    record = asked(f"runtime.outputs={tmp_path / 'mine'}").record
    assert record.parents[2] == tmp_path / "mine"
    assert record.name == "after"


def test_a_model_s_record_is_of_its_weights_and_problems(tmp_path: Path):
    def record(*overrides: str) -> Path:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("evaluate", [f"dataset.path={tmp_path / 'data'}", *shared, *overrides])
        return _asked(config, []).record

    shared = ["dataset=gsm8k", "dataset.num_exemplars=0"]
    write_gsm8k(tmp_path / "data")
    first = record()
    assert record() == first
    assert record("model.path=models/small") != first
    write_gsm8k(
        tmp_path / "data", lambda row, of: row | {"answer": "#### 3"} if of == "test" else row
    )
    assert record() != first


def all_right(asked: _Asked, *_: object) -> Evaluation:
    right = np.ones(len(asked.problems))
    scores = {"maj@1": right, "maj@2": right, "pass@1": right, "pass@2": right}
    ids = tuple(problem.id for problem in asked.problems)
    return Evaluation(ids, scores, {"sampled/unparsed": 0.0})


def test_several_are_one_table(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(output, "width", 160)
    monkeypatch.setattr(module, "_evaluate", all_right)
    points = {}
    for size in (4, 5):
        said = (f"run={run.path}", f"dataset.test_size={size}")
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            points[said] = compose("evaluate", list(said))
    evaluate_all_and_show(points)
    told = capsys.readouterr()
    lines = [line for line in told.out.splitlines() if line.strip()]
    assert lines[0].startswith("2 evaluations")
    assert lines[2].split() == ["┃", "run", "┃", "maj@1", "┃", "maj@2", "┃", "pass@2", "┃"]
    said = "\n".join(lines)
    assert said.count("sft-1a2b3c4d") == told.err.count("record: ") == 2
    assert "4 test problems" in said
    assert "test_size=5" in said


@pytest.mark.parametrize("kind", ["csv", "json", "markdown"])
def test_programs_are_given_every_estimate_of_several(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
):
    monkeypatch.setattr(module, "_evaluate", all_right)
    said = (f"run={run.path}", "dataset.test_size=4", f"format={kind}")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        evaluate_all_and_show({said: compose("evaluate", list(said))})
    shown = capsys.readouterr().out
    assert "pass@2" in shown
    assert ("pass@1" in shown) == (kind != "markdown")


def test_several_splits_are_evaluated_each_by_itself(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    data = Path(str(read_config(run).dataset.path))
    (data / "platinum.jsonl").write_text((data / "test.jsonl").read_text())
    monkeypatch.setattr(output, "width", 160)
    monkeypatch.setattr(module, "_evaluate", all_right)
    said = (f"run={run.path}", "evaluation.split=[test,platinum]", "dataset.test_size=4")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        evaluate_and_show(compose("evaluate", list(said)), said)
    told = capsys.readouterr()
    assert "4 test problems" in told.out
    assert "4 platinum problems" in told.out
    records = [line for line in told.err.splitlines() if line.startswith("record: ")]
    assert ["/test-n4-" in record for record in records] == [True, False]
    assert ["/platinum-n4-" in record for record in records] == [False, True]


def test_a_split_that_is_named_twice_is_refused():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("evaluate", ["evaluation.split=[test,ood,test]"])
    with pytest.raises(UserError, match=r"split must name each split once; got test again"):
        evaluate_and_show(config)


def test_no_split_at_all_is_refused():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("evaluate", ["evaluation.split=[]"])
    with pytest.raises(UserError, match=r"evaluation\.split must name a split, or several; got"):
        evaluate_and_show(config)
