"""The settings of algorithms, by the name of the option."""

from __future__ import annotations

from reasonrl.config.algorithm.base import Algorithm
from reasonrl.config.algorithm.ei import EIConfig
from reasonrl.config.algorithm.orm import ORMConfig
from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.config.algorithm.rcrl import RCRLConfig
from reasonrl.config.algorithm.sample import SampleConfig
from reasonrl.config.algorithm.sft import SFTConfig
from reasonrl.config.algorithm.sorm import SORMConfig
from reasonrl.config.algorithm.steps import StepsConfig

ALGORITHMS: dict[str, type[Algorithm]] = {
    "sft": SFTConfig,
    "ei": EIConfig,
    "ppo": PPOConfig,
    "rcrl": RCRLConfig,
    "sample": SampleConfig,
    "steps": StepsConfig,
    "orm": ORMConfig,
    "sorm": SORMConfig,
}
