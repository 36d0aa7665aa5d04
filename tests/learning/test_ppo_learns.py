"""PPO makes a small pretrained policy better, within a minute of one core."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from reasonrl.config import TrainConfig
from reasonrl.pipeline import evaluations, obtain, plan
from reasonrl.progress import Progress

# Asked without exemplars the pretrained policy mixes formats and calculates carelessly: there is
# much to learn from right and wrong alone.
OVERRIDES = [
    "algorithm=ppo",
    "init=pretrained",
    "dataset.num_exemplars=0",
    "dataset.reward_train_size=400",
    "dataset.validation_size=40",
    "dataset.test_size=200",
    "algorithm.iterations=6",
    "algorithm.rollouts_per_iteration=256",
    "algorithm.batch_size=64",
    "algorithm.learning_rate=5e-4",
    "algorithm.validate_every=3",
    "evaluation.num_samples_per_prompt=2",
]


@pytest.mark.slow
def test_ppo_improves_maj_at_1(configure: Callable[..., TrainConfig]) -> None:
    planned = plan(configure(*OVERRIDES))
    obtain(planned, Progress())
    before, after = evaluations(planned, Progress())
    gain = after.gain_on(before)["maj@1"]
    assert gain.low > 0, f"{before.estimates()['maj@1']} -> {after.estimates()['maj@1']}"
    assert gain.value > 0.1
