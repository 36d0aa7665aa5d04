"""What a run is made of: one dataclass for each config group, and the rules between them.

YAML under conf/ supplies every value; the dataclasses here say which keys exist and of which type.
``resolve`` turns a composed config into dataclasses and checks what no single type can, before any
compute is spent. ``decisive`` is what a run's identity is made of.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reasonrl.errors import UserError

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


@dataclass(frozen=True)
class ModelConfig:
    name: str
    path: str  # folder, hub id, .gguf file, or package:NAME for the .gguf inside a Python package
    compute_dtype: str  # of sampling, and of the learner's matrix products; weights stay float32
    device: str


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


AlgorithmConfig = SFTConfig | EIConfig | SampleConfig | ORMConfig | SORMConfig


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


SPARSE = RewardConfig(name="sparse", threshold=1.0)  # of runs that come first


@dataclass(frozen=True)
class DatasetConfig:
    name: str
    train_size: int | None  # None: the whole split
    validation_size: int | None
    test_size: int | None
    reward_train_size: int | None  # what reward models learn from; None: train_size
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


SCHEMAS: dict[str, dict[str, type]] = {
    "model": {},
    "init": dict.fromkeys(("pretrained", "sft", "ei", "run"), InitConfig),
    "algorithm": {
        "sft": SFTConfig,
        "ei": EIConfig,
        "sample": SampleConfig,
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
    "evaluation": {},
    "runtime": {},
}
ANY_NAME: dict[str, type] = {
    "model": ModelConfig,
    "evaluation": EvaluationConfig,
    "runtime": RuntimeConfig,
}
SPLITS = {
    "stories": ("train", "validation", "test", "ood"),
    "gsm8k": ("train", "validation", "test"),
    "svamp": ("train", "validation", "test"),
}
OF_ENTRY_POINTS = {"dry_run", "run", "reward_model", "predictions"}  # what a run isn't made of
COMPUTE_DTYPES = ("float32", "bfloat16")
TRAINABLE = ("all", "head", "lora")
TARGETS = ("tokens", "final")
LEARNED_AT = ("end", "steps", "differences")


def section(config: DictConfig, key: str) -> Any:
    """One config group as its dataclass.

    Raises UserError for an unknown name, key or type.
    """
    node = config.get(key)
    if node is None:
        raise UserError(f"{key} must be set; got {key}=null.")
    schema = ANY_NAME.get(key)
    if schema is None:
        options = SCHEMAS[key]
        name = node.get("name")
        if name not in options:
            raise UserError(
                f"{key}.name must be one of {', '.join(options)}; got {key}.name={name}."
            )
        schema = options[name]
    return _typed(schema, node, key)


def _typed(schema: type, node: DictConfig, key: str) -> Any:
    """The node as an instance of ``schema``. Raises UserError for an unknown or ill-typed key."""
    hints = get_type_hints(schema)
    nested = {name: inner for name, hint in hints.items() if (inner := _dataclass_in(hint))}
    flat = dataclasses.make_dataclass(
        schema.__name__,
        [
            (f.name, hints[f.name], dataclasses.field(default=f.default))
            for f in dataclasses.fields(schema)
            if f.name not in nested
        ],
    )
    given = [name for name in node if not OmegaConf.is_missing(node, name)]
    values = {name: node[name] for name in given if name not in nested}
    try:
        typed = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(flat), values))
    except OmegaConfBaseException as error:
        known = ", ".join(f.name for f in dataclasses.fields(schema))
        reason = str(error).splitlines()[0]
        full_key = f"{key}.{error.key}" if error.key else key
        raise UserError(f"{full_key}: {reason.rstrip('.')}. {key} has the keys {known}.") from None
    parts = {}
    for name, inner in nested.items():
        part = node.get(name)
        if part is None and inner is hints[name]:
            raise UserError(f"{key}.{name} must be set; got {key}.{name}=null.")
        if part is not None and not isinstance(part, DictConfig):
            raise UserError(f"{key}.{name} must hold settings; got {key}.{name}={part}.")
        parts[name] = None if part is None else _typed(inner, part, f"{key}.{name}")
    return schema(**{f.name: getattr(typed, f.name) for f in dataclasses.fields(flat)}, **parts)


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass of a hint ``X`` or ``X | None``; None where there is none."""
    options = [t for t in (hint, *get_args(hint)) if isinstance(t, type)]
    return next((t for t in options if dataclasses.is_dataclass(t)), None)


def resolve(config: DictConfig) -> TrainConfig:
    """A composed conf/train.yaml as dataclasses, validated. Raises UserError."""
    resolved = TrainConfig(**_sections(config, TrainConfig))
    validate(resolved)
    return resolved


def resolve_evaluation(config: DictConfig) -> EvaluateConfig:
    """A composed conf/evaluate.yaml as dataclasses, validated. Raises UserError."""
    resolved = EvaluateConfig(**_sections(config, EvaluateConfig))
    validate_evaluation(resolved)
    return resolved


def _sections(config: DictConfig, schema: type[EvaluateConfig]) -> dict[str, Any]:
    plain = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    assert isinstance(plain, DictConfig)
    seed = plain.get("seed")
    _require(
        isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0,
        f"seed must be a whole number, 0 or more; got seed={seed}.",
    )
    names = [f.name for f in dataclasses.fields(schema) if f.name != "seed"]
    for key in {*plain} - {"seed", *names} - OF_ENTRY_POINTS:
        raise UserError(f"{key} must be a known key. Remove it; got +{key}.")
    return {"seed": seed, **{name: section(plain, name) for name in names}}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


def _require_one_of(key: str, value: str, options: tuple[str, ...]) -> None:
    _require(value in options, f"{key} must be one of {', '.join(options)}; got {key}={value}.")


def _validate_learner(key: str, learner: LearnerConfig) -> None:
    for name in ("epochs", "batch_size", "micro_batch_tokens"):
        value = getattr(learner, name)
        _require(value >= 1, f"{key}.{name} must be 1 or more; got {value}.")
    for name in ("learning_rate", "max_grad_norm"):
        value = getattr(learner, name)
        _require(math.isfinite(value) and value > 0, f"{key}.{name} must be above 0; got {value}.")
    _require(
        0 <= learner.final_learning_rate <= learner.learning_rate,
        f"{key}.final_learning_rate={learner.final_learning_rate} must be between 0 and the peak; "
        f"got {key}.learning_rate={learner.learning_rate}. Lower the first or raise the second.",
    )
    _require(
        0 <= learner.warmup_fraction < 1,
        f"{key}.warmup_fraction must be at least 0 and below 1; got {learner.warmup_fraction}.",
    )
    _require(
        0 <= learner.weight_decay < math.inf,
        f"{key}.weight_decay must be 0 or more; got {learner.weight_decay}.",
    )


def _validate_ei(key: str, ei: EIConfig) -> None:
    _validate_learner(key, ei)
    _require(ei.rounds >= 1, f"{key}.rounds must be 1 or more; got {ei.rounds}.")
    samples = ei.num_samples_per_prompt
    _require(
        1 <= len(samples) <= ei.rounds and min(samples) >= 1,
        f"{key}.num_samples_per_prompt={samples} must hold 1 to {key}.rounds numbers, each "
        f"1 or more; got {key}.rounds={ei.rounds}. One number serves every round: [8].",
    )
    _require(
        0 < ei.temperature < math.inf,
        f"{key}.temperature={ei.temperature} must be above 0: greedy samples of one prompt are "
        "all the same. Expert Iteration explores at 1.0.",
    )
    for name in ("top_per_problem", "max_per_problem", "patience"):
        value = getattr(ei, name)
        _require(
            value is None or value >= 1,
            f"{key}.{name} must be null (off) or 1 or more; got {value}.",
        )


def _validate_sample(key: str, sample: SampleConfig) -> None:
    _require(
        sample.num_samples_per_prompt >= 1,
        f"{key}.num_samples_per_prompt must be 1 or more; got {sample.num_samples_per_prompt}.",
    )
    _require(
        0 < sample.temperature < math.inf,
        f"{key}.temperature={sample.temperature} must be above 0: greedy samples of one prompt are "
        "all the same.",
    )


def _validate_reward_model(key: str, model: RewardModelConfig) -> None:
    _validate_learner(key, model)
    _validate_sample(f"{key}.sample", model.sample)
    _require_one_of(f"{key}.trainable", model.trainable, TRAINABLE)
    _require(model.lora_rank >= 1, f"{key}.lora_rank must be 1 or more; got {model.lora_rank}.")
    _require(
        0 < model.held_out < 1,
        f"{key}.held_out={model.held_out} must be above 0 and below 1: it is the share of the "
        "questions that the reward model is calibrated on and doesn't learn from.",
    )
    if isinstance(model, ORMConfig):
        _require_one_of(f"{key}.targets", model.targets, TARGETS)
    if isinstance(model, SORMConfig):
        _require(
            model.num_continuations >= 1,
            f"{key}.num_continuations must be 1 or more; got {model.num_continuations}.",
        )
        _require(
            1 <= model.num_solutions_per_prompt <= model.sample.num_samples_per_prompt,
            f"{key}.num_solutions_per_prompt={model.num_solutions_per_prompt} must be 1 or more "
            f"and at most {key}.sample.num_samples_per_prompt; got "
            f"{model.sample.num_samples_per_prompt}.",
        )


def _validate_reward(reward: RewardConfig) -> None:
    weights = {
        f.name: getattr(reward, f.name)
        for f in dataclasses.fields(reward)
        if f.name.endswith("_weight")
    }
    for name, weight in weights.items():
        _require(0 <= weight < math.inf, f"reward.{name} must be 0 or more; got {weight}.")
    best = sum(weights.values()) if weights else 1.0
    _require(
        0 < reward.threshold <= best,
        f"reward.threshold={reward.threshold} must be above 0, which failures reach too, and at "
        f"most {best:g}, the best score there is; got reward={reward.name}"
        + "".join(f" reward.{name}={weight:g}" for name, weight in weights.items())
        + ".",
    )
    if isinstance(reward, LearnedConfig):
        _require_one_of("reward.at", reward.at, LEARNED_AT)
        if reward.policy is not None:
            _validate_ei("reward.policy", reward.policy)
    if isinstance(reward, ORMRewardConfig | SORMRewardConfig):
        _validate_reward_model("reward.model", reward.model)


def _validate_dataset(dataset: DatasetConfig) -> None:
    sizes = [f.name for f in dataclasses.fields(DatasetConfig) if f.name.endswith("_size")]
    for name in (*sizes, "num_references"):
        value = getattr(dataset, name)
        _require(
            value is None or value >= 1,
            f"dataset.{name} must be null (all there are) or 1 or more; got {value}.",
        )
    _require(
        "{question}" in dataset.prompt,
        f"dataset.prompt={dataset.prompt!r} must contain {{question}}.",
    )
    _require(
        all(dataset.stop), "dataset.stop must not hold an empty string. Remove it, or pass []."
    )
    _require(
        dataset.max_new_tokens >= 1,
        f"dataset.max_new_tokens must be 1 or more; got {dataset.max_new_tokens}.",
    )
    _require(
        dataset.num_exemplars >= 0,
        f"dataset.num_exemplars must be 0 or more; got {dataset.num_exemplars}.",
    )
    if isinstance(dataset, StoriesConfig):
        _require(
            1 <= dataset.min_steps <= dataset.max_steps,
            f"dataset.min_steps={dataset.min_steps} must be between 1 and dataset.max_steps; got "
            f"dataset.max_steps={dataset.max_steps}.",
        )
        _require(
            None not in (dataset.train_size, dataset.validation_size, dataset.test_size),
            "dataset.train_size, validation_size and test_size must be numbers; got null with "
            "dataset=stories, whose splits have no end.",
        )


def validate_evaluation(config: EvaluateConfig) -> None:
    """Every range and rule of what decides an evaluation. Raises UserError."""
    dataset, evaluation = config.dataset, config.evaluation
    _require(
        config.model.compute_dtype in COMPUTE_DTYPES,
        f"model.compute_dtype must be one of {', '.join(COMPUTE_DTYPES)}; got "
        f"{config.model.compute_dtype}.",
    )
    _validate_dataset(dataset)
    splits = SPLITS[dataset.name]
    _require(
        evaluation.split in splits,
        f"evaluation.split={evaluation.split} must be one of {', '.join(splits)}; got "
        f"dataset={dataset.name}.",
    )
    _require(
        evaluation.split != "validation" or dataset.num_exemplars == 0,
        f"evaluation.split=validation must leave out the exemplars, which come from it; got "
        f"dataset.num_exemplars={dataset.num_exemplars}. Pass dataset.num_exemplars=0.",
    )
    _require(
        evaluation.num_samples_per_prompt >= 1,
        f"evaluation.num_samples_per_prompt must be 1 or more; got "
        f"{evaluation.num_samples_per_prompt}.",
    )
    _require(
        0 < evaluation.temperature < math.inf,
        f"evaluation.temperature must be above 0; got {evaluation.temperature}. maj@1 is greedy "
        "whatever it is.",
    )
    _require(
        config.sampler.batch_size >= 1,
        f"sampler.batch_size must be 1 or more; got {config.sampler.batch_size}.",
    )
    threads = config.runtime.threads
    _require(
        threads is None or threads >= 1,
        f"runtime.threads must be null (one for each core) or 1 or more; got {threads}.",
    )


def validate(config: TrainConfig) -> None:
    """Every range, and every rule that spans more than one value. Raises UserError."""
    validate_evaluation(config)
    init, algorithm = config.init, config.algorithm
    _require(
        not (algorithm.name == "sft" and init.name == "sft"),
        "algorithm=sft must start from other weights than its own result; got init=sft. "
        "Pass init=pretrained.",
    )
    _require(
        init.run is not None if init.name == "run" else init.run is None or init.name == "ei",
        f"init.run must name a run's folder with init=run, and only there; got init={init.name} "
        f"init.run={init.run}. Pass init=run init.run=outputs/runs/NAME.",
    )
    _require(
        init.sft is not None if init.name == "sft" else init.sft is None or init.name == "ei",
        f"init.sft must be set with init=sft or init=ei, and only there; got init={init.name}.",
    )
    _require(
        (init.name == "ei") == (init.ei is not None),
        f"init.ei must be set with init=ei, and only there; got init={init.name}.",
    )
    _require(
        init.run is None or init.sft is None,
        f"init.run={init.run} must be all that the run of init=ei starts from; got init.sft too. "
        "Pass init.sft=null.",
    )
    if init.sft is not None:
        _validate_learner("init.sft", init.sft)
    if init.ei is not None:
        _validate_ei("init.ei", init.ei)
    match algorithm:
        case EIConfig():
            _validate_ei("algorithm", algorithm)
        case RewardModelConfig():
            _validate_reward_model("algorithm", algorithm)
        case SampleConfig():
            _validate_sample("algorithm", algorithm)
        case SFTConfig():
            _validate_learner("algorithm", algorithm)
    _validate_reward(config.reward)


def asks_for_reward(algorithm: AlgorithmConfig) -> bool:
    """Whether the reward is part of a run of this algorithm."""
    return isinstance(algorithm, EIConfig)


def makes_policy(algorithm: AlgorithmConfig) -> bool:
    """Whether a run of this algorithm ends with a policy to evaluate."""
    return isinstance(algorithm, SFTConfig | EIConfig)


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
    """The dataset with the training problems of a run: a reward model may have its own number."""
    dataset = config.dataset
    if isinstance(config.algorithm, SampleConfig | RewardModelConfig):
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
