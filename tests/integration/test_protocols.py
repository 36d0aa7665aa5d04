"""A finished run evaluated by a second protocol: nothing is trained, nobody mixes the two up."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
from hydra import compose, initialize_config_dir

from reasonrl.cli.evaluate import evaluate_and_show as evaluate_py
from reasonrl.config.resolve import resolve
from reasonrl.config.schema import TrainConfig
from reasonrl.evaluation.summary import read_estimates
from reasonrl.pipeline.comparison import show_comparison
from reasonrl.pipeline.estimate import work
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.planner import plan
from reasonrl.pipeline.results import result_of, starting_policy
from reasonrl.report.run_data import read_run
from reasonrl.report.wandb_mirror import _evaluations
from reasonrl.runs.folder import RunFolder, Status, is_done, read_status, run_folder, write_status
from reasonrl.util.errors import UserError
from reasonrl.util.progress import Progress
from tests.helpers.configs import ROOT, SMALL, small_config

EI = ["algorithm.rounds=1", "algorithm.batch_size=8", "init.sft.batch_size=8"]
K2, K3 = ("evaluation.num_samples_per_prompt=2", "evaluation.num_samples_per_prompt=3")
FIRST, SECOND = "test-n10-k2-t0.7", "test-n10-k3-t0.7"


@dataclass(frozen=True)
class Twice:
    """A run evaluated by one protocol, then by another. learnt: what training had left before."""

    configure: Callable[..., TrainConfig]
    first: Plan
    second: Plan
    learnt: dict[Path, tuple[int, bytes]]


def what_training_left(planned: Plan) -> dict[Path, tuple[int, bytes]]:
    """When it was written, and what it is, of each file that training leaves, of all runs."""
    files: list[Path] = []
    for one in planned.in_order():
        path = one.run.path
        files += [path / "metrics.jsonl", path / "result.json", *path.glob("rollouts/*")]
        files += path.glob("policy/*")
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files if file.exists()}


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Twice:
    configure = partial(small_config, tmp_path_factory.mktemp("twice") / "outputs")
    first, second = (plan(configure(*EI, k)) for k in (K2, K3))
    ensure_done(first, Progress())
    learnt = what_training_left(first)
    assert is_done(first.run)
    assert not is_done(second.run)
    # Two evaluations of 10 problems, greedy and 3 samples, and nothing to learn.
    assert work(second).completions == 40
    assert work(second).examples == 0
    ensure_done(second, Progress())
    return Twice(configure, first, second, learnt)


def test_another_protocol_is_another_evaluation_of_the_same_run(twice: Twice):
    assert twice.first.run.path == twice.second.run.path
    assert len(list(twice.first.run.path.parent.iterdir())) == 2  # with the SFT run
    assert is_done(twice.first.run)
    assert is_done(twice.second.run)


def test_nothing_is_trained(twice: Twice):
    assert len(twice.learnt) > 10
    assert what_training_left(twice.second) == twice.learnt
    status = read_status(twice.second.run)
    assert status is not None
    assert (status.state, status.attempt) == ("done", 2)


def test_both_evaluations_are_kept_and_each_gain_is_between_equals(twice: Twice):
    for protocol, most in ((FIRST, "pass@2"), (SECOND, "pass@3")):
        folder = twice.first.run.evaluation / protocol
        assert {f.name for f in folder.iterdir()} == {"after", "gain.json"}
        assert most in read_estimates(folder / "gain.json")
        sft = twice.first.prerequisites["init"].run.evaluation / protocol
        assert {f.name for f in sft.iterdir()} == {"before", "after", "gain.json"}
    for planned, names in ((twice.first, "maj@2"), (twice.second, "maj@3")):
        result = result_of(planned, Progress())
        for evaluation in (result.before, result.after):
            assert [*evaluation.scores][:2] == ["maj@1", names]


def test_the_comparison_says_which_it_shows(twice: Twice, capsys: pytest.CaptureFixture[str]):
    for planned, protocol in ((twice.first, FIRST), (twice.second, SECOND)):
        sft = planned.prerequisites["init"]
        show_comparison({("algorithm=ei",): planned, ("algorithm=sft",): sft})
        said = capsys.readouterr().out
        assert protocol in said
        assert ({FIRST, SECOND} - {protocol}).pop() not in said


def test_the_page_shows_the_sweep_s_and_names_the_other(twice: Twice):
    needs = [twice.first.prerequisites["init"].run.path.name]
    shown = read_run(twice.first.run, ["algorithm=ei"], needs)
    assert shown.protocol == FIRST
    assert {key for key in shown.estimates if "maj@" in key} == {
        *(f"{kind}/maj@{k}" for kind in ("before", "after", "gain") for k in (1, 2)),
        *(f"{SECOND}/{kind}/maj@{k}" for kind in ("after", "gain") for k in (1, 3)),
    }
    other = read_run(twice.second.run, ["algorithm=ei"], needs)
    assert other.estimates["before/maj@3"]["n"] == 10
    assert other.estimates["after/maj@1"] == shown.estimates["after/maj@1"]


def test_w_and_b_names_the_other_protocol(twice: Twice):
    names = {name for name in _evaluations(twice.second.run) if "maj@" in name}
    assert names == {
        *(f"eval/{kind}_maj@{k}" for kind in ("after", "gain") for k in (1, 3)),
        *(f"eval/{FIRST}/{kind}_maj@{k}" for kind in ("after", "gain") for k in (1, 2)),
    }


def test_a_sweep_of_finished_runs_only_evaluates_them(twice: Twice) -> None:
    sft = twice.first.prerequisites["init"].run
    before = sft.path / "policy" / "model.safetensors", sft.metrics
    learnt = [(file.stat().st_mtime_ns, file.read_bytes()) for file in before]
    outputs = f"runtime.outputs={sft.path.parents[1]}"
    sweep = ["-m", "algorithm=sft", "algorithm.batch_size=8", "hydra.launcher.cluster=local"]
    k5 = "evaluation.num_samples_per_prompt=5"
    command = [sys.executable, "train.py", *sweep, *SMALL, outputs, k5]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert [(file.stat().st_mtime_ns, file.read_bytes()) for file in before] == learnt
    assert {f.name for f in sft.evaluated("test-n10-k5-t0.7").iterdir()} == {
        *("before", "after", "gain.json")
    }
    # The page and status of this sweep are of its own protocol.
    (manifest,) = (sft.path.parents[1] / "sweeps").glob("*/sweep.json")
    assert json.loads(manifest.read_text())["runs"][0]["protocol"] == "test-n10-k5-t0.7"


def test_points_that_differ_in_their_evaluation_alone_are_refused(twice: Twice) -> None:
    outputs = f"runtime.outputs={twice.first.run.path.parents[1]}"
    small = [o for o in SMALL if "num_samples" not in o]
    swept = [*small, outputs, "evaluation.num_samples_per_prompt=2,3", "dry_run=true"]
    command = [sys.executable, "train.py", "-m", *swept]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    said = " ".join(refused.stderr.split())
    assert "runs of a sweep must be evaluated in one way each; got sft-tiny-" in said
    assert "test-n10-k2-t0.7 and test-n10-k3-t0.7. Give one command for each" in said


def test_evaluate_py_finds_the_same_evaluation(
    twice: Twice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("reasonrl.evaluation.policy.collect_rollouts", None)  # nothing is sampled
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        evaluate_py(compose("evaluate", [f"run={twice.second.run.path}", K3]))
    assert "maj@3" in capsys.readouterr().out


def test_runs_of_the_time_before_protocols_are_read(twice: Twice, tmp_path: Path):
    """Their evaluations lie in evaluation/ itself, and no manifest names a protocol."""
    old = RunFolder(tmp_path / twice.first.run.path.name)
    shutil.copytree(twice.first.run.path, old.path)
    shutil.rmtree(old.evaluation / SECOND)
    for entry in (old.evaluation / FIRST).iterdir():
        entry.rename(old.evaluation / entry.name)
    (old.evaluation / FIRST).rmdir()
    assert is_done(old)
    shown = read_run(old, ["algorithm=ei"], [])
    assert {"after/maj@2", "gain/maj@2"} <= {*shown.estimates}
    assert len(shown.correct) == 10
    assert "eval/after_maj@2" in _evaluations(old)


def test_a_run_killed_before_its_gain_is_not_evaluated(twice: Twice, tmp_path: Path):
    run = RunFolder(tmp_path / "run", FIRST)
    shutil.copytree(twice.first.run.path, run.path)
    assert is_done(run)
    (run.evaluated(FIRST) / "gain.json").unlink()
    assert not is_done(run)
    assert is_done(RunFolder(run.path))  # its policy is there to start from


@pytest.mark.parametrize("state", ["running", "failed", "preempted"])
def test_a_run_that_is_evaluated_once_more_is_still_one_to_start_from(
    twice: Twice, tmp_path: Path, state: Literal["running", "failed", "preempted"]
) -> None:
    """Or was killed while it was: its policy is whole all the same."""
    run = RunFolder(tmp_path / twice.first.run.path.name)
    shutil.copytree(twice.first.run.path, run.path)
    write_status(run, Status.here(state, 3))
    start = plan(twice.configure("init=run", f"init.run={run.path}", "algorithm.rounds=1"))
    assert starting_policy(start).path == str(run.policy)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        evaluate_py(compose("evaluate", [f"run={run.path}", K3]))
    run.result.unlink()  # of a run that is still learning
    with pytest.raises(UserError, match="must be done; it isn't"):
        starting_policy(start)


@pytest.mark.parametrize(
    ("overrides", "protocol"),
    [
        ([], "test-n10-k4-t0.7"),
        (["evaluation.split=ood", "evaluation.temperature=1"], "ood-n10-k4-t1"),
        (
            ["evaluation.split=validation", "dataset.num_exemplars=0"],
            "validation-n8-k4-t0.7",
        ),
        (["dataset.test_size=7"], "test-n7-k4-t0.7"),
        (["evaluation.temperature=0.7000001"], "test-n10-k4-t0.7000001"),
        (["algorithm=sample"], None),
        (["algorithm=orm"], None),
    ],
)
def test_names_of_protocols(overrides: list[str], protocol: str | None, tmp_path: Path):
    config = small_config(tmp_path, *overrides)
    assert run_folder(config).protocol == protocol
    same = run_folder(small_config(tmp_path, *overrides, K3, "dataset.test_size=3")).path
    assert run_folder(config).path == same


def test_without_a_size_there_is_none_in_the_name():
    gsm8k = ["dataset=gsm8k", "dataset.train_size=12"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(compose("train", gsm8k))
    assert config.protocol == "test-k16-t0.7"
