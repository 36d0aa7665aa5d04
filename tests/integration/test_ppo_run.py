"""PPO from a configuration to a finished run, in each of its forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
from transformers import AutoModelForCausalLM

from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.planner import plan
from reasonrl.pipeline.results import result_of
from reasonrl.runs.folder import read_status
from reasonrl.runs.metrics_log import read_metrics
from reasonrl.runs.result import read_result
from reasonrl.util.progress import Progress
from tests.helpers.configs import small_config

# Two iterations of two steps.
PPO = [
    "algorithm=ppo",
    "algorithm.iterations=2",
    "algorithm.rollouts_per_iteration=8",
    "algorithm.num_samples_per_prompt=4",
    "algorithm.batch_size=8",
    "algorithm.epochs=2",
    "algorithm.trainable_layers=1",
    "algorithm.lora_rank=2",
    "dataset.test_size=4",
    "dataset.validation_size=6",
    "evaluation.num_samples_per_prompt=2",
]
SFT = ["init.sft.batch_size=8", "init.sft.epochs=2"]


@pytest.fixture(scope="module")
def configure(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainConfig]:
    """In one folder, so that the fine-tuned starting policy is made once."""
    return partial(small_config, tmp_path_factory.mktemp("ppo") / "outputs")


@pytest.mark.parametrize(
    ("trainable", "value_layers", "init", "reward"),
    [
        ("all", 0, "sft", "dense"),
        ("top", 1, "sft", "sparse"),
        ("lora", 0, "pretrained", "dense"),
        ("all", 1, "pretrained", "sparse"),
    ],
)
def test_a_run_leaves_its_record(
    trainable: str, value_layers: int, init: str, reward: str, configure: Callable[..., TrainConfig]
) -> None:
    forms = [f"algorithm.trainable={trainable}", f"algorithm.value_layers={value_layers}"]
    of_init = SFT if init == "sft" else []
    planned = plan(configure(*PPO, *forms, f"init={init}", *of_init, f"reward={reward}"))
    run = ensure_done(planned, Progress())

    status = read_status(run)
    assert status is not None
    assert status.state == "done"
    assert run.learning_curve.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert not (run.path / "work").exists()
    names = {path.name for path in run.rollouts.iterdir()}
    assert names == {"iteration-00001.parquet", "iteration-00002.parquet"}
    names = {path.name for path in (run.evaluation / "validation").iterdir()}
    assert names == {"iteration-00000.parquet", "iteration-00002.parquet"}

    records = read_metrics(run.metrics)
    assert [m["pg/iteration"] for m in records if "pg/iteration" in m] == [1, 2]
    assert [m["step"] for m in records if "pg/policy_loss" in m] == [1, 2, 3, 4]
    values = [x for m in records for name, x in m.items() if name != "pg/explained_variance"]
    assert all(x is not None and math.isfinite(x) for x in values)

    policy = read_result(run)
    assert policy.path == str(run.policy)
    assert policy.few_shot == (init == "pretrained")
    learnt, base = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (run.policy, planned.base)
    )
    assert learnt.keys() == base.keys()
    result = result_of(planned, Progress())
    before, after = result.before, result.after
    assert before.problem_ids == after.problem_ids
    assert len(after.problem_ids) == 4
