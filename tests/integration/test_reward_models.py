"""From a policy to a reward model of its completions, and on to a policy that learns from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer

from reasonrl.algorithms import steps as continuations
from reasonrl.cli.evaluate import evaluate_and_show as evaluate_py
from reasonrl.config.schema import TrainConfig
from reasonrl.evaluation.summary import read_estimates
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.planner import plan
from reasonrl.reward_models import learning as reward_learning
from reasonrl.reward_models.model import RewardModel, question_hash
from reasonrl.runs.folder import RunFolder, is_done, read_status
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.sampling import ENGINES, rollouts
from reasonrl.types import Rollout
from reasonrl.util.errors import UserError
from reasonrl.util.progress import Progress, output
from tests.helpers.configs import ROOT, small_config
from tests.helpers.kill_and_resume import differences, snapshot
from tests.helpers.scripted import opening

PROTOCOL = "test-n10-k4-t0.7"
SIZES = ["dataset.train_size=24", "dataset.reward_train_size=30"]
SIZES += ["init.sft.batch_size=8", "init.sft.epochs=4"]
EI = ["rounds=1", "num_samples_per_prompt=[4]", "batch_size=8", "epochs=1"]
MODEL = ["sample.num_samples_per_prompt=4", "batch_size=16", "epochs=1"]
STEPS = ["num_solutions_per_prompt=2", "num_continuations=2"]

LEARNED = [*SIZES, "reward.threshold=0.5", *(f"algorithm.{o}" for o in EI)]
MADE = [*(f"reward.policy.{o}" for o in EI), *(f"reward.model.{o}" for o in MODEL)]
ORM = [*LEARNED, *MADE, "reward=orm"]
SORM = [*LEARNED, *MADE, "reward=sorm", *(f"reward.model.{o}" for o in STEPS)]


class Killed(BaseException):
    pass


@dataclass(frozen=True)
class Finished:
    """runs: by their names, as far as these say what they are."""

    planned: Plan
    outputs: Path
    configure: Callable[..., TrainConfig]

    @property
    def runs(self) -> dict[str, RunFolder]:
        return {short_name(one): one.run for one in self.planned.in_order()}


def short_name(planned: Plan) -> str:
    return planned.run.path.name.split("-tiny")[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    outputs = tmp_path_factory.mktemp("finished") / "outputs"
    configure = partial(small_config, outputs)
    planned = plan(configure(*ORM))
    ensure_done(planned, Progress())
    return Finished(planned, outputs, configure)


@pytest.fixture
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "transformers", opening(refuse))
    monkeypatch.setattr(reward_learning, "build", refuse)
    monkeypatch.setattr(RewardModel, "token_logits", refuse)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("computed again")


def evaluate(*overrides: str) -> str:
    """What evaluate.py shows."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), output.capture() as shown:
        settings = ["evaluation.num_samples_per_prompt=4", "runtime.threads=1"]
        evaluate_py(compose("evaluate", [*settings, *overrides]))
    return shown.get()


# --- what is made, and once


def test_all_that_a_learned_reward_needs_is_made_in_order_once(finished: Finished) -> None:
    assert [short_name(one) for one in finished.planned.in_order()] == [
        *("sft", "ei-sparse", "sample", "orm", "ei-orm")
    ]
    assert len(list((finished.outputs / "runs").iterdir())) == 5
    statuses = [read_status(run) for run in finished.runs.values()]
    assert [(s.state, s.attempt) for s in statuses if s] == [("done", 1)] * 5


def test_a_reward_model_s_run_leaves_its_record(finished: Finished) -> None:
    run = finished.runs["orm"]
    files = {str(p.relative_to(run.path)) for p in run.path.rglob("*") if p.is_file()}
    assert files >= {
        ".hydra/config.yaml",
        "status.json",
        "result.json",
        "metrics.jsonl",
        "reward_model/model.safetensors",
        "reward_model/head.safetensors",
        "reward_model/reward_model.json",
        "reward_model/tokenizer.json",
        "evaluation/validation/metrics.json",
        "evaluation/validation/verdicts.parquet",
        "evaluation/validation/calibration.png",
        "learning_curve.png",
    }
    assert not (run.path / "policy").exists()
    assert {p.name for p in run.evaluation.iterdir()} == {"validation"}  # there is no policy
    validation = read_estimates(run.evaluation / "validation" / "metrics.json")
    assert {"accuracy", "rerank@4", "weighted_maj@4", "maj@4", "pass@4"} <= set(validation)
    # Of 8 validation problems two are exemplars.
    assert pq.read_table(run.evaluation / "validation" / "verdicts.parquet").num_rows == 6 * 4


def test_it_learns_from_samples_of_the_policy_of_expert_iteration(finished: Finished) -> None:
    sample = finished.runs["sample"]
    assert {p.name for p in sample.rollouts.iterdir()} == {"train.parquet", "validation.parquet"}
    assert pq.read_table(sample.rollouts / "train.parquet").num_rows == 30 * 4
    assert not sample.policy.exists()
    orm = finished.planned.prerequisites["reward"]
    assert [short_name(orm.prerequisites[gives]) for gives in ("init", "rollouts")] == [
        "ei-sparse",
        "sample",
    ]
    assert (len(finished.planned.train), len(orm.train)) == (24, 30)
    model = RewardModel.load(orm.run.reward_model, "float32", torch.device("cpu"))
    assert model.questions == {question_hash(p.question) for p in orm.train}


def test_expert_iteration_is_paid_by_outcome_and_verdict(finished: Finished) -> None:
    table = pq.read_table(finished.runs["ei-orm"].rollouts / "round-1.parquet")
    columns = (table[name].to_pylist() for name in ("correct", "rewards"))
    for correct, rewards in zip(*columns, strict=True):
        assert set(rewards[:-1]) <= {0.0}
        assert 0.5 * correct < rewards[-1] < 0.5 * correct + 0.5


@pytest.mark.usefixtures("nothing_is_computed")
def test_the_same_plan_again_does_nothing(finished: Finished) -> None:
    before = snapshot(finished.outputs)
    again = plan(finished.planned.config)
    ensure_done(again, Progress())
    assert again.run == finished.planned.run
    assert snapshot(finished.outputs) == before


def test_another_kind_of_reward_model_is_made_of_the_same_samples(finished: Finished) -> None:
    before = snapshot(finished.outputs)
    planned = plan(finished.configure(*SORM))
    assert [short_name(one) for one in planned.in_order()] == [
        *("sft", "ei-sparse", "sample", "steps", "sorm", "ei-sorm")
    ]
    ensure_done(planned, Progress())
    assert {p: t for p, t in snapshot(finished.outputs).items() if p in before} == before
    sorm = planned.prerequisites["reward"]
    assert len(list((finished.outputs / "runs").iterdir())) == 8
    steps = sorm.prerequisites["steps"]
    assert steps.prerequisites["rollouts"].run == finished.runs["sample"]
    assert {p.name for p in steps.run.rollouts.iterdir()} == {
        "continuations.parquet",
        "steps.parquet",
    }
    assert not steps.run.evaluation.exists()  # there is no policy
    assert not sorm.run.rollouts.exists()  # they are the steps' run's
    assert sorm.run.reward_model.exists()
    assert is_done(planned.run)


# --- runs that are named


def test_a_reward_model_is_named_by_its_run(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_learning, "build", refuse)
    named = f"reward.run={finished.runs['orm'].path}"
    planned = plan(finished.configure(*LEARNED, "reward=orm", named))
    assert [short_name(one) for one in planned.in_order()] == ["sft", "ei-orm"]
    assert planned.run != finished.planned.run
    ensure_done(planned, Progress())
    # It is the same reward model, and so the same run.
    for file in (
        "rollouts/round-1.parquet",
        "rounds.json",
        f"evaluation/{PROTOCOL}/after/samples.parquet",
    ):
        made, own = finished.planned.run.path / file, planned.run.path / file
        assert own.read_bytes() == made.read_bytes()


def with_another_tokenizer(finished: Finished, folder: Path) -> Path:
    shutil.copytree(finished.runs["orm"].path, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / "reward_model")
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(folder / "reward_model")
    return folder


def test_a_run_that_makes_no_policy_is_no_start(finished: Finished) -> None:
    for name in ("orm", "sample"):
        start = ("init=run", f"init.run={finished.runs[name].path}")
        with pytest.raises(UserError) as refused:
            plan(finished.configure("algorithm=sft", *start))
        assert str(refused.value) == (
            f"run={finished.runs[name].path} must be a run that makes a policy, such as "
            f"algorithm=sft or ei; got algorithm={name}. Pass another run."
        )


def test_a_run_that_makes_no_reward_model_is_no_reward(finished: Finished, tmp_path: Path) -> None:
    other = with_another_tokenizer(finished, tmp_path / "other")
    for run, message in {
        finished.runs["sft"].path: "got a run without a reward model. Make one with",
        tmp_path / "none": "got no finished run. Make one with",
        other: "must have the policy's tokenizer; got a vocabulary of 269, EOS 0, and the",
    }.items():
        with pytest.raises(UserError, match=message):
            plan(finished.configure("reward=orm", f"reward.run={run}"))


# --- evaluate.py


def test_evaluate_py_chooses_by_a_reward_model(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, orm = finished.runs["sft"], finished.runs["orm"]
    asked = (f"run={run.path}", f"reward_model={orm.path}")
    folder = run.evaluated(PROTOCOL) / "after"
    own = (folder / "metrics.json").read_bytes()
    first = evaluate(*asked)
    for metric in ("maj@4", "pass@4", "rerank@4", "weighted_maj@4"):
        assert metric in first
    assert "by the reward model, against maj@4" in first
    (file,) = folder.glob(f"rerank-{orm.path.name}-????????.parquet")
    table = pq.read_table(file)
    assert table.column_names == ["problem_id", "sample_index", "probability"]
    samples = pq.read_table(folder / "samples.parquet")
    assert table.select(table.column_names[:2]).to_pylist() == [
        {"problem_id": row["problem_id"], "sample_index": row["sample_index"]}
        for row in samples.select(table.column_names[:2]).to_pylist()
    ]
    # Evaluated without a reward model, the run has the same record.
    assert (folder / "metrics.json").read_bytes() == own

    monkeypatch.setattr(RewardModel, "token_logits", refuse)
    monkeypatch.setitem(ENGINES, "transformers", opening(refuse))
    before = snapshot(finished.outputs)
    assert evaluate(*asked) == first
    assert "rerank@4" not in evaluate(asked[0])
    assert snapshot(finished.outputs) == before


@pytest.mark.usefixtures("nothing_is_computed")
@pytest.mark.parametrize(
    ("reward_model", "overrides", "message"),
    [
        ("sft", [], "must be a finished run of algorithm=orm or sorm; got a run without a reward"),
        ("unfinished", [], "must be a finished run of algorithm=orm or sorm; got no finished run."),
        ("nothing", [], "must be a run's folder, or a part of exactly one run's name; it is of 0"),
        ("other", [], "must have the policy's tokenizer; got a vocabulary of 269, EOS 0, and the"),
        ("orm", ["evaluation.split=train"], "must not have been trained on the questions it is"),
    ],
)
def test_evaluate_py_refuses(
    reward_model: str, overrides: list[str], message: str, finished: Finished, tmp_path: Path
) -> None:
    paths = {name: run.path for name, run in finished.runs.items()}
    paths |= {name: tmp_path / name for name in ("unfinished", "nothing", "other")}
    if reward_model == "unfinished":
        shutil.copytree(paths["orm"], paths["unfinished"])
        status = (paths["unfinished"] / "status.json").read_text()
        (paths["unfinished"] / "status.json").write_text(status.replace('"done"', '"failed"'))
    if reward_model == "other":
        with_another_tokenizer(finished, paths["other"])
    before = snapshot(finished.outputs)
    with pytest.raises(UserError) as refused:
        # With K=2, which hasn't been sampled.
        evaluate(
            f"run={paths['sft']}",
            f"reward_model={paths[reward_model]}",
            "evaluation.num_samples_per_prompt=2",
            *overrides,
        )
    assert str(refused.value).startswith(f"reward_model={paths[reward_model]}")
    assert message in str(refused.value)
    assert snapshot(finished.outputs) == before


# --- kills


def copy_samples(finished: Finished, outputs: Path) -> None:
    for name in ("sft", "ei-sparse", "sample"):
        path = finished.runs[name].path
        shutil.copytree(path, outputs / "runs" / path.name)


def test_steps_that_were_killed_end_the_same(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts, "SHARD_SIZE", 32)  # sixteen prefixes with two continuations each
    planned = []
    for name in ("straight", "killed"):
        copy_samples(finished, tmp_path / name)
        sorm = plan(finished.configure(*SORM, f"runtime.outputs={tmp_path / name}"))
        planned.append(sorm.prerequisites["reward"].prerequisites["steps"])
    straight, killed = planned
    shards: list[int] = []
    grade = rollouts.grade

    def dying(*given: Any) -> list[Rollout]:
        shards.append(1)
        if len(shards) == 2:
            raise Killed
        return grade(*given)

    ensure_done(straight, Progress())
    with monkeypatch.context() as dead:
        dead.setattr(rollouts, "grade", dying)
        with pytest.raises(Killed):
            ensure_done(killed, Progress())  # in the second shard
        with dead.context() as unwritable:
            unwritable.setattr(continuations, "_write_steps", dies)
            with pytest.raises(Killed):
                ensure_done(killed, Progress())  # gone on from, but not labelled
        shards_before = len(shards)
        assert shards_before > 3
        ensure_done(killed, Progress())
        assert len(shards) == shards_before  # what was sampled is read
    status = read_status(killed.run)
    assert status is not None
    assert (status.state, status.attempt) == ("done", 3)
    assert differences(straight.run.path, killed.run.path) == []


def test_a_reward_model_killed_in_its_making_ends_the_same(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, straight = tmp_path / "outputs", finished.runs["orm"]
    copy_samples(finished, outputs)
    overrides = (f"runtime.outputs={outputs}", "runtime.checkpoint_seconds=0")
    planned = plan(finished.configure(*ORM, *overrides)).prerequisites["reward"]
    assert planned.run.path == outputs / "runs" / straight.path.name

    learnt: list[int] = []
    gradients = reward_learning.label_gradients

    def dying(*given: object) -> float:
        learnt.append(1)
        if len(learnt) == 4:
            raise Killed
        return gradients(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(reward_learning, "label_gradients", dying)
    with pytest.raises(Killed):
        ensure_done(planned, Progress())  # in the fourth step
    assert not planned.run.reward_model.exists()
    with monkeypatch.context() as unwritable:
        unwritable.setattr(reward_learning, "validation_estimates", dies)
        with pytest.raises(Killed):
            ensure_done(planned, Progress())  # learnt, but not judged
    assert planned.run.reward_model.exists()
    # 27 questions of 30 with 4 completions each, 16 a step: 7 steps, gone on with after the third.
    assert len([m for m in read_metrics(straight.metrics) if "orm/loss" in m]) == 7
    assert len(learnt) == 4 + 4
    monkeypatch.setattr(reward_learning, "build", refuse)
    ensure_done(planned, Progress())
    assert not (planned.run.path / "work").exists()  # the checkpoints served their purpose
    assert differences(straight.path, planned.run.path) == []


def dies(*_: object) -> None:
    raise Killed
