"""Expert Iteration makes a small pretrained policy better, within half a minute of one core."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.planner import plan
from reasonrl.pipeline.results import result_of
from reasonrl.util.progress import Progress

# Asked without exemplars the pretrained policy mixes formats and calculates carelessly. Its rare
# right answers are all there is to learn from: there is no reference solution in this run.
OVERRIDES = [
    "init=pretrained",
    "dataset.num_exemplars=0",
    "dataset.train_size=200",
    "dataset.validation_size=40",
    "dataset.test_size=200",
    "algorithm.rounds=2",
    "algorithm.num_samples_per_prompt=[8]",
    "algorithm.temperature=0.8",
    "algorithm.epochs=5",
    "algorithm.batch_size=16",
    "algorithm.learning_rate=3e-4",
    "evaluation.num_samples_per_prompt=2",
]


@pytest.mark.slow
def test_expert_iteration_improves_maj_at_1(configure: Callable[..., TrainConfig]) -> None:
    planned = plan(configure(*OVERRIDES))
    ensure_done(planned, Progress())
    result = result_of(planned, Progress())
    before, after = result.before, result.after
    gain = after.gain_on(before)["maj@1"]
    assert gain.low > 0, f"{before.estimates()['maj@1']} -> {after.estimates()['maj@1']}"
    assert gain.value > 0.1  # 0.26 when this was written
