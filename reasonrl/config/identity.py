"""What follows from a configuration: which run it is, and which runs must be there first."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from reasonrl.config.base import decisive_values
from reasonrl.config.dataset.base import DatasetConfig
from reasonrl.config.init import InitConfig
from reasonrl.config.reward.sparse import SPARSE
from reasonrl.config.schema import EvaluateConfig, TrainConfig


def identity(decisive: Mapping[str, Any]) -> str:
    """8 hex digits of SHA-256 over the canonical JSON of what decides a run's result.

    The order of keys doesn't matter; 1 and 1.0 differ; floats count to the last bit. Raises
    TypeError for a value that isn't plain.
    """
    canonical = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def decisive(config: EvaluateConfig, *, defaults: bool = False) -> dict[str, Any]:
    """The plain values that decide a run's or an evaluation's result: the input of ``identity``.

    The marks of fields say what doesn't count (``config.base``). What the run's algorithm never
    reads of the reward and the dataset is left out too.

    defaults: whether settings that older runs haven't are there too, as which they don't count.
    """
    values = decisive_values(config, defaults=defaults)
    if isinstance(config, TrainConfig):
        reads = config.algorithm.reads_reward
        if reads == "nothing":
            del values["reward"]
        elif reads == "scores":
            del values["reward"]["threshold"]
        if not _reads_reward_train_size(config):
            del values["dataset"]["reward_train_size"]
    return values


def _reads_reward_train_size(config: TrainConfig) -> bool:
    """Whether a run, or any that it needs first, learns from this number of problems."""
    return config.algorithm.questions == "reward_train_size" or any(
        map(_reads_reward_train_size, prerequisites(config).values())
    )


def training_set(config: TrainConfig) -> DatasetConfig:
    """The dataset with the number of training problems that the algorithm learns from."""
    dataset = config.dataset
    own = getattr(dataset, config.algorithm.questions)
    return dataclasses.replace(dataset, train_size=own or dataset.train_size)


def readable_name(config: TrainConfig) -> str:
    """A run's name without its identity, as ``ei-sparse-tiny-sft-stories-s0``.

    The name has no reward in it where the algorithm reads none.
    """
    parts = [
        config.algorithm.name,
        *([] if config.algorithm.reads_reward == "nothing" else [config.reward.name]),
        config.model.name,
        config.init.name,
        config.dataset.name,
        f"s{config.seed}",
    ]
    return "-".join(parts)


def prerequisites(config: TrainConfig) -> dict[str, TrainConfig]:
    """The runs that must be done before this one, by what they give.

    init: the starting policy, where a run makes it.
    rollouts: completions to learn from.
    steps: what becomes of the steps of completions.
    reward: the reward model of a learned reward.
    """
    first = _starting_policy(config) | config.algorithm.needs(config)
    if config.algorithm.reads_reward != "nothing":
        first |= config.reward.needs(config)
    return {gives: dataclasses.replace(run, reward=SPARSE) for gives, run in first.items()}


def shorter(config: TrainConfig) -> Iterator[TrainConfig]:
    """The runs that differ from this one in that they are shorter, the longest first."""
    for algorithm in config.algorithm.shorter():
        yield dataclasses.replace(config, algorithm=algorithm)


def _starting_policy(config: TrainConfig) -> dict[str, TrainConfig]:
    init = config.init
    if init.ei is not None:
        origin = "run" if init.run else "sft" if init.sft else "pretrained"
        before = dataclasses.replace(init, name=origin, ei=None)
        return {"init": dataclasses.replace(config, algorithm=init.ei, init=before)}
    if init.sft is not None:
        pretrained = InitConfig(name="pretrained")
        return {"init": dataclasses.replace(config, algorithm=init.sft, init=pretrained)}
    return {}
