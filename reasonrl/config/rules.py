"""What the values of a configuration must be, each and together; checked before any compute."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

from reasonrl.config.schemas import (
    DatasetConfig,
    EIConfig,
    EvaluateConfig,
    LearnedConfig,
    LearnerConfig,
    ModelConfig,
    ORMConfig,
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
    StoriesConfig,
    TrainConfig,
    WandbConfig,
)
from reasonrl.errors import UserError

SPLITS = {
    "stories": ("train", "validation", "test", "ood"),
    "gsm8k": ("train", "validation", "test"),
    "svamp": ("train", "validation", "test"),
}
COMPUTE_DTYPES = ("float32", "bfloat16")
TRAINABLE = ("all", "head", "lora")  # of a reward model
TARGETS = ("tokens", "final")
LEARNED_AT = ("end", "steps", "differences")
TRAINED_BY_PPO = ("all", "top", "lora")
KL_PENALTIES = ("reward", "loss")
OLD_LOGPROBS = ("recomputed", "sampler")
RETURNS = ("value", "solution")
LABEL_TOKENS = ("own", "text")
WANDB_MODES = ("auto", "online", "offline", "disabled")


def validate_evaluation(config: EvaluateConfig) -> None:
    """Every range and rule of what decides an evaluation. Raises UserError."""
    dataset, evaluation = config.dataset, config.evaluation
    require(
        config.model.compute_dtype in COMPUTE_DTYPES,
        f"model.compute_dtype must be one of {', '.join(COMPUTE_DTYPES)}; got "
        f"{config.model.compute_dtype}.",
    )
    _validate_resources(config.model)
    _validate_dataset(dataset)
    splits = SPLITS[dataset.name]
    require(
        evaluation.split in splits,
        f"evaluation.split={evaluation.split} must be one of {', '.join(splits)}; got "
        f"dataset={dataset.name}.",
    )
    require(
        evaluation.split != "validation" or dataset.num_exemplars == 0,
        f"evaluation.split=validation must leave out the exemplars, which come from it; got "
        f"dataset.num_exemplars={dataset.num_exemplars}. Pass dataset.num_exemplars=0.",
    )
    require(
        evaluation.num_samples_per_prompt >= 1,
        f"evaluation.num_samples_per_prompt must be 1 or more; got "
        f"{evaluation.num_samples_per_prompt}.",
    )
    require(
        0 < evaluation.temperature < math.inf,
        f"evaluation.temperature must be above 0; got {evaluation.temperature}. maj@1 is greedy "
        "whatever it is.",
    )
    require(
        config.sampler.batch_size >= 1,
        f"sampler.batch_size must be 1 or more; got {config.sampler.batch_size}.",
    )
    threads = config.runtime.threads
    require(
        threads is None or threads >= 1,
        f"runtime.threads must be null (one for each core) or 1 or more; got {threads}.",
    )


def validate(config: TrainConfig) -> None:
    """Every range, and every rule that spans more than one value. Raises UserError."""
    validate_evaluation(config)
    init, algorithm = config.init, config.algorithm
    require(
        not (algorithm.name == "sft" and init.name == "sft"),
        "algorithm=sft must start from other weights than its own result; got init=sft. "
        "Pass init=pretrained.",
    )
    require(
        init.run is not None if init.name == "run" else init.run is None or init.name == "ei",
        f"init.run must name a run's folder with init=run, and only there; got init={init.name} "
        f"init.run={init.run}. Pass init=run init.run=outputs/runs/NAME.",
    )
    require(
        init.sft is not None if init.name == "sft" else init.sft is None or init.name == "ei",
        f"init.sft must be set with init=sft or init=ei, and only there; got init={init.name}.",
    )
    require(
        (init.name == "ei") == (init.ei is not None),
        f"init.ei must be set with init=ei, and only there; got init={init.name}.",
    )
    require(
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
        case StepsConfig():
            _validate_sample("algorithm.sample", algorithm.sample)
            _validate_continuations("algorithm", algorithm)
        case PPOConfig():
            _validate_ppo("algorithm", algorithm)
        case RCRLConfig():
            _validate_rcrl("algorithm", algorithm)
        case SFTConfig():
            _validate_learner("algorithm", algorithm)
    _validate_reward(config.reward)
    if isinstance(config.tracking, WandbConfig):
        _validate_wandb(config.tracking)


def _validate_learner(key: str, learner: LearnerConfig) -> None:
    for name in ("epochs", "batch_size", "micro_batch_tokens"):
        value = getattr(learner, name)
        require(value >= 1, f"{key}.{name} must be 1 or more; got {value}.")
    for name in ("learning_rate", "max_grad_norm"):
        value = getattr(learner, name)
        require(math.isfinite(value) and value > 0, f"{key}.{name} must be above 0; got {value}.")
    require(
        0 <= learner.final_learning_rate <= learner.learning_rate,
        f"{key}.final_learning_rate={learner.final_learning_rate} must be between 0 and the peak; "
        f"got {key}.learning_rate={learner.learning_rate}. Lower the first or raise the second.",
    )
    require(
        0 <= learner.warmup_fraction < 1,
        f"{key}.warmup_fraction must be at least 0 and below 1; got {learner.warmup_fraction}.",
    )
    require(
        0 <= learner.weight_decay < math.inf,
        f"{key}.weight_decay must be 0 or more; got {learner.weight_decay}.",
    )


def _validate_ei(key: str, ei: EIConfig) -> None:
    _validate_learner(key, ei)
    require(ei.rounds >= 1, f"{key}.rounds must be 1 or more; got {ei.rounds}.")
    samples = ei.num_samples_per_prompt
    require(
        1 <= len(samples) <= ei.rounds and min(samples) >= 1,
        f"{key}.num_samples_per_prompt={samples} must hold 1 to {key}.rounds numbers, each "
        f"1 or more; got {key}.rounds={ei.rounds}. One number serves every round: [8].",
    )
    require(
        0 < ei.temperature < math.inf,
        f"{key}.temperature={ei.temperature} must be above 0: greedy samples of one prompt are "
        "all the same. Expert Iteration explores at 1.0.",
    )
    for name in ("top_per_problem", "max_per_problem", "patience"):
        value = getattr(ei, name)
        require(
            value is None or value >= 1,
            f"{key}.{name} must be null (off) or 1 or more; got {value}.",
        )


def _validate_ppo(key: str, ppo: PPOConfig) -> None:
    _validate_learner(key, ppo)
    _require_one_of(f"{key}.kl_penalty", ppo.kl_penalty, KL_PENALTIES)
    _require_one_of(f"{key}.old_logprobs", ppo.old_logprobs, OLD_LOGPROBS)
    _require_one_of(f"{key}.trainable", ppo.trainable, TRAINED_BY_PPO)
    for name in (
        "iterations",
        "num_samples_per_prompt",
        "kl_horizon",
        "trainable_layers",
        "lora_rank",
        "validate_every",
    ):
        value = getattr(ppo, name)
        require(value >= 1, f"{key}.{name} must be 1 or more; got {value}.")
    require(
        0 < ppo.value_learning_rate < math.inf,
        f"{key}.value_learning_rate must be above 0; got {ppo.value_learning_rate}.",
    )
    for name in ("gamma", "gae_lambda"):
        value = getattr(ppo, name)
        require(0 <= value <= 1, f"{key}.{name} must be between 0 and 1; got {value}.")
    for name in ("value_coef", "value_layers", "entropy_coef", "kl_coef", "truncation_penalty"):
        value = getattr(ppo, name)
        require(0 <= value < math.inf, f"{key}.{name} must be 0 or more; got {value}.")
    for name in ("value_clip_range", "kl_target", "max_approx_kl", "score_clip"):
        value = getattr(ppo, name)
        require(
            value is None or 0 < value < math.inf,
            f"{key}.{name} must be null (off) or above 0; got {value}.",
        )
    require(
        0 < ppo.clip_range < 1,
        f"{key}.clip_range must be above 0 and below 1; got {ppo.clip_range}.",
    )
    require(
        0 < ppo.temperature < math.inf,
        f"{key}.temperature={ppo.temperature} must be above 0: PPO learns from the differences "
        "between samples of one prompt. The paper explores at 0.7, and at 0.2 from a prompted "
        "pretrained model.",
    )
    samples = ppo.num_samples_per_prompt
    for name in ("rollouts_per_iteration", "batch_size"):
        value = getattr(ppo, name)
        require(
            value >= 1 and value % samples == 0,
            f"{key}.{name}={value} must be a multiple of {key}.num_samples_per_prompt: it is made "
            f"of whole questions; got {samples}. Pass {max(1, round(value / samples)) * samples}.",
        )
    require(
        ppo.kl_target is None or ppo.kl_coef > 0,
        f"{key}.kl_coef must be above 0 to adapt to {key}.kl_target={ppo.kl_target}; got "
        f"{ppo.kl_coef}. Pass {key}.kl_coef=0.05 or {key}.kl_target=null.",
    )
    require(
        5 * ppo.kl_horizon > ppo.rollouts_per_iteration,
        f"{key}.kl_horizon={ppo.kl_horizon} must be above a fifth of {key}.rollouts_per_iteration, "
        f"or one iteration could make the coefficient 0; got {ppo.rollouts_per_iteration}. Raise "
        "it.",
    )
    require(
        not (ppo.mask_truncated and ppo.truncation_penalty),
        f"{key}.truncation_penalty={ppo.truncation_penalty} must be 0 where truncated completions "
        f"aren't learnt from; got {key}.mask_truncated=true. Choose one.",
    )


def _validate_rcrl(key: str, rcrl: RCRLConfig) -> None:
    _validate_learner(key, rcrl)
    if rcrl.policy is not None:
        _validate_ei(f"{key}.policy", rcrl.policy)
    _validate_sample(f"{key}.sample", rcrl.sample)
    _validate_continuations(key, rcrl)
    _require_one_of(f"{key}.returns", rcrl.returns, RETURNS)
    _require_one_of(f"{key}.label_tokens", rcrl.label_tokens, LABEL_TOKENS)
    labels, thresholds = rcrl.labels, rcrl.thresholds
    if labels is None:
        require(
            not thresholds,
            f"{key}.thresholds={thresholds} must be [] where a label is the return itself; got "
            f"{key}.labels=null. Pass {key}.thresholds=[].",
        )
    else:
        require(
            len({*labels}) == len(labels) >= 2 and all(label.strip() for label in labels),
            f"{key}.labels={labels} must be two different texts or more, from the worst to the "
            "best, none of them blank.",
        )
        require(
            len(thresholds) == len(labels) - 1
            and all(a < b for a, b in pairwise([0.0, *thresholds]))
            and all(threshold <= 1 for threshold in thresholds),
            f"{key}.thresholds={thresholds} must be one fewer than {key}.labels, rising, above 0 "
            f"and at most 1; got {len(labels)} labels.",
        )
    for name in ("solution_ratio", "step_ratio"):
        ratio = getattr(rcrl, name)
        require(
            ratio is None or ratio > 0,
            f"{key}.{name} must be null (as it is), above 0, or inf (positive ones alone); got "
            f"{ratio}.",
        )


def _validate_continuations(key: str, steps: StepsConfig | SORMConfig | RCRLConfig) -> None:
    require(
        steps.num_continuations >= 1,
        f"{key}.num_continuations must be 1 or more; got {steps.num_continuations}.",
    )
    require(
        1 <= steps.num_solutions_per_prompt <= steps.sample.num_samples_per_prompt,
        f"{key}.num_solutions_per_prompt={steps.num_solutions_per_prompt} must be 1 or more "
        f"and at most {key}.sample.num_samples_per_prompt; got "
        f"{steps.sample.num_samples_per_prompt}.",
    )


def _validate_sample(key: str, sample: SampleConfig) -> None:
    require(
        sample.num_samples_per_prompt >= 1,
        f"{key}.num_samples_per_prompt must be 1 or more; got {sample.num_samples_per_prompt}.",
    )
    require(
        0 < sample.temperature < math.inf,
        f"{key}.temperature={sample.temperature} must be above 0: greedy samples of one prompt are "
        "all the same.",
    )


def _validate_reward_model(key: str, model: RewardModelConfig) -> None:
    _validate_learner(key, model)
    _validate_sample(f"{key}.sample", model.sample)
    _require_one_of(f"{key}.trainable", model.trainable, TRAINABLE)
    require(model.lora_rank >= 1, f"{key}.lora_rank must be 1 or more; got {model.lora_rank}.")
    require(
        0 < model.held_out < 1,
        f"{key}.held_out={model.held_out} must be above 0 and below 1: it is the share of the "
        "questions that the reward model is calibrated on and doesn't learn from.",
    )
    if isinstance(model, ORMConfig):
        _require_one_of(f"{key}.targets", model.targets, TARGETS)
    if isinstance(model, SORMConfig):
        _validate_continuations(key, model)


def _validate_reward(reward: RewardConfig) -> None:
    weights = {
        f.name: getattr(reward, f.name)
        for f in dataclasses.fields(reward)
        if f.name.endswith("_weight")
    }
    for name, weight in weights.items():
        require(0 <= weight < math.inf, f"reward.{name} must be 0 or more; got {weight}.")
    best = reward.best
    require(
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


def _validate_resources(model: ModelConfig) -> None:
    require(
        model.num_parameters is None or model.num_parameters >= 1,
        f"model.num_parameters must be null (not known) or 1 or more; got {model.num_parameters}.",
    )
    resources = model.resources
    require(resources.gpus >= 0, f"model.resources.gpus must be 0 or more; got {resources.gpus}.")
    for name in ("cpus", "memory_gb"):
        value = getattr(resources, name)
        require(value >= 1, f"model.resources.{name} must be 1 or more; got {value}.")
    require(
        0 < resources.hours < math.inf,
        f"model.resources.hours must be above 0; got {resources.hours}.",
    )


def _validate_dataset(dataset: DatasetConfig) -> None:
    sizes = [f.name for f in dataclasses.fields(DatasetConfig) if f.name.endswith("_size")]
    for name in (*sizes, "num_references"):
        value = getattr(dataset, name)
        require(
            value is None or value >= 1,
            f"dataset.{name} must be null (all there are) or 1 or more; got {value}.",
        )
    require(
        "{question}" in dataset.prompt,
        f"dataset.prompt={dataset.prompt!r} must contain {{question}}.",
    )
    require(all(dataset.stop), "dataset.stop must not hold an empty string. Remove it, or pass [].")
    require(
        dataset.max_new_tokens >= 1,
        f"dataset.max_new_tokens must be 1 or more; got {dataset.max_new_tokens}.",
    )
    require(
        dataset.num_exemplars >= 0,
        f"dataset.num_exemplars must be 0 or more; got {dataset.num_exemplars}.",
    )
    if isinstance(dataset, StoriesConfig):
        require(
            1 <= dataset.min_steps <= dataset.max_steps,
            f"dataset.min_steps={dataset.min_steps} must be between 1 and dataset.max_steps; got "
            f"dataset.max_steps={dataset.max_steps}.",
        )
        require(
            None not in (dataset.train_size, dataset.validation_size, dataset.test_size),
            "dataset.train_size, validation_size and test_size must be numbers; got null with "
            "dataset=stories, whose splits have no end.",
        )


def _validate_wandb(tracking: WandbConfig) -> None:
    _require_one_of("tracking.mode", tracking.mode, WANDB_MODES)
    forbidden = sorted({*tracking.project} & {*"/\\#?%:"})
    require(
        1 <= len(tracking.project) <= 128 and not forbidden,
        f"tracking.project must have 1 to 128 characters, none of them /\\#?%:, as W&B asks; got "
        f"tracking.project={tracking.project}.",
    )
    require(
        all(1 <= len(tag) <= 64 for tag in tracking.tags),
        f"tracking.tags must have 1 to 64 characters each, as W&B asks; got {tracking.tags}.",
    )
    require(
        0 < tracking.timeout_seconds < math.inf,
        f"tracking.timeout_seconds must be above 0; got {tracking.timeout_seconds}.",
    )


def require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


def _require_one_of(key: str, value: str, options: tuple[str, ...]) -> None:
    require(value in options, f"{key} must be one of {', '.join(options)}; got {key}={value}.")
