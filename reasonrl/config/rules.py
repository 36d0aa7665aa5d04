"""What must hold between the groups of a configuration; a group's own rules are in its file."""

from __future__ import annotations

from reasonrl.config.base import require
from reasonrl.config.identity import prerequisites
from reasonrl.config.learner import learners
from reasonrl.config.model import LARGE
from reasonrl.config.schema import EvaluateConfig, TrainConfig

SMALL_MODELS_RATE = 1e-4  # too high for all weights of a large model, if not for adapters


def validate_evaluation(config: EvaluateConfig) -> None:
    """Checks every range and rule of what decides an evaluation. Raises UserError."""
    config.model.check()
    config.dataset.check()
    config.prompt.check()
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
    _check_rates(config)
    require(
        config.dataset.has_solutions or not _learns_from_solutions(config),
        f"dataset={config.dataset.name} must have solutions to fine-tune on; got "
        f"dataset.fields.solution=null with init={config.init.name}, algorithm="
        f"{config.algorithm.name}. Name the field that holds them, or pass init=pretrained.",
    )


def _learns_from_solutions(config: TrainConfig) -> bool:
    """Whether a run, or any that it needs first, is fine-tuned on the reference solutions."""
    return config.algorithm.name == "sft" or any(
        map(_learns_from_solutions, prerequisites(config).values())
    )


def _check_rates(config: TrainConfig) -> None:
    """Raises UserError for a small model's learning rate for the weights of a large one."""
    parameters = config.model.num_parameters
    if parameters is None or parameters < LARGE:
        return
    for key, learner in learners(config):
        require(
            learner.learning_rate < SMALL_MODELS_RATE
            or getattr(learner, "trainable", "all") in ("lora", "head"),
            f"{key}.learning_rate={learner.learning_rate:g} must be below {SMALL_MODELS_RATE:g} "
            f"where weights of a model of {parameters:,} parameters are trained: it is a rate for "
            f"small models. Pass {key}.learning_rate=1e-5 {key}.final_learning_rate=1e-6, or "
            "leave both to the model's own scale.",
        )
