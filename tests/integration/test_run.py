"""One small real run: what it leaves behind, what finds it again, what builds on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from reasonrl.cli.evaluate import evaluate_and_show as evaluate_py
from reasonrl.config.algorithm.base import Work
from reasonrl.config.schema import TrainConfig
from reasonrl.evaluation.summary import read_estimates
from reasonrl.pipeline.contents import content_of_policy
from reasonrl.pipeline.estimate import work
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.outcome import show_outcome
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.planner import plan
from reasonrl.pipeline.results import result_of
from reasonrl.pipeline.text import plan_table
from reasonrl.runs.folder import RunFolder, read_config, read_status
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.runs.result import policy_of, read_result, usable_policy_of
from reasonrl.sampling import ENGINES, transformers
from reasonrl.util.errors import UserError
from reasonrl.util.progress import Progress, output
from tests.helpers.configs import ROOT, TINY, small_config
from tests.helpers.jobs import refuse
from tests.helpers.kill_and_resume import differences, snapshot
from tests.helpers.scripted import opening

LEARNER = ["algorithm.batch_size=8", "algorithm.epochs=2"]
LEARNER += ["init.sft.batch_size=8", "init.sft.epochs=4"]
PROTOCOL = "test-n10-k4-t0.7"
EI = [*LEARNER, "dataset.train_size=24", "algorithm.num_samples_per_prompt=[4]"]


@dataclass(frozen=True)
class Finished:
    planned: Plan
    configure: Callable[..., TrainConfig]

    @property
    def run(self) -> RunFolder:
        return self.planned.run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    configure = partial(small_config, tmp_path_factory.mktemp("finished") / "outputs")
    planned = plan(configure(*EI, "algorithm.rounds=2"))
    ensure_done(planned, Progress())
    return Finished(planned, configure)


def shown(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


@pytest.fixture
def no_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "transformers", opening(refuse))


def test_a_run_leaves_its_record(finished: Finished) -> None:
    run = finished.run
    files = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    assert files >= {
        ".hydra/config.yaml",
        "status.json",
        "provenance.json",
        "result.json",
        "rounds.json",
        "metrics.jsonl",
        "rollouts/round-1.parquet",
        "rollouts/round-2.parquet",
        "policy/config.json",
        "policy/model.safetensors",
        "policy/tokenizer.json",
        "evaluation/validation/round-2.parquet",
        f"evaluation/{PROTOCOL}/after/greedy.parquet",
        f"evaluation/{PROTOCOL}/after/samples.parquet",
        f"evaluation/{PROTOCOL}/after/metrics.json",
        "learning_curve.png",
        "train.log",
    }
    assert not (run.path / "work").exists()  # checkpoints served their purpose
    assert not list(run.path.rglob("*.shards"))
    status = read_status(run)
    assert status is not None
    assert (status.state, status.attempt, status.error) == ("done", 1, None)
    (attempt,) = json.loads(run.provenance.read_text())["attempts"]
    assert attempt["packages"]["torch"] == torch.__version__
    assert (attempt["threads"], attempt["processes"], "gpu" in attempt) == (1, 1, True)
    assert run.learning_curve.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert read_config(run) == finished.planned.config
    rounds = [m["ei/round"] for m in read_metrics(run.metrics) if "ei/round" in m]
    assert rounds == [0, 1, 2]


def test_a_longer_run_goes_on_from_a_finished_one_and_ends_as_if_made_at_once(
    finished: Finished, tmp_path: Path
) -> None:
    """The finished one stays as it is."""
    before = snapshot(finished.run.path)
    longer = plan(finished.configure(*EI, "algorithm.rounds=3"))
    assert longer.goes_on_from == finished.run
    assert "goes on from ei-sparse-tiny-sft-stories-s0-" in shown(plan_table(longer))
    at_once = plan(small_config(tmp_path / "outputs", *EI, "algorithm.rounds=3"))
    assert at_once.goes_on_from is None
    sampled, validated, evaluated = 24 * 4, 6, 5 * 10
    known = 8 + 3 * 24  # references, and as is planned one new solution of each problem a round
    assert work(longer) == Work(sampled + validated + evaluated, examples=2 * known)
    ensure_done(longer, Progress())
    ensure_done(at_once, Progress())
    round_1 = Path("rollouts", "round-1.parquet")
    assert (longer.run.path / round_1).samefile(finished.run.path / round_1)
    rounds = [m["ei/round"] for m in read_metrics(longer.run.metrics) if "ei/round" in m]
    assert rounds == [0, 1, 2, 3]
    assert differences(longer.run.path, at_once.run.path) == []
    assert snapshot(finished.run.path) == before


def test_a_longer_run_of_another_schedule_starts_anew_and_says_so(finished: Finished) -> None:
    sft = ["algorithm=sft", "init=pretrained", "algorithm.batch_size=8", "algorithm.epochs=6"]
    planned = plan(finished.configure("dataset.train_size=24", *sft))
    assert planned.shorter is not None
    assert planned.goes_on_from is None
    assert "starts anew: the learning rate of sft-tiny-pre" in shown(plan_table(planned))


def test_its_policy_is_a_model_of_transformers(finished: Finished) -> None:
    folder = finished.run.policy
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    prompt = tokenizer("Q: Ana has 5 apples.\nA:", return_tensors="pt").input_ids
    assert model.generate(prompt, max_new_tokens=4).shape[1] > prompt.shape[1]


def test_the_prerequisite_is_a_run_of_its_own(finished: Finished) -> None:
    sft = finished.planned.prerequisites["init"]
    assert sft.run.path.name.startswith("sft-tiny-pretrained-stories-s0-")
    assert (sft.run.evaluated(PROTOCOL) / "before" / "metrics.json").exists()
    assert not (
        finished.run.evaluated(PROTOCOL) / "before"
    ).exists()  # it is the prerequisite's after
    result = result_of(finished.planned, Progress())
    before, after = result.before, result.after
    assert before.problem_ids == after.problem_ids
    assert len(before.problem_ids) == 10


@pytest.mark.usefixtures("no_sampling")
def test_what_it_came_to_is_read_from_its_folder(finished: Finished) -> None:
    with output.capture() as captured:
        show_outcome(finished.planned)
    said, result = captured.get(), result_of(finished.planned, Progress())
    assert "ei on stories (tiny, init=sft): 10 test problems, T=0.7" in said
    for name, gain in result.after.gain_on(result.before).items():
        (row,) = [line for line in said.splitlines() if f" {name} " in line]
        for estimate in (result.before.estimates()[name], result.after.estimates()[name], gain):
            assert str(estimate) in row


def test_what_it_gained_is_kept(finished: Finished) -> None:
    """Which W&B and reports read; it is what is printed."""
    result = result_of(finished.planned, Progress())
    before, after = result.before.estimates(), result.after.estimates()
    gain = read_estimates(finished.run.evaluated(PROTOCOL) / "gain.json")
    assert gain.keys() == after.keys() == {*("maj@1", "maj@4"), *("pass@1", "pass@2", "pass@4")}
    for metric, estimate in gain.items():
        assert estimate.value == pytest.approx(after[metric].value - before[metric].value)
    sft = finished.planned.prerequisites["init"].run.evaluated(PROTOCOL)
    kept = [read_estimates(sft / name) for name in ("gain.json", "after/metrics.json")]
    own = read_estimates(sft / "before" / "metrics.json")["maj@1"].value
    assert kept[0]["maj@1"].value == pytest.approx(kept[1]["maj@1"].value - own)


@pytest.mark.usefixtures("no_sampling")
def test_the_same_plan_again_does_nothing(finished: Finished) -> None:
    outputs = finished.run.path.parents[1]
    before = snapshot(outputs)
    again = plan(finished.planned.config)
    ensure_done(again, Progress())
    result_of(again, Progress())
    assert again.run == finished.run
    assert snapshot(outputs) == before


def test_evaluate_py_reproduces_the_run_s_own_evaluation(
    finished: Finished, tmp_path: Path
) -> None:
    copied = RunFolder(tmp_path / finished.run.path.name)
    shutil.copytree(finished.run.path, copied.path)
    own, repeated = (run.evaluated(PROTOCOL) / "after" for run in (finished.run, copied))
    shutil.rmtree(repeated)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = [f"run={copied.path}", "evaluation.num_samples_per_prompt=4"]
        evaluate_py(compose("evaluate", [*overrides, "runtime.threads=1"]))
    for name in ("greedy.parquet", "samples.parquet", "metrics.json"):
        assert (repeated / name).read_bytes() == (own / name).read_bytes()


def test_a_run_starts_from_an_earlier_one(finished: Finished) -> None:
    overrides = ("algorithm=sft", "init=run", f"init.run={finished.run.path}")
    planned = plan(finished.configure("dataset.train_size=24", *overrides, "algorithm.epochs=1"))
    ensure_done(planned, Progress())
    before = planned.run.evaluated(PROTOCOL) / "before"
    after = finished.run.evaluated(PROTOCOL) / "after"
    for name in ("greedy.parquet", "samples.parquet"):
        assert (before / name).read_bytes() == (after / name).read_bytes()
    assert read_result(planned.run).path != read_result(finished.run).path


def test_a_run_of_another_model_is_no_start_whatever_its_name(
    finished: Finished, tmp_path: Path
) -> None:
    shutil.copytree(TINY, tmp_path / "mine")
    overrides = ("algorithm=sft", "init=run", f"init.run={finished.run.path}")
    with pytest.raises(UserError) as refused:
        plan(finished.configure(*overrides, f"model.path={tmp_path}/mine"))
    assert str(refused.value) == (
        f"init.run={finished.run.path} must be a run of the same model; it is of model.path="
        f"models/tiny; got model.path={tmp_path}/mine. Pass the option model=tiny, if it has that "
        "path, else model.path=models/tiny model.name=tiny."
    )
    (tmp_path / "link").symlink_to(TINY)
    planned = plan(finished.configure(*overrides, f"model.path={tmp_path}/link", "model.name=own"))
    assert planned.base == f"{tmp_path}/link"


def test_runs_share_a_prerequisite_that_is_built_once(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = plan(finished.configure(*EI, "algorithm.rounds=1", "algorithm.temperature=0.9"))
    assert other.run != finished.run
    shared = other.prerequisites["init"].run
    assert shared == finished.planned.prerequisites["init"].run
    before = snapshot(shared.path)
    started_from: list[str] = []
    load_policy = transformers.load_policy
    monkeypatch.setattr(
        transformers,
        "load_policy",
        lambda path, *rest: started_from.append(path) or load_policy(path, *rest),
    )
    ensure_done(other, Progress())
    assert started_from[0] == str(shared.policy)  # round 0 is its policy
    assert snapshot(shared.path) == before


def test_a_run_s_folder_may_be_moved(finished: Finished, tmp_path: Path) -> None:
    moved = tmp_path / finished.run.path.name
    shutil.copytree(finished.run.path, moved)
    assert usable_policy_of(RunFolder(moved)).path == str(moved / "policy")


def test_a_copy_without_weights_does_not_stand_for_those_of_the_run_it_was_made_of(
    finished: Finished, tmp_path: Path
) -> None:
    ignore = shutil.ignore_patterns("policy")
    copy = RunFolder(shutil.copytree(finished.run.path, tmp_path / "copy", ignore=ignore))
    assert policy_of(copy).path == str(copy.policy)  # how it is asked is known
    refused = "copy must hold the policy that it made; there is no policy/ in it"
    with pytest.raises(UserError, match=refused):
        usable_policy_of(copy)
    with pytest.raises(UserError, match=refused):
        content_of_policy(str(copy.path))
