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
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reasonrl.errors import UserError

# What doesn't change the result of a run and so is no part of its identity.
NOT_DECISIVE = {
    "model.device",
    "algorithm.micro_batch_tokens",
    "init.sft.micro_batch_tokens",
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
    score_threshold: float
    max_per_problem: int | None
    restart: bool  # each round from the base weights; false: from the last round's policy
    patience: int | None  # stop after so many rounds without a better validation maj@1


AlgorithmConfig = SFTConfig | EIConfig


@dataclass(frozen=True)
class InitConfig:
    name: str
    sft: SFTConfig | None = None  # init=sft: the run that makes the starting policy
    run: str | None = None  # init=run: any earlier run's folder; its name counts, not its place


@dataclass(frozen=True)
class RewardConfig:
    name: str


@dataclass(frozen=True)
class DatasetConfig:
    name: str
    train_size: int | None  # None: the whole split
    validation_size: int | None
    test_size: int | None
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
    "init": dict.fromkeys(("pretrained", "sft", "run"), InitConfig),
    "algorithm": {"sft": SFTConfig, "ei": EIConfig},
    "reward": {"sparse": RewardConfig},
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
OF_ENTRY_POINTS = {"dry_run", "run", "predictions"}  # what a run isn't made of
COMPUTE_DTYPES = ("float32", "bfloat16")


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
    if schema is InitConfig and node.get("sft") is not None:
        rest = {k: v for k, v in node.items() if k != "sft"}
        init = _typed(InitConfig, OmegaConf.create(rest), key)
        return dataclasses.replace(init, sft=_typed(SFTConfig, node.sft, f"{key}.sft"))
    return _typed(schema, node, key)


def _typed(schema: type, node: DictConfig, key: str) -> Any:
    """The node as an instance of ``schema``. Raises UserError for an unknown or ill-typed key."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), node))
    except OmegaConfBaseException as error:
        known = ", ".join(f.name for f in dataclasses.fields(schema))
        reason = str(error).splitlines()[0]
        full_key = f"{key}.{error.key}" if error.key else key
        raise UserError(f"{full_key}: {reason.rstrip('.')}. {key} has the keys {known}.") from None


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


def _validate_ei(ei: EIConfig) -> None:
    _require(ei.rounds >= 1, f"algorithm.rounds must be 1 or more; got {ei.rounds}.")
    samples = ei.num_samples_per_prompt
    _require(
        1 <= len(samples) <= ei.rounds and min(samples) >= 1,
        f"algorithm.num_samples_per_prompt={samples} must hold 1 to algorithm.rounds numbers, each "
        f"1 or more; got algorithm.rounds={ei.rounds}. One number serves every round: [8].",
    )
    _require(
        0 < ei.temperature < math.inf,
        f"algorithm.temperature={ei.temperature} must be above 0: greedy samples of one prompt are "
        "all the same. Expert Iteration explores at 1.0.",
    )
    _require(
        0 < ei.score_threshold <= 1,
        f"algorithm.score_threshold={ei.score_threshold} must be above 0 and at most 1: a "
        "threshold of 0 would train on failures.",
    )
    for name in ("max_per_problem", "patience"):
        value = getattr(ei, name)
        _require(
            value is None or value >= 1,
            f"algorithm.{name} must be null (off) or 1 or more; got {value}.",
        )


def _validate_dataset(dataset: DatasetConfig) -> None:
    for name in ("train_size", "validation_size", "test_size", "num_references"):
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
        (init.name == "run") == (init.run is not None),
        f"init.run must name a run's folder with init=run, and only there; got init={init.name} "
        f"init.run={init.run}. Pass init=run init.run=outputs/runs/NAME.",
    )
    _require(
        (init.name == "sft") == (init.sft is not None),
        f"init.sft must be set with init=sft, and only there; got init={init.name}.",
    )
    _validate_learner("algorithm", algorithm)
    if init.sft is not None:
        _validate_learner("init.sft", init.sft)
    if isinstance(algorithm, EIConfig):
        _validate_ei(algorithm)


def decisive(config: EvaluateConfig) -> dict[str, Any]:
    """What decides a run's or an evaluation's result, as plain values: its identity's input."""
    values = _without(dataclasses.asdict(config), NOT_DECISIVE)
    if isinstance(config, TrainConfig):
        if config.init.run is not None:
            values["init"]["run"] = Path(config.init.run).name
        if config.algorithm.name == "sft":
            del values["reward"]  # supervised learning never asks for one
    return values


def _without(values: dict[str, Any], keys: set[str], prefix: str = "") -> dict[str, Any]:
    return {
        key: _without(value, keys, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in values.items()
        if f"{prefix}{key}" not in keys
    }


def readable_name(config: TrainConfig) -> str:
    """``ei-sparse-tiny-sft-stories-s0``; a supervised run has no reward in its name."""
    parts = [
        config.algorithm.name,
        *([] if config.algorithm.name == "sft" else [config.reward.name]),
        config.model.name,
        config.init.name,
        config.dataset.name,
        f"s{config.seed}",
    ]
    return "-".join(parts)


def sft_prerequisite(config: TrainConfig) -> TrainConfig:
    """The run that makes the starting policy of ``config``, which has init=sft."""
    if config.init.sft is None:
        raise ValueError("only init=sft has a supervised prerequisite")
    return dataclasses.replace(
        config, algorithm=config.init.sft, init=InitConfig(name="pretrained")
    )
