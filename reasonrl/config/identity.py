"""What follows from a configuration: which run it is, and which runs must be there first."""

from __future__ import annotations

import dataclasses
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from reasonrl.config.schemas import (
    AlgorithmConfig,
    DatasetConfig,
    EIConfig,
    EvaluateConfig,
    InitConfig,
    LearnedConfig,
    ORMRewardConfig,
    PPOConfig,
    RCRLConfig,
    RewardConfig,
    RewardModelConfig,
    SampleConfig,
    SFTConfig,
    SORMConfig,
    SORMRewardConfig,
    StepsConfig,
    TrainConfig,
)

# What doesn't change the result of a run and so is no part of its identity.
NOT_DECISIVE = {
    "model.device",
    "model.num_parameters",
    "model.resources",
    *(
        f"{learner}.micro_batch_tokens"
        for learner in (
            "algorithm",
            "algorithm.policy",
            "init.sft",
            "init.ei",
            "reward.model",
            "reward.policy",
        )
    ),
    "dataset.path",
    "sampler.batch_size",
    "runtime",
    "tracking",
}
SPARSE = RewardConfig(name="sparse", threshold=1.0)  # of runs that come first


def asks_for_reward(algorithm: AlgorithmConfig) -> bool:
    """Whether the reward is part of a run of this algorithm."""
    return isinstance(algorithm, EIConfig | PPOConfig | RCRLConfig)


def makes_policy(algorithm: AlgorithmConfig) -> bool:
    """Whether a run of this algorithm ends with a policy to evaluate."""
    return isinstance(algorithm, SFTConfig | EIConfig | PPOConfig | RCRLConfig)


def asks_for_steps(config: TrainConfig) -> bool:
    """Whether a run needs to know what becomes of the steps of its completions."""
    algorithm = config.algorithm
    return isinstance(algorithm, SORMConfig) or (
        # A dense or learned reward judges a step by itself.
        isinstance(algorithm, RCRLConfig)
        and algorithm.returns == "value"
        and config.reward.name == "sparse"
    )


def decisive(config: EvaluateConfig) -> dict[str, Any]:
    """What decides a run's or an evaluation's result, as plain values: its identity's input."""
    values = _values(config, NOT_DECISIVE)
    if isinstance(config, TrainConfig):
        if config.init.run is not None:
            values["init"]["run"] = Path(config.init.run).name
        if not asks_for_reward(config.algorithm):
            del values["reward"]
        elif isinstance(config.reward, LearnedConfig) and config.reward.run is not None:
            # How a reward model would be made doesn't count where there is one.
            values["reward"] |= {"run": Path(config.reward.run).name, "model": None, "policy": None}
    return values


def _values(config: Any, without: set[str], prefix: str = "") -> dict[str, Any]:
    """As ``dataclasses.asdict``, whose copies of all the values a sweep would wait for."""
    return {
        key: _values(value, without, f"{prefix}{key}.") if is_dataclass(value) else value
        for key, value in vars(config).items()
        if f"{prefix}{key}" not in without
    }


def training_set(config: TrainConfig) -> DatasetConfig:
    """The dataset with the training problems of a run: reward models, PPO and RCRL may have their
    own number.
    """
    dataset = config.dataset
    own = SampleConfig | StepsConfig | RewardModelConfig | PPOConfig | RCRLConfig
    if isinstance(config.algorithm, own):
        size = dataset.reward_train_size or dataset.train_size
        return dataclasses.replace(dataset, train_size=size)
    return dataset


def readable_name(config: TrainConfig) -> str:
    """``ei-sparse-tiny-sft-stories-s0``; with no reward where the algorithm asks for none."""
    parts = [
        config.algorithm.name,
        *([config.reward.name] if asks_for_reward(config.algorithm) else []),
        config.model.name,
        config.init.name,
        config.dataset.name,
        f"s{config.seed}",
    ]
    return "-".join(parts)


def prerequisites(config: TrainConfig) -> dict[str, TrainConfig]:
    """The runs that must be there first, by what they give.

    init: the starting policy, where a run makes it. rollouts: completions to learn from. steps:
    what becomes of their steps. reward: the reward model of a learned reward.
    """
    init, algorithm, reward = config.init, config.algorithm, config.reward
    base = dataclasses.replace(config, reward=SPARSE)
    first: dict[str, TrainConfig] = {}
    if init.ei is not None:
        origin = "run" if init.run else "sft" if init.sft else "pretrained"
        before = dataclasses.replace(init, name=origin, ei=None)
        first["init"] = dataclasses.replace(base, algorithm=init.ei, init=before)
    elif init.sft is not None:
        pretrained = InitConfig(name="pretrained")
        first["init"] = dataclasses.replace(base, algorithm=init.sft, init=pretrained)
    if isinstance(algorithm, StepsConfig | RewardModelConfig | RCRLConfig):
        sampled = base
        if isinstance(algorithm, RCRLConfig):
            sampled = dataclasses.replace(base, init=_improved(init, algorithm.policy))
        first["rollouts"] = dataclasses.replace(sampled, algorithm=algorithm.sample)
        if asks_for_steps(config):
            assert isinstance(algorithm, SORMConfig | RCRLConfig)
            steps = StepsConfig(
                name="steps",
                sample=algorithm.sample,
                num_solutions_per_prompt=algorithm.num_solutions_per_prompt,
                num_continuations=algorithm.num_continuations,
            )
            first["steps"] = dataclasses.replace(sampled, algorithm=steps)
    if (
        asks_for_reward(algorithm)
        and isinstance(reward, ORMRewardConfig | SORMRewardConfig)
        and reward.run is None
    ):
        student = _improved(init, reward.policy)
        first["reward"] = dataclasses.replace(base, algorithm=reward.model, init=student)
    return first


def _improved(init: InitConfig, policy: EIConfig | None) -> InitConfig:
    """The policy that an Expert Iteration run makes from ``init``; None: that of ``init``."""
    return init if policy is None else dataclasses.replace(init, name="ei", ei=policy)
