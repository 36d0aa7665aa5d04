"""What a run is made of.

``schemas``: the keys, one dataclass for each config group. ``resolve``: a composed config as these
dataclasses. ``rules``: what their values must be, each and together. ``identity``: which run a
configuration is, and what it needs first.
"""

from reasonrl.config.identity import (
    SPARSE,
    asks_for_reward,
    decisive,
    makes_policy,
    prerequisites,
    readable_name,
    training_set,
)
from reasonrl.config.resolve import resolve, resolve_evaluation
from reasonrl.config.rules import validate, validate_evaluation
from reasonrl.config.schemas import (
    AlgorithmConfig,
    DatasetConfig,
    DenseConfig,
    EIConfig,
    EvaluateConfig,
    EvaluationConfig,
    GSM8KConfig,
    InitConfig,
    LearnedConfig,
    LearnerConfig,
    ModelConfig,
    ORMConfig,
    ORMRewardConfig,
    RewardConfig,
    RewardModelConfig,
    RuntimeConfig,
    SampleConfig,
    SamplerConfig,
    SFTConfig,
    SORMConfig,
    SORMRewardConfig,
    StoriesConfig,
    SVAMPConfig,
    TrainConfig,
)

__all__ = [
    "SPARSE",
    "AlgorithmConfig",
    "DatasetConfig",
    "DenseConfig",
    "EIConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "GSM8KConfig",
    "InitConfig",
    "LearnedConfig",
    "LearnerConfig",
    "ModelConfig",
    "ORMConfig",
    "ORMRewardConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RuntimeConfig",
    "SFTConfig",
    "SORMConfig",
    "SORMRewardConfig",
    "SVAMPConfig",
    "SampleConfig",
    "SamplerConfig",
    "StoriesConfig",
    "TrainConfig",
    "asks_for_reward",
    "decisive",
    "makes_policy",
    "prerequisites",
    "readable_name",
    "resolve",
    "resolve_evaluation",
    "training_set",
    "validate",
    "validate_evaluation",
]
