"""What must hold between the groups of a configuration; a group's own rules are in its file."""

from __future__ import annotations

from reasonrl.config.base import require
from reasonrl.config.schema import EvaluateConfig, TrainConfig


def validate_evaluation(config: EvaluateConfig) -> None:
    """Checks every range and rule of what decides an evaluation. Raises UserError."""
    config.model.check()
    config.dataset.check()
    config.evaluation.check(config.dataset)
    config.sampler.check()
    config.runtime.check()


def validate(config: TrainConfig) -> None:
    """Checks every range, and every rule that spans more than one value. Raises UserError."""
    validate_evaluation(config)
    require(
        not (config.algorithm.name == "sft" and config.init.name == "sft"),
        "algorithm=sft must start from other weights than its own result; got init=sft. "
        "Pass init=pretrained.",
    )
    config.init.check()
    config.algorithm.check("algorithm")
    config.reward.check()
    config.tracking.check()
