"""Gradients that aren't finite end a run of whatever learner, before they reach its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reasonrl.learning.optimization import Optimization
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.planner import plan
from reasonrl.runs.folder import read_status
from reasonrl.util.errors import UserError
from reasonrl.util.progress import Progress
from tests.helpers.configs import small_config

# Fine-tuned just so far that some of what is sampled is right. Each takes two steps or more.
SIZES = ["dataset.train_size=24", "dataset.reward_train_size=24", "dataset.num_references=24"]
SIZES += ["dataset.validation_size=6", "dataset.test_size=4", "evaluation.num_samples_per_prompt=2"]
SIZES += ["dataset.max_new_tokens=32", "init=sft", "init.sft.batch_size=4", "init.sft.epochs=8"]
EI = ["rounds=1", "num_samples_per_prompt=[8]", "batch_size=4", "epochs=2"]
STEPS = ["sample.num_samples_per_prompt=2", "num_solutions_per_prompt=2", "num_continuations=2"]
LEARNERS = {
    "sft": ["batch_size=4", "epochs=8"],
    "ei": EI,
    "ppo": ["iterations=1", "rollouts_per_iteration=8", "num_samples_per_prompt=4", "batch_size=4"],
    "rcrl": [*(f"policy.{option}" for option in EI), *STEPS, "batch_size=4", "epochs=2"],
    "orm": ["sample.num_samples_per_prompt=2", "batch_size=8", "epochs=1"],
    "sorm": [*STEPS, "batch_size=8", "epochs=1"],
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all runs, so that what several need is made once."""
    return tmp_path_factory.mktemp("outputs")


@pytest.mark.slow
@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_refuses_them(
    name: str, value: str, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ["learning_rate=0.0005", "final_learning_rate=0.0001", *LEARNERS[name]]
    overrides = ["algorithm=" + name, *(f"algorithm.{option}" for option in own)]
    init = SIZES if name != "sft" else [o for o in SIZES if not o.startswith("init")]
    planned = plan(small_config(outputs, *init, *overrides))
    for first in planned.prerequisites.values():
        ensure_done(first, Progress())
    weights: list[list[torch.Tensor]] = []
    step = Optimization.step

    def poisoned(self: Optimization) -> list[float]:
        if self.steps == 1:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
            assert parameters[0].grad is not None
            parameters[0].grad.view(-1)[0] = float(value)
            weights.append([p.detach().clone() for p in parameters])
            try:
                return step(self)
            finally:
                weights.append([p.detach().clone() for p in parameters])
        return step(self)

    monkeypatch.setattr(Optimization, "step", poisoned)
    with pytest.raises(UserError) as raised:
        ensure_done(planned, Progress())
    message = (
        "algorithm.learning_rate=0.0005 must keep gradients finite; "
        f"got a norm of {value} in step 2 of {name}. Lower it."
    )
    assert str(raised.value) == message
    before, after = weights
    assert all(map(torch.equal, before, after))
    status = read_status(planned.run)
    assert status is not None
    assert (status.state, status.error) == ("failed", message)
