"""What follows from a configuration: which run it is, and which runs must be there first."""

from __future__ import annotations

import dataclasses
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
    RewardConfig,
    RewardModelConfig,
    SampleConfig,
    SFTConfig,
    SORMRewardConfig,
    TrainConfig,
)

# What doesn't change the result of a run and so is no part of its identity.
NOT_DECISIVE = {
    "model.device",
    *(
        f"{learner}.micro_batch_tokens"
        for learner in ("algorithm", "init.sft", "init.ei", "reward.model", "reward.policy")
    ),
    "dataset.path",
    "sampler.batch_size",
    "runtime",
}
SPARSE = RewardConfig(name="sparse", threshold=1.0)  # of runs that come first


def asks_for_reward(algorithm: AlgorithmConfig) -> bool:
    """Whether the reward is part of a run of this algorithm."""
    return isinstance(algorithm, EIConfig | PPOConfig)


def makes_policy(algorithm: AlgorithmConfig) -> bool:
    """Whether a run of this algorithm ends with a policy to evaluate."""
    return isinstance(algorithm, SFTConfig | EIConfig | PPOConfig)


def decisive(config: EvaluateConfig) -> dict[str, Any]:
    """What decides a run's or an evaluation's result, as plain values: its identity's input."""
    values = _without(dataclasses.asdict(config), NOT_DECISIVE)
    if isinstance(config, TrainConfig):
        if config.init.run is not None:
            values["init"]["run"] = Path(config.init.run).name
        if not asks_for_reward(config.algorithm):
            del values["reward"]
        elif isinstance(config.reward, LearnedConfig) and config.reward.run is not None:
            # How a reward model would be made doesn't count where there is one.
            values["reward"] |= {"run": Path(config.reward.run).name, "model": None, "policy": None}
    return values


def _without(values: dict[str, Any], keys: set[str], prefix: str = "") -> dict[str, Any]:
    return {
        key: _without(value, keys, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in values.items()
        if f"{prefix}{key}" not in keys
    }


def training_set(config: TrainConfig) -> DatasetConfig:
    """The dataset with the training problems of a run: reward models and PPO may have their own
    number.
    """
    dataset = config.dataset
    if isinstance(config.algorithm, SampleConfig | RewardModelConfig | PPOConfig):
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

    init: the starting policy, where a run makes it. rollouts: what a reward model learns from.
    reward: the reward model of a learned reward.
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
    if isinstance(algorithm, RewardModelConfig):
        first["rollouts"] = dataclasses.replace(base, algorithm=algorithm.sample)
    if (
        asks_for_reward(algorithm)
        and isinstance(reward, ORMRewardConfig | SORMRewardConfig)
        and reward.run is None
    ):
        student = init
        if reward.policy is not None:
            student = dataclasses.replace(init, name="ei", ei=reward.policy)
        first["reward"] = dataclasses.replace(base, algorithm=reward.model, init=student)
    return first
