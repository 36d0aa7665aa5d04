"""The keys of each config group and their types; YAML under conf/ supplies every value."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class ResourcesConfig:
    """What a cluster is asked for, for one run. It says nothing about a run that isn't on one."""

    gpus: int
    cpus: int
    memory_gb: int  # of the machine, not of its GPUs
    hours: float


@dataclass(frozen=True)
class ModelConfig:
    name: str
    path: str  # folder, hub id, .gguf file, or package:NAME for the .gguf inside a Python package
    compute_dtype: str  # of sampling, and of the learner's matrix products; weights stay float32
    device: str
    # Older runs have neither of these.
    num_parameters: int | None = None  # for a plan without the weights; None: not known
    resources: ResourcesConfig = ResourcesConfig(gpus=1, cpus=8, memory_gb=64, hours=24.0)


@dataclass(frozen=True)
class LearnerConfig:
    """The masked cross-entropy learner: see ``reasonrl.supervised``."""

    epochs: int
    batch_size: int  # completions per optimizer step
    learning_rate: float
    final_learning_rate: float
    warmup_fraction: float
    weight_decay: float
    max_grad_norm: float
    micro_batch_tokens: int


@dataclass(frozen=True)
class SFTConfig(LearnerConfig):
    name: str


@dataclass(frozen=True)
class EIConfig(LearnerConfig):
    """Expert Iteration: see ``reasonrl.algorithms.ei``."""

    name: str
    rounds: int
    num_samples_per_prompt: list[int]  # one number a round; the last also serves later rounds
    temperature: float
    top_per_problem: int | None  # of a round's good solutions of a problem, so many of the best
    max_per_problem: int | None
    restart: bool  # each round from the base weights; false: from the last round's policy
    patience: int | None  # stop after so many rounds without a better validation maj@1


@dataclass(frozen=True)
class SampleConfig:
    """Completions for reward models to learn from: see ``reasonrl.algorithms.sample``."""

    name: str
    num_samples_per_prompt: int
    temperature: float


@dataclass(frozen=True)
class StepsConfig:
    """What becomes of the steps of sampled completions: see ``reasonrl.algorithms.steps``."""

    name: str
    sample: SampleConfig
    num_solutions_per_prompt: int  # of the sampled completions, the steps of so many
    num_continuations: int  # of each step's prefix


@dataclass(frozen=True)
class RewardModelConfig(LearnerConfig):
    """What the two kinds of reward model share: see ``reasonrl.reward_learning``."""

    name: str
    sample: SampleConfig  # the completions it learns from
    likelihood: bool  # whether the head reads the log-probability of the completion so far
    trainable: str
    lora_rank: int  # trainable=lora
    balanced: bool  # right and wrong weigh the same, whatever their numbers
    held_out: float  # share of the training questions that it is calibrated on


@dataclass(frozen=True)
class ORMConfig(RewardModelConfig):
    """Outcome reward model: see ``reasonrl.algorithms.orm``."""

    targets: str


@dataclass(frozen=True)
class SORMConfig(RewardModelConfig):
    """Stepwise outcome reward model: see ``reasonrl.algorithms.sorm``."""

    num_solutions_per_prompt: int  # of the sampled completions, so many are labelled
    num_continuations: int  # of each step's prefix


@dataclass(frozen=True)
class CompatConfig:
    """What PPO frameworks of the paper's time did otherwise, to measure what it does."""

    unmasked_whitening: bool  # padding counts when advantages are whitened
    temperature_one_logprobs: bool  # log-probabilities at temperature 1, whatever was sampled at


@dataclass(frozen=True)
class PPOConfig(LearnerConfig):
    """Proximal Policy Optimization: see ``reasonrl.algorithms.ppo``.

    epochs: passes over the rollouts of an iteration.
    """

    name: str
    iterations: int
    rollouts_per_iteration: int
    num_samples_per_prompt: int
    temperature: float
    gamma: float
    gae_lambda: float
    clip_range: float
    value_clip_range: float | None
    value_learning_rate: float  # at the peak; it falls as the policy's does
    value_coef: float
    value_layers: int  # 0: a linear head on the policy; M: a copy of its top M layers and a head
    detach_value: bool  # whether the value's gradient stops before the policy's weights
    entropy_coef: float
    kl_coef: float
    kl_penalty: str
    kl_target: float | None  # nats per completion, to which kl_coef adapts
    kl_horizon: int  # rollouts over which it does
    max_approx_kl: float | None  # nats per token from old to new policy that end an iteration
    scale_scores: bool
    score_clip: float | None
    truncation_penalty: float  # taken off the score of a completion that was cut off
    mask_truncated: bool  # nothing is learnt from such a completion
    old_logprobs: str
    trainable: str
    trainable_layers: int  # trainable=top
    lora_rank: int  # trainable=lora
    validate_every: int  # iterations
    compat: CompatConfig


@dataclass(frozen=True)
class RCRLConfig(LearnerConfig):
    """Return-Conditioned RL: see ``reasonrl.algorithms.rcrl``."""

    name: str
    policy: EIConfig | None  # whose completions are learnt from; None: the starting policy's
    sample: SampleConfig  # these completions
    num_solutions_per_prompt: int  # of them, so many are learnt from
    num_continuations: int  # of each step's prefix, where these say how good the step is
    returns: str
    labels: list[str] | None  # from the worst; None: the return itself, rounded to a tenth
    thresholds: list[float]  # from this return on the second label is given, and so on
    label_tokens: str
    solution_ratio: float | None  # right solutions for each wrong one; None: as sampled
    step_ratio: float | None  # steps with the best label for each with another; None: as they are
    shuffle_labels: bool
    restart: bool  # from the base weights; false: from the starting policy


AlgorithmConfig = (
    SFTConfig
    | EIConfig
    | PPOConfig
    | RCRLConfig
    | SampleConfig
    | StepsConfig
    | ORMConfig
    | SORMConfig
)


@dataclass(frozen=True)
class InitConfig:
    """The starting policy. init=ei: the policy of an EI run, which itself starts from ``run`` or
    ``sft`` where one of them is set, else from the pretrained model."""

    name: str
    sft: SFTConfig | None = None  # the run that makes the starting policy
    ei: EIConfig | None = None
    run: str | None = None  # any earlier run's folder; its name counts, not its place


@dataclass(frozen=True)
class RewardConfig:
    """threshold: a completion that scores at least this is good: Expert Iteration keeps it."""

    name: str
    threshold: float

    @property
    def best(self) -> float:
        """The highest score there is."""
        weights = [getattr(self, f.name) for f in fields(self) if f.name.endswith("_weight")]
        return sum(weights) if weights else 1.0


@dataclass(frozen=True)
class DenseConfig(RewardConfig):
    """See ``reasonrl.rewards.dense``."""

    outcome_weight: float  # for the right final answer
    step_weight: float  # for all intermediate results of the reference solution together
    ordered: bool  # whether these count only in the reference's order


@dataclass(frozen=True)
class LearnedConfig(RewardConfig):
    """See ``reasonrl.rewards.learned``.

    run: a finished reward-model run's folder. Without it the run is made: by the subclass's
    ``model``, on completions of the policy that ``policy`` makes from the same init (null: of the
    starting policy itself).
    """

    outcome_weight: float  # for the right final answer
    model_weight: float  # for the reward model's verdict
    at: str
    run: str | None
    policy: EIConfig | None


@dataclass(frozen=True)
class ORMRewardConfig(LearnedConfig):
    model: ORMConfig


@dataclass(frozen=True)
class SORMRewardConfig(LearnedConfig):
    model: SORMConfig


@dataclass(frozen=True)
class DatasetConfig:
    name: str
    train_size: int | None  # None: the whole split
    validation_size: int | None
    test_size: int | None
    reward_train_size: int | None  # of reward models, PPO and RCRL; None: train_size
    num_references: int | None  # training problems whose solution may be learnt from; None: all
    prompt: str
    stop: list[str]
    max_new_tokens: int
    num_exemplars: int  # of a few-shot prompt, for a pretrained policy


@dataclass(frozen=True)
class StoriesConfig(DatasetConfig):
    min_steps: int
    max_steps: int


@dataclass(frozen=True)
class GSM8KConfig(DatasetConfig):
    annotations: bool  # keep <<48/2=24>> in the reference solutions
    hub: str
    path: str | None


@dataclass(frozen=True)
class SVAMPConfig(DatasetConfig):
    hub: str
    path: str | None


@dataclass(frozen=True)
class SamplerConfig:
    name: str
    batch_size: int  # completions in flight


@dataclass(frozen=True)
class EvaluationConfig:
    split: str
    num_samples_per_prompt: int
    temperature: float


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how a run is carried out; never part of what it is."""

    outputs: str
    threads: int | None
    checkpoint_seconds: float


@dataclass(frozen=True)
class TrackingConfig:
    """Where a run is shown while it is made, beside its own folder; never part of what it is."""

    name: str


@dataclass(frozen=True)
class WandbConfig(TrackingConfig):
    """See ``reasonrl.wandb_mirror``."""

    mode: str
    project: str
    entity: str | None
    group: str | None
    tags: list[str]
    timeout_seconds: float  # for the network, at a run's start and at its end


@dataclass(frozen=True)
class EvaluateConfig:
    """What decides the evaluation of a policy."""

    model: ModelConfig
    dataset: DatasetConfig
    sampler: SamplerConfig
    evaluation: EvaluationConfig
    seed: int
    runtime: RuntimeConfig


@dataclass(frozen=True)
class TrainConfig(EvaluateConfig):
    """What decides a run."""

    init: InitConfig
    algorithm: AlgorithmConfig
    reward: RewardConfig
    tracking: TrackingConfig = TrackingConfig("none")  # older runs have none


# By the name of an option; groups of which any name will do are below.
SCHEMAS: dict[str, dict[str, type]] = {
    "model": {},
    "init": dict.fromkeys(("pretrained", "sft", "ei", "run"), InitConfig),
    "algorithm": {
        "sft": SFTConfig,
        "ei": EIConfig,
        "ppo": PPOConfig,
        "rcrl": RCRLConfig,
        "sample": SampleConfig,
        "steps": StepsConfig,
        "orm": ORMConfig,
        "sorm": SORMConfig,
    },
    "reward": {
        "sparse": RewardConfig,
        "dense": DenseConfig,
        "orm": ORMRewardConfig,
        "sorm": SORMRewardConfig,
    },
    "dataset": {"stories": StoriesConfig, "gsm8k": GSM8KConfig, "svamp": SVAMPConfig},
    "sampler": {"transformers": SamplerConfig},
    "tracking": {"none": TrackingConfig, "wandb": WandbConfig},
    "evaluation": {},
    "runtime": {},
}
ANY_NAME: dict[str, type] = {
    "model": ModelConfig,
    "evaluation": EvaluationConfig,
    "runtime": RuntimeConfig,
}
