"""What all learners share: steps of several groups, schedules, gradients that aren't finite."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from reasonrl.config.learner import LearnerConfig
from reasonrl.learning.checkpoint import Checkpoints
from reasonrl.learning.optimization import Group, Optimization
from reasonrl.runs.metrics_log import MetricsLog, read_metrics
from reasonrl.util.errors import UserError

SETTINGS = LearnerConfig(
    epochs=1,
    batch_size=1,
    learning_rate=0.1,
    final_learning_rate=0.01,
    warmup_fraction=0.0,
    weight_decay=0.0,
    max_grad_norm=1.0,
    micro_batch_tokens=10,
)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.policy, self.value = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def pull(self, policy: list[float], value: list[float]) -> None:
        self.policy.grad, self.value.grad = torch.tensor(policy), torch.tensor(value)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[MetricsLog]:
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        yield log


def optimization(model: Two, log: MetricsLog, *, seconds: float = 1e9) -> Optimization:
    """Of five steps."""
    return Optimization(
        model,
        [Group([model.policy], 0.1), Group([model.value], 0.02, "value_learning_rate")],
        SETTINGS,
        5,
        name="ppo",
        checkpoints=Checkpoints(log.path.parent / "checkpoints"),
        checkpoint_seconds=seconds,
        log=log,
    )


def test_each_group_is_clipped_by_itself_and_has_a_rate_of_its_own(log: MetricsLog) -> None:
    model = Two()
    taken = optimization(model, log)
    model.pull([3.0, 4.0], [0.0, 0.5])
    before = model.policy.grad, model.value.grad
    assert taken.step() == [5.0, 0.5]
    # By 1 / 5, since 5 is over max_grad_norm, and not at all.
    assert before[0] is not None
    assert before[1] is not None
    assert before[0].tolist() == pytest.approx([0.6, 0.8], abs=1e-5)
    assert before[1].tolist() == [0.0, 0.5]
    # Adam's first step is the rate, against the gradient's sign.
    assert model.policy.tolist() == pytest.approx([-0.1, -0.1], abs=1e-6)
    assert model.value.tolist() == pytest.approx([0.0, -0.02], abs=1e-6)
    assert model.policy.grad is None
    assert taken.steps == 1


def test_the_moments_of_adam_decay_by_0_9_and_0_95(log: MetricsLog) -> None:
    model = Two()
    taken = optimization(model, log)
    model.pull([1.0, 0.0], [0.0, 0.0])
    taken.step()
    rate, before = taken.learning_rate, model.policy[0].item()
    model.pull([0.0, 0.0], [0.0, 0.0])
    taken.step()
    # m = 0.1 * 0.9 of 1 - 0.9^2, v = 0.05 * 0.95 of 1 - 0.95^2: 0.47368 / sqrt(0.48718).
    assert (before - model.policy[0].item()) / rate == pytest.approx(0.67865, abs=1e-4)


def test_rates_fall_in_proportion_and_steps_may_be_skipped(log: MetricsLog) -> None:
    model = Two()
    taken = optimization(model, log)
    rates = []
    for _ in range(2):
        rates.append(taken.learning_rate)
        model.pull([1.0, 1.0], [1.0, 1.0])
        taken.step()
    taken.skip_to(4)
    taken.skip_to(3)  # isn't ahead
    rates.append(taken.learning_rate)
    # The first is the peak and the fifth the last: 0.01 + 0.09 (1 + cos(π/4)) / 2 for the second.
    assert rates == pytest.approx([0.1, 0.0868198, 0.01], abs=1e-6)
    before = model.value.clone()
    model.pull([0.0, 0.0], [1.0, 1.0])
    taken.step()
    # A tenth of the peak for the value function too; its gradients were all 1 (√2 is clipped to 1).
    assert (before - model.value).tolist() == pytest.approx([0.002, 0.002], abs=1e-6)


BAD = {
    "policy": ([math.nan, 0.0], [0.0, 1.0], "algorithm.learning_rate=0.1", "nan", "Lower it."),
    "value": (
        [0.0, 1.0],
        [-math.inf, 0.0],
        "algorithm.value_learning_rate=0.02",
        "inf",
        "Lower it.",
    ),
    "both": (
        [math.inf, 0.0],
        [0.0, math.nan],
        "algorithm.learning_rate=0.1 and algorithm.value_learning_rate=0.02",
        "inf and nan",
        "Lower them.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_gradients_that_are_not_finite_are_refused(name: str, log: MetricsLog) -> None:
    policy, value, rates, norms, remedy = BAD[name]
    model = Two()
    taken = optimization(model, log)
    model.pull([1.0, 1.0], [1.0, 1.0])
    taken.step()
    before = [*model.policy.tolist(), *model.value.tolist()]
    model.pull(policy, value)
    message = f"{rates} must keep gradients finite; got a norm of {norms} in step 2 of ppo. "
    with pytest.raises(UserError, match=f"^{re.escape(message + remedy)}$"):
        taken.step()
    assert [*model.policy.tolist(), *model.value.tolist()] == before
    assert taken.steps == 1


def test_in_the_first_step_it_is_not_the_rate(log: MetricsLog) -> None:
    model = Two()
    model.pull([math.nan, 0.0], [0.0, 0.0])
    with pytest.raises(UserError, match=r"in step 1 of ppo\. The first step has nothing to do"):
        optimization(model, log).step()


def test_it_goes_on_from_its_latest_checkpoint_and_the_log_with_it(log: MetricsLog) -> None:
    model = Two()
    taken = optimization(model, log, seconds=0)
    assert taken.resume() == ({}, {})
    for step in (1, 2):
        model.pull([1.0, -1.0], [1.0, -1.0])
        taken.step()
        log.log(step, {"pg/loss": 0.5})
        if step == 1:
            taken.save_if_due(lambda: taken.save({"place": 7}, {"values": torch.tensor([1.5])}))
    again = Two()
    resumed = optimization(again, log)
    state, buffer = resumed.resume()
    assert (state["place"], buffer["values"].tolist()) == (7, [1.5])
    assert resumed.steps == 1
    assert [record["step"] for record in read_metrics(log.path)] == [1]
    assert again.policy.tolist() == pytest.approx([-0.1, 0.1], abs=1e-6)
    again.pull([1.0, -1.0], [1.0, -1.0])
    resumed.step()
    assert torch.equal(again.policy, model.policy)
    assert torch.equal(again.value, model.value)


@pytest.mark.parametrize(("seconds", "saved"), [(0.0, 1), (1e9, 0)])
def test_a_checkpoint_is_due_after_so_many_seconds(
    seconds: float, saved: int, log: MetricsLog
) -> None:
    taken = optimization(Two(), log, seconds=seconds)
    taken.save_if_due()
    assert len(list((log.path.parent / "checkpoints").glob("step-*"))) == saved
