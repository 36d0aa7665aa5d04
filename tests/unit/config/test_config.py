"""Configurations: every file on disk composes, every rule refuses, identities are what they say."""

import re
from dataclasses import asdict

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from reasonrl.config.identity import decisive, prerequisites, readable_name, training_set
from reasonrl.config.resolve import resolve, resolve_evaluation, with_homes
from reasonrl.config.reward.sparse import SPARSE
from reasonrl.config.schema import EvaluateConfig, TrainConfig
from reasonrl.util.errors import UserError
from tests.helpers.configs import ROOT

CONF = ROOT / "conf"
FILES = {file.relative_to(CONF).with_suffix("").as_posix() for file in CONF.rglob("*.yaml")}
ENTRY_POINTS = {"train", "evaluate"}
PARTS = {  # what the others include
    "learner/default",
    "learner/orm",
    "learner/sorm",
    "policy_gradient/default",
    "hydra/help/train",
    "hydra/help/evaluate",
    "hydra/launcher/sweep",
    "hydra/sweeper/optuna",
    *(file for file in FILES if file.startswith(("by_scale/", "by_budget/"))),
}
OPTIONS = sorted(FILES - ENTRY_POINTS - PARTS)
EVALUATE_GROUPS = {"model", "dataset", "prompt", "sampler"}
NEEDS = {
    "init/run": ["init.run=outputs/runs/any"],
    "dataset/jsonl": ["dataset.path=any.jsonl", "init=pretrained"],
    "reward/function": ["reward.path=any.py:score"],
}


def composed(*overrides: str, name: str = "train") -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides))


def train(*overrides: str) -> TrainConfig:
    return resolve(composed(*overrides))


def evaluation(*overrides: str) -> EvaluateConfig:
    return resolve_evaluation(composed(*overrides, name="evaluate"))


def test_every_file_is_seen():
    on_disk = [p for p in CONF.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert len(on_disk) == len(FILES)  # nothing but YAML, no two of a name
    assert len(OPTIONS) + 10 + 6 * 3 + 6 == len(FILES) >= 52
    assert FILES >= ENTRY_POINTS | PARTS
    groups = {option.split("/")[0] for option in OPTIONS}
    assert groups == {
        "model", "init", "algorithm", "reward", "dataset", "prompt", "sampler", "tracking",
        "experiment", "scale", "budget",
    }  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_validates(option: str):
    group, name = option.split("/")
    config = train(f"{group}={name}", *NEEDS.get(option, []))
    if group == "scale":
        assert composed(f"scale={name}").scale.name == name
    elif group not in ("experiment", "budget"):
        assert getattr(config, group).name == name
    if group in EVALUATE_GROUPS:
        assert getattr(evaluation(f"{group}={name}", *NEEDS.get(option, [])[:1]), group) == getattr(
            config, group
        )


def options(group: str) -> list[str]:
    return sorted(option for option in OPTIONS if option.startswith(f"{group}/"))


# Every two options of different groups are together in one of them.
PAIRS = [
    (algorithm, init, f"dataset/{('gsm8k', 'stories', 'svamp')[(i + j) % 3]}")
    for i, algorithm in enumerate(options("algorithm"))
    for j, init in enumerate(options("init"))
]


@pytest.mark.parametrize(("algorithm", "init", "dataset"), PAIRS)
def test_options_combine(algorithm: str, init: str, dataset: str):
    chosen = [option.replace("/", "=") for option in (dataset, algorithm, init)]
    if (algorithm, init) == ("algorithm/sft", "init/sft"):
        with pytest.raises(UserError, match="algorithm=sft must start from other weights"):
            train(*chosen)
    else:
        train(*chosen, *NEEDS.get(init, []))


def test_defaults():
    config = train()
    assert readable_name(config) == "ei-sparse-tiny-sft-stories-s0"
    assert (config.seed, config.evaluation.split) == (0, "test")
    assert isinstance(config.algorithm.learning_rate, float)  # 1e-3 in YAML is a number
    assert evaluation().evaluation.num_samples_per_prompt == 96


def test_readable_name():
    assert readable_name(train("algorithm=sft", "seed=3")) == "sft-tiny-pretrained-stories-s3"
    overrides = ["model=small", "dataset=svamp", "init=run", "init.run=outputs/runs/x"]
    assert readable_name(train(*overrides)) == "ei-sparse-small-run-svamp-s0"


SPLIT = "evaluation.split"
# The override that breaks a rule, others it needs, and what the error must say.
RULES = [
    ("algorithm=sft", ["init=sft"], "algorithm=sft must start from other weights than its own "
     "result; got init=sft. Pass init=pretrained."),
    *(("dataset=jsonl", ["dataset.path=x", *others], "dataset=jsonl must have solutions to "
       f"fine-tune on; got dataset.fields.solution=null with init={init}, algorithm={name}. Name "
       "the field that holds them, or pass init=pretrained.")
      for name, init, others in (
          ("sft", "pretrained", ["algorithm=sft"]), ("ppo", "sft", ["algorithm=ppo"]))),
    ("+init.run=outputs/runs/x", [], "init.run must name a run's folder with init=run, and only "
     "there; got init=sft init.run=outputs/runs/x. Pass init=run init.run=outputs/runs/NAME."),
    ("init=run", [], "got init=run init.run=None. Pass init=run init.run=outputs/runs/NAME."),
    ("init.run=null", ["init=run"], "init.run must name a run's folder with init=run, and only"),
    ("init.sft=null", [], "init.sft must be set with init=sft or init=ei, and only there; got "
     "init=sft."),
    ("init.ei=null", ["init=ei"], "init.ei must be set with init=ei, and only there; got init=ei."),
    ("init.run=outputs/runs/x", ["init=ei"], "init.run=outputs/runs/x must be all that the run of "
     "init=ei starts from; got init.sft too. Pass init.sft=null."),
    ("model.name=Qwen/Qwen2.5-0.5B", [], "model.name=Qwen/Qwen2.5-0.5B must have letters, digits "
     "and . + - _ alone, for folders are named by it. Pass model.name=Qwen2.5-0.5B."),
    ("runtime.log_completions=-1", [], "runtime.log_completions must be 0 (none) or more; got -1."),
    ("algorithm.epochs=0", [], "algorithm.epochs must be 1 or more; got 0."),
    ("algorithm.batch_size=0", [], "algorithm.batch_size must be 1 or more; got 0."),
    ("algorithm.micro_batch_tokens=0", [], "algorithm.micro_batch_tokens must be 1 or more"),
    ("algorithm.learning_rate=0", [], "algorithm.learning_rate must be above 0; got 0.0."),
    ("algorithm.learning_rate=inf", [], "algorithm.learning_rate must be above 0; got inf."),
    ("algorithm.learning_rate=nan", [], "algorithm.learning_rate must be above 0; got nan."),
    ("algorithm.max_grad_norm=0", [], "algorithm.max_grad_norm must be above 0; got 0.0."),
    ("algorithm.final_learning_rate=0.1", ["algorithm.learning_rate=0.01"],
     "algorithm.final_learning_rate=0.1 must be between 0 and the peak; got "
     "algorithm.learning_rate=0.01. Lower the first or raise the second."),
    ("algorithm.warmup_fraction=1", [], "algorithm.warmup_fraction must be at least 0 and below"),
    ("algorithm.warmup_fraction=-0.1", [], "algorithm.warmup_fraction must be at least 0 and"),
    ("algorithm.weight_decay=-1", [], "algorithm.weight_decay must be 0 or more; got -1.0."),
    ("init.sft.epochs=0", [], "init.sft.epochs must be 1 or more; got 0."),
    ("algorithm.rounds=0", [], "algorithm.rounds must be 1 or more; got 0."),
    ("algorithm.num_samples_per_prompt=[8,8]", ["algorithm.rounds=1"],
     "algorithm.num_samples_per_prompt=[8, 8] must hold 1 to algorithm.rounds numbers, each 1 or "
     "more; got algorithm.rounds=1. One number serves every round: [8]."),
    ("algorithm.num_samples_per_prompt=[]", [], "algorithm.num_samples_per_prompt=[] must hold"),
    ("algorithm.num_samples_per_prompt=[0]", [], "algorithm.num_samples_per_prompt=[0] must hold"),
    ("algorithm.temperature=0", [], "algorithm.temperature=0.0 must be above 0: greedy samples of "
     "one prompt are all the same. Expert Iteration explores at 1.0."),
    ("algorithm.top_per_problem=0", [], "algorithm.top_per_problem must be null (off) or 1 or "
     "more; got 0."),
    ("reward.threshold=0", [], "reward.threshold=0.0 must be above 0, which failures reach too, "
     "and at most 1, the best score there is; got reward=sparse."),
    ("reward.threshold=1.5", [], "reward.threshold=1.5 must be above 0, which failures reach too"),
    ("reward.threshold=1.6", ["reward=dense"], "reward.threshold=1.6 must be above 0, which "
     "failures reach too, and at most 1.5, the best score there is; got reward=dense "
     "reward.outcome_weight=1 reward.step_weight=0.5."),
    ("reward.step_weight=3e38", ["reward=dense", "reward.outcome_weight=1e38"],
     "reward=dense must have weights whose sum float32 holds, 3.4e+38 at most; got "
     "reward.outcome_weight=1e+38 reward.step_weight=3e+38."),
    ("reward.step_weight=-1", ["reward=dense"], "reward.step_weight must be 0 or more; got -1.0."),
    ("reward.at=never", ["reward=orm"], "reward.at must be one of end, steps, differences; got "
     "reward.at=never."),
    ("algorithm.trainable=head", [], "algorithm.trainable must be one of all, lora; got "
     "algorithm.trainable=head."),
    ("init.sft.lora_rank=0", [], "init.sft.lora_rank must be 1 or more; got 0."),
    ("algorithm.checkpoint_layers=often", [], "algorithm.checkpoint_layers must be true or false "
     "or null; got algorithm.checkpoint_layers=often."),
    ("reward.policy.rounds=0", ["reward=orm"], "reward.policy.rounds must be 1 or more; got 0."),
    ("reward.model.epochs=0", ["reward=sorm"], "reward.model.epochs must be 1 or more; got 0."),
    ("reward.model=null", ["reward=sorm"], "reward.model must be set; got reward.model=null."),
    ("reward.model=3", ["reward=sorm"], "reward.model must hold settings; got reward.model=3."),
    ("algorithm.targets=all", ["algorithm=orm"], "algorithm.targets must be one of tokens, final; "
     "got algorithm.targets=all."),
    ("algorithm.trainable=some", ["algorithm=orm"], "algorithm.trainable must be one of all, head, "
     "lora; got algorithm.trainable=some."),
    ("algorithm.lora_rank=0", ["algorithm=orm"], "algorithm.lora_rank must be 1 or more; got 0."),
    ("algorithm.held_out=0", ["algorithm=orm"], "algorithm.held_out=0.0 must be above 0 and below "
     "1: it is the share of the questions that the reward model is calibrated on"),
    ("algorithm.sample.temperature=0", ["algorithm=orm"], "algorithm.sample.temperature=0.0 must "
     "be above 0: greedy samples of one prompt are all the same."),
    ("algorithm.num_samples_per_prompt=0", ["algorithm=sample"],
     "algorithm.num_samples_per_prompt must be 1 or more; got 0."),
    ("algorithm.num_continuations=0", ["algorithm=sorm"], "algorithm.num_continuations must be 1 "
     "or more; got 0."),
    ("algorithm.num_solutions_per_prompt=17", ["algorithm=sorm"],
     "algorithm.num_solutions_per_prompt=17 must be 1 or more and at most "
     "algorithm.sample.num_samples_per_prompt; got 4."),
    ("algorithm.num_continuations=0", ["algorithm=steps"], "algorithm.num_continuations must be 1 "
     "or more; got 0."),
    ("algorithm.num_solutions_per_prompt=0", ["algorithm=steps"],
     "algorithm.num_solutions_per_prompt=0 must be 1 or more and at most "
     "algorithm.sample.num_samples_per_prompt; got 4."),
    ("algorithm.sample.temperature=0", ["algorithm=steps"], "algorithm.sample.temperature=0.0 must "
     "be above 0: greedy samples of one prompt are all the same."),
    ("algorithm.num_continuations=0", ["algorithm=rcrl"], "algorithm.num_continuations must be 1 "
     "or more; got 0."),
    ("algorithm.num_solutions_per_prompt=5", ["algorithm=rcrl"],
     "algorithm.num_solutions_per_prompt=5 must be 1 or more and at most "
     "algorithm.sample.num_samples_per_prompt; got 4."),
    ("algorithm.num_solutions_per_prompt=0", ["algorithm=rcrl"],
     "algorithm.num_solutions_per_prompt=0 must be 1 or more and at most"),
    ("algorithm.sample.num_samples_per_prompt=0", ["algorithm=rcrl"],
     "algorithm.sample.num_samples_per_prompt must be 1 or more; got 0."),
    ("algorithm.policy.rounds=0", ["algorithm=rcrl"], "algorithm.policy.rounds must be 1 or more"),
    ("algorithm.epochs=0", ["algorithm=rcrl"], "algorithm.epochs must be 1 or more; got 0."),
    ("evaluation.split=[test,ood]", [], "evaluation.split must be one split: a run is judged by "
     "one protocol; got [test,ood]. Afterwards python evaluate.py run=RUN "
     "'evaluation.split=[test,ood]' judges by all."),
    ("algorithm.score_clip=0.5", ["algorithm=reinforce", "algorithm.baseline=greedy"],
     "algorithm.score_clip=0.5 changes scores, but not those that algorithm.baseline=greedy "
     "samples. Leave it out."),
    ("algorithm.truncation_penalty=0.5", ["algorithm=reinforce", "algorithm.baseline=greedy"],
     "algorithm.truncation_penalty=0.5 changes scores, but not those that"),
    ("algorithm.scale_scores=true", ["algorithm=vineppo"], "algorithm.scale_scores=True changes "
     "scores, but not those that algorithm.baseline=step_continuations samples. Leave it out."),
    ("algorithm.kl_penalty=reward", ["algorithm=maxrl", "algorithm.kl_coef=0.1"],
     "algorithm.kl_penalty must be loss with algorithm.scale=group_mean, which divides by what a "
     "question's scores are: KL would be part of them; got reward."),
    ("algorithm.kl_penalty=reward", ["algorithm=grpo"], "algorithm.kl_penalty must be loss with "
     "algorithm.scale=group_std, which divides by what a question's scores are"),
    ("algorithm.truncation_penalty=0.5", ["algorithm=maxrl"], "algorithm.truncation_penalty must "
     "be 0 with algorithm.scale=group_mean, for which scores are 0 or more; got 0.5. Pass "
     "algorithm.mask_truncated=true instead."),
    *(("algorithm.ratio=sequence", [f"algorithm={algorithm}", *more], f"algorithm.ratio must be "
       f"token with algorithm.{given}, which tells tokens apart: by a completion's ratio all of "
       "them would get their mean; got sequence. Pass algorithm.ratio=token or")
      for algorithm, more, given in (
          ("ppo", [], "baseline=critic"), ("vineppo", [], "baseline=step_continuations"),
          ("grpo", ["algorithm.off_policy_correction=tis"], "off_policy_correction=tis"))),
    *(("algorithm.compat.temperature_one_logprobs=true", [
       "algorithm=grpo", "algorithm.temperature=0.5", f"algorithm.{given}"],
       f"algorithm.compat.temperature_one_logprobs must be false with algorithm.{given}: the "
       "sampler's log-probabilities are at algorithm.temperature=0.5, and can't be compared to "
       "those at 1.") for given in ("old_logprobs=sampler", "off_policy_correction=mask")),
    ("algorithm.kl_penalty=reward", ["algorithm=vineppo"], "algorithm.kl_penalty must be loss "
     "where steps have values of their own; got reward"),
    ("algorithm.name=a/b", ["algorithm=grpo"], "algorithm.name=a/b must have letters, digits and "
     ". + - _ alone, for folders are named by it. Pass algorithm.name=b."),
    ("algorithm.name=''", ["algorithm=rft"], "algorithm.name= must have letters, digits and"),
    ("algorithm.variant_of=null", ["algorithm=grpo"], "algorithm.name must be one of sft, ei, ppo, "
     "rcrl, sample, steps, orm, sorm; got algorithm.name=grpo. A variant of ei or ppo has "
     "variant_of."),
    ("algorithm.returns=steps", ["algorithm=rcrl"], "algorithm.returns must be one of value, "
     "solution; got algorithm.returns=steps."),
    ("algorithm.label_tokens=new", ["algorithm=rcrl"], "algorithm.label_tokens must be one of own, "
     "text; got algorithm.label_tokens=new."),
    *((f"algorithm.labels={labels}", ["algorithm=rcrl"], f"algorithm.labels={shown} must be two "
       "different texts or more, from the worst to the best, none of them blank.")
      for labels, shown in (("[good,good]", "['good', 'good']"), ("[bad,' ']", "['bad', ' ']"),
                            ("[good]", "['good']"), ("[]", "[]"),
                            ("[a,b,a]", "['a', 'b', 'a']"))),
    *((f"algorithm.thresholds={thresholds}", ["algorithm=rcrl", f"algorithm.labels={labels}"],
       f"algorithm.thresholds={shown} must be one fewer than algorithm.labels, rising, above 0 and "
       f"at most 1; got {labels.count(',') + 1} labels.")
      for labels, thresholds, shown in (
          ("[bad,good]", "[]", "[]"), ("[bad,good]", "[0.3,0.6]", "[0.3, 0.6]"),
          ("[a,b,c]", "[0.5]", "[0.5]"), ("[a,b,c]", "[0.6,0.3]", "[0.6, 0.3]"),
          ("[a,b,c]", "[0.5,0.5]", "[0.5, 0.5]"), ("[bad,good]", "[0]", "[0.0]"),
          ("[bad,good]", "[1.01]", "[1.01]"), ("[bad,good]", "[-1]", "[-1.0]"),
          ("[bad,good]", "[nan]", "[nan]"), ("[bad,good]", "[inf]", "[inf]"),
          ("[a,b,c]", "[nan,0.5]", "[nan, 0.5]"))),
    ("algorithm.labels=null", ["algorithm=rcrl"], "algorithm.thresholds=[0.5] must be [] where a "
     "label is the return itself; got algorithm.labels=null. Pass algorithm.thresholds=[]."),
    *((f"algorithm.{key}={ratio}", ["algorithm=rcrl"], f"algorithm.{key} must be null (as it is), "
       f"above 0, or inf (positive ones alone); got {float(ratio)}.")
      for key in ("solution_ratio", "step_ratio") for ratio in ("0", "-1", "nan", "-inf")),
    ("algorithm.max_per_problem=0", [], "algorithm.max_per_problem must be null (off) or 1 or "
     "more; got 0."),
    *((f"algorithm.{key}=0", ["algorithm=ppo"], f"algorithm.{key} must be 1 or more; got 0.")
      for key in ("iterations", "num_samples_per_prompt", "kl_horizon", "trainable_layers",
                  "lora_rank", "validate_every", "epochs")),
    *((f"algorithm.{key}=-1", ["algorithm=ppo"], f"algorithm.{key} must be 0 or more; got -1")
      for key in ("value_coef", "value_layers", "entropy_coef", "kl_coef", "truncation_penalty")),
    *((f"algorithm.{key}=0", ["algorithm=ppo"], f"algorithm.{key} must be null (off) or above 0; "
       "got 0.0.")
      for key in ("value_clip_range", "kl_target", "max_approx_kl", "score_clip")),
    ("algorithm.gamma=1.1", ["algorithm=ppo"], "algorithm.gamma must be between 0 and 1; got 1.1."),
    ("algorithm.baseline=critic", ["algorithm=grpo"], "algorithm.gae_lambda must be set for "
     "algorithm.baseline=critic; got null. Start from algorithm=ppo, which has all of a value "
     "function's."),
    ("algorithm.baseline=group_mean", ["algorithm=ppo"], "algorithm.gae_lambda is a value "
     "function's, and there is none with algorithm.baseline=group_mean. Leave it out, or start "
     "from algorithm=grpo."),
    ("algorithm.compat.unmasked_whitening=true", ["algorithm=grpo"],
     "algorithm.compat.unmasked_whitening=true is about whitening, which "
     "algorithm.scale=group_std isn't. Pass algorithm.scale=batch_std, or leave it out."),
    ("algorithm.gae_lambda=-1", ["algorithm=ppo"], "algorithm.gae_lambda must be between 0 and 1"),
    ("algorithm.clip_range=1", ["algorithm=ppo"], "algorithm.clip_range must be above 0 and below "
     "1; got 1.0."),
    ("algorithm.value_learning_rate=0", ["algorithm=ppo"], "algorithm.value_learning_rate must be "
     "above 0; got 0.0."),
    ("algorithm.temperature=0", ["algorithm=ppo"], "algorithm.temperature=0.0 must be above 0: a "
     "policy gradient learns from the differences between samples of one prompt."),
    ("algorithm.kl_penalty=both", ["algorithm=ppo"], "algorithm.kl_penalty must be one of reward, "
     "loss; got algorithm.kl_penalty=both."),
    ("algorithm.old_logprobs=new", ["algorithm=ppo"], "algorithm.old_logprobs must be one of "
     "recomputed, sampler; got algorithm.old_logprobs=new."),
    ("algorithm.off_policy_correction=is", ["algorithm=ppo"], "algorithm.off_policy_correction "
     "must be one of none, tis, mask; got algorithm.off_policy_correction=is."),
    ("algorithm.off_policy_cap=0.5", ["algorithm=ppo"], "algorithm.off_policy_cap must be 1 or "
     "more; got 0.5."),
    ("algorithm.off_policy_correction=tis", ["algorithm=ppo", "algorithm.old_logprobs=sampler"],
     "algorithm.off_policy_correction=tis must have the learner's own log-probabilities; got "
     "algorithm.old_logprobs=sampler, whose ratio corrects already."),
    ("sampler.max_model_len=1", ["sampler=vllm"], "sampler.max_model_len must be 2 or more; got "
     "1."),
    ("sampler.gpu_memory_utilization=1", ["sampler=vllm"], "sampler.gpu_memory_utilization must be "
     "above 0 and below 1; got 1.0."),
    ("sampler.logprob_gap=0", ["sampler=vllm"], "sampler.logprob_gap must be null or above 0; got "
     "0.0."),
    ("algorithm.trainable=head", ["algorithm=ppo"], "algorithm.trainable must be one of all, top, "
     "lora; got algorithm.trainable=head."),
    ("algorithm.rollouts_per_iteration=1023", ["algorithm=ppo"],
     "algorithm.rollouts_per_iteration=1023 must be a multiple of algorithm.num_samples_per_prompt:"
     " it is made of whole questions; got 4. Pass 1024."),
    ("algorithm.batch_size=1", ["algorithm=ppo"], "algorithm.batch_size=1 must be a multiple of "
     "algorithm.num_samples_per_prompt: it is made of whole questions; got 4. Pass 4."),
    ("algorithm.kl_target=6", ["algorithm=ppo", "algorithm.kl_coef=0"], "algorithm.kl_coef must be "
     "above 0 to adapt to algorithm.kl_target=6.0; got 0.0. Pass algorithm.kl_coef=0.05 or "
     "algorithm.kl_target=null."),
    ("algorithm.kl_horizon=204", ["algorithm=ppo"], "algorithm.kl_horizon=204 must be above a fifth"
     " of algorithm.rollouts_per_iteration, or one iteration could make the coefficient 0; got "
     "1024. Raise it."),
    ("algorithm.mask_truncated=true", ["algorithm=ppo", "algorithm.truncation_penalty=0.5"],
     "algorithm.truncation_penalty=0.5 must be 0 where truncated completions aren't learnt from; "
     "got algorithm.mask_truncated=true. Choose one."),
    ("algorithm.compat=null", ["algorithm=ppo"], "algorithm.compat must be set; got "
     "algorithm.compat=null."),
    ("algorithm.patience=0", [], "algorithm.patience must be null (off) or 1 or more; got 0."),
    ("algorithm.weighting=token", [], "algorithm.weighting must be one of sample, problem; got "
     "algorithm.weighting=token."),
    ("dataset.train_size=0", [], "dataset.train_size must be null (all there are) or 1 or more; "
     "got 0."),
    ("dataset.validation_size=0", [], "dataset.validation_size must be null (all there are) or 1"),
    ("dataset.test_size=-1", [], "dataset.test_size must be null (all there are) or 1 or more"),
    ("dataset.num_references=0", [], "dataset.num_references must be null (all there are) or 1"),
    ("dataset.prompt=Q", [], "dataset.prompt='Q' must contain {question}."),
    ("dataset.stop=['']", [], "dataset.stop must not hold an empty string. Remove it, or pass []."),
    ("dataset.max_new_tokens=0", [], "dataset.max_new_tokens must be 1 or more; got 0."),
    ("dataset.num_exemplars=-1", [], "dataset.num_exemplars must be 0 or more; got -1."),
    ("dataset.min_steps=6", [], "dataset.min_steps=6 must be between 1 and dataset.max_steps; got "
     "dataset.max_steps=5."),
    ("dataset.min_steps=0", [], "dataset.min_steps=0 must be between 1 and dataset.max_steps"),
    ("dataset.train_size=null", [], "dataset.train_size, validation_size and test_size must be "
     "numbers; got null with dataset=stories, whose splits have no end."),
    ("model.compute_dtype=float16", [], "model.compute_dtype must be one of float32, bfloat16; "
     "got float16."),
    (f"{SPLIT}=ood", ["dataset=gsm8k"], f"{SPLIT}=ood must be one of train, validation, test, "
     "platinum, plus, symbolic, symbolic_p1, symbolic_p2; got dataset=gsm8k."),
    (f"{SPLIT}=validation", [], f"{SPLIT}=validation must leave out the exemplars, which come "
     "from it; got dataset.num_exemplars=2. Pass dataset.num_exemplars=0."),
    ("evaluation.num_samples_per_prompt=0", [], "evaluation.num_samples_per_prompt must be 1 or "
     "more; got 0."),
    ("evaluation.temperature=0", [], "evaluation.temperature must be above 0; got 0.0. maj@1 is "
     "greedy whatever it is."),
    ("sampler.batch_size=all", [], "sampler.batch_size must be auto or 1 or more; got all."),
    ("sampler.batch_size=0", [], "sampler.batch_size must be auto or 1 or more; got 0."),
    ("tracking.mode=on", [], "tracking.mode must be one of auto, online, offline, disabled; got "
     "tracking.mode=on."),
    ("tracking.project=a/b", [], "tracking.project must have 1 to 128 characters, none of them "
     "/\\#?%:, as W&B asks; got tracking.project=a/b."),
    ("tracking.project=''", [], "tracking.project must have 1 to 128 characters"),
    ("tracking.tags=['']", [], "tracking.tags must have 1 to 64 characters each, as W&B asks; got "
     "['']."),
    ("tracking.timeout_seconds=0", [], "tracking.timeout_seconds must be above 0; got 0.0."),
    ("runtime.threads=0", [], "runtime.threads must be null (one for each core) or 1 or more; "
     "got 0."),
    ("seed=-1", [], "seed must be a whole number, 0 or more; got seed=-1."),
    ("seed=1.5", [], "seed must be a whole number, 0 or more; got seed=1.5."),
    ("seed=true", [], "seed must be a whole number, 0 or more; got seed=True."),
    # Types, names and keys.
    ("algorithm.rounds=many", [], "algorithm.rounds must be a whole number; got "
     "algorithm.rounds=many."),
    ("algorithm.rounds=null", [], "algorithm.rounds must be a whole number; got "
     "algorithm.rounds=None."),
    ("algorithm.num_samples_per_prompt=4", [], "algorithm.num_samples_per_prompt must be a list, "
     "as [8] is; got algorithm.num_samples_per_prompt=4."),
    ("algorithm.num_samples_per_prompt=[4]", ["algorithm=grpo"],
     "algorithm.num_samples_per_prompt must be a whole number; got "
     "algorithm.num_samples_per_prompt=[4]."),
    ("algorithm.clip_range_high=wide", ["algorithm=grpo"], "algorithm.clip_range_high must be a "
     "number or null; got algorithm.clip_range_high=wide."),
    ("algorithm.restart=perhaps", [], "algorithm.restart must be true or false; got "
     "algorithm.restart=perhaps."),
    ("init.sft.epochs=few", [], "init.sft.epochs must be a whole number; got init.sft.epochs=few."),
    ("algorithm.name=dpo", [], "algorithm.name must be one of sft, ei, ppo, rcrl, sample, steps, "
     "orm, sorm; got algorithm.name=dpo."),
    ("+model.colour=red", [], "model.colour: Key 'colour' not in 'ModelConfig'. model has the keys "
     "name, path, compute_dtype, device, num_parameters, shape, resources."),
    ("+model.resources.racks=2", [], "model.resources.racks: Key 'racks' not in 'ResourcesConfig'. "
     "model.resources has the keys gpus, cpus, memory_gb, hours, nodes, gpu_gb."),
    ("model.resources=null", [], "model.resources must be set; got model.resources=null."),
    ("model.resources.memory_gb=1.5", [], "model.resources.memory_gb must be a whole number; "
     "got model.resources.memory_gb=1.5."),
    ("model.resources.gpus=-1", [], "model.resources.gpus must be 0 or more; got -1."),
    *((f"model.resources.{key}=0", [], f"model.resources.{key} must be 1 or more; got 0.")
      for key in ("cpus", "memory_gb", "nodes", "gpu_gb")),
    *((f"model.resources.hours={hours}", [], "model.resources.hours must be above 0; got")
      for hours in ("0", "inf", "nan")),
    ("model.num_parameters=0", [], "model.num_parameters must be null (not known) or 1 or more"),
    ("+init.sft.rounds=3", [], "init.sft.rounds: Key 'rounds' not in 'SFTConfig'."),
    ("~model", [], "model must be set; got model=null."),
    ("+modle.name=tiny", [], "modle must be a known key. Remove it; got +modle."),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "others", "message"), RULES, ids=[rule[0] for rule in RULES])
def test_rules(broken: str, others: list[str], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        train(*others, broken)


def test_rules_hold_for_evaluations_too():
    with pytest.raises(UserError, match=re.escape("evaluation.temperature must be above 0")):
        evaluation("evaluation.temperature=0")
    with pytest.raises(
        UserError, match=re.escape("sampler.batch_size must be auto or 1 or more; got 0.")
    ):
        evaluation("sampler.batch_size=0")


def test_a_tilde_is_the_home_folder_wherever_a_path_stands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/ana")
    paths = ["runtime.outputs='~/o'", "model.path='~/m'", "dataset.path='~/d'", "dataset=gsm8k"]
    config = train(*paths, "init=run", "init.run='~/r'", "algorithm=ei")
    assert (config.runtime.outputs, config.model.path) == ("/home/ana/o", "/home/ana/m")
    assert (config.dataset.path, config.init.run) == ("/home/ana/d", "/home/ana/r")
    assert with_homes({"run": None, "predictions": "~/p.jsonl", "reward_model": "~/r"}) == {
        "run": None,
        "predictions": "/home/ana/p.jsonl",
        "reward_model": "/home/ana/r",
    }
    with pytest.raises(UserError, match="path=~nobody-here/m must be a path; there is no such hom"):
        train("model.path='~nobody-here/m'")


def test_no_schema_for_another_option_s_keys():
    with pytest.raises(HydraException, match=r"Could not override 'algorithm\.rounds'"):
        train("algorithm=sft", "algorithm.rounds=3")


@pytest.mark.parametrize(
    "override",
    [
        "model.device=meta",
        "model.num_parameters=null",
        "model.resources.gpus=8",
        "model.resources.nodes=2",
        "model.resources.gpu_gb=141",
        "model.resources.hours=0.5",
        "algorithm.micro_batch_tokens=1",
        "algorithm.checkpoint_layers=true",
        "init.sft.micro_batch_tokens=1",
        "sampler.batch_size=1",
        "runtime.outputs=elsewhere",
        "runtime.threads=1",
        "runtime.checkpoint_seconds=0",
        "tracking=none",
        "tracking.mode=offline",
        "tracking.group=a-sweep",
        "dry_run=true",
        "evaluation.temperature=1.0",
        "evaluation.num_samples_per_prompt=5",
        "evaluation.split=ood",
        "dataset.test_size=7",
        "dataset.reward_train_size=7",  # of Expert Iteration, which learns from train_size
    ],
)
def test_what_does_not_decide_a_result(override: str):
    assert decisive(train(override)) == decisive(train())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("rft", {"rounds": 1, "accumulate": True, "max_per_problem": None}),
        ("rest_em", {"rounds": 2, "accumulate": False, "max_per_problem": 10}),
    ],
)
def test_variants_of_expert_iteration(name: str, values: dict[str, object]):
    variant, ei = train(f"algorithm={name}"), train()
    assert (variant.algorithm.name, variant.algorithm.kind, ei.algorithm.kind) == (name, "ei", "ei")
    assert readable_name(variant) == f"{name}-sparse-tiny-sft-stories-s0"
    own = {"name": name, "variant_of": "ei", "temperature": 0.7, **values}
    assert vars(variant.algorithm) == {**vars(ei.algorithm), **own}


RCRL = ["algorithm=rcrl"]
OWN_NUMBERS = ["algorithm.labels=null", "algorithm.thresholds=[]"]


@pytest.mark.parametrize(
    "overrides",
    [
        OWN_NUMBERS,
        ["algorithm.labels=[a,b,c]", "algorithm.thresholds=[0.1,1]"],
        ["algorithm.solution_ratio=inf", "algorithm.step_ratio=0.01"],
        ["algorithm.num_solutions_per_prompt=4", "algorithm.num_continuations=1"],
        ["algorithm.policy=null", "algorithm.solution_ratio=null"],
    ],
)
def test_what_rcrl_may_be(overrides: list[str]):
    assert train(*RCRL, *overrides) != train(*RCRL)


@pytest.mark.parametrize(
    "override", ["algorithm.micro_batch_tokens=1", "algorithm.policy.micro_batch_tokens=1"]
)
def test_what_does_not_decide_what_rcrl_does(override: str):
    one, other = train(*RCRL, override), train(*RCRL)
    assert decisive(one) == decisive(other)
    assert [decisive(first) for first in all_prerequisites(one)] == [
        decisive(first) for first in all_prerequisites(other)
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.policy=null"],
        ["algorithm.policy.rounds=3"],
        ["algorithm.sample.temperature=0.5"],
        ["algorithm.num_solutions_per_prompt=2"],
        ["algorithm.num_continuations=8"],
        ["algorithm.returns=solution"],
        ["algorithm.thresholds=[0.6]"],
        ["algorithm.labels=['[BAD]',good]"],
        OWN_NUMBERS,
        ["algorithm.label_tokens=text"],
        ["algorithm.solution_ratio=null"],
        ["algorithm.step_ratio=1"],
        ["algorithm.shuffle_labels=true"],
        ["algorithm.restart=false"],
        ["reward=dense"],
    ],
)
def test_what_decides_what_rcrl_does(overrides: list[str]):
    assert decisive(train(*RCRL, *overrides)) != decisive(train(*RCRL))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "model=small",
        "model.path=elsewhere",  # other weights, for all that is known
        "model.compute_dtype=bfloat16",
        "init=pretrained",
        "init.sft.epochs=7",
        "algorithm.temperature=0.51",
        "algorithm.batch_size=17",
        "algorithm.num_samples_per_prompt=[5]",
        "algorithm.restart=false",
        "algorithm.trainable=lora",
        "algorithm.lora_rank=8",
        "init.sft.trainable=lora",
        "dataset.train_size=10",
        "dataset.num_references=10",
        "dataset.prompt='{question}'",
        "dataset.stop=[]",
    ],
)
def test_what_decides_a_result(override: str):
    assert decisive(train(override)) != decisive(train())


def test_settings_that_older_runs_have_not_do_not_count_at_their_defaults():
    kept = decisive(train("algorithm.trainable=lora"))
    assert kept["algorithm"]["trainable"] == "lora"
    for settings in (kept["algorithm"], decisive(train())["algorithm"], kept["init"]["sft"]):
        assert "lora_rank" not in settings
    assert "trainable" not in kept["init"]["sft"]


def test_a_dataset_is_the_same_wherever_it_lies():
    one, other = (train("dataset=gsm8k", f"dataset.path={p}") for p in ("a", "b"))
    assert decisive(one) == decisive(other)
    assert decisive(train("dataset=gsm8k")) == decisive(one)


def test_an_earlier_run_counts_by_its_name():
    one, same, other = (
        train("init=run", f"init.run={p}") for p in ("a/run-1", "b/run-1", "a/run-2")
    )
    assert decisive(one) == decisive(same) != decisive(other)


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        (["algorithm=ei"], True),
        (["algorithm=ppo"], False),
        (["algorithm=rcrl"], False),
        (["algorithm=sft"], False),
    ],
)
def test_a_threshold_counts_where_completions_are_chosen_by_it(overrides: list[str], counts: bool):
    one, other = (train(*overrides, f"reward.threshold={t}") for t in (1.0, 0.5))
    assert (decisive(one) != decisive(other)) is counts


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        (["algorithm=sft"], False),
        (["algorithm=ei"], False),
        (["algorithm=ei", "reward=dense"], False),
        # The reward model that is made learns from so many, and one that is there has learnt.
        (["algorithm=ei", "reward=orm"], True),
        (["algorithm=ei", "reward=orm", "reward.run=outputs/runs/x"], False),
        (["algorithm=ei", "reward=sorm", "init=pretrained"], True),
        (["algorithm=ppo"], True),
        (["algorithm=rcrl"], True),
        (["algorithm=orm"], True),
        (["algorithm=sample"], True),
    ],
)
def test_a_number_of_problems_counts_where_some_run_learns_from_it(
    overrides: list[str], counts: bool
):
    one, other = (train(*overrides, f"dataset.reward_train_size={n}") for n in (50, 60))
    assert (decisive(one) != decisive(other)) is counts


def test_supervised_runs_have_no_reward():
    assert "reward" not in decisive(train("algorithm=sft"))
    assert decisive(train())["reward"] == {"name": "sparse", "threshold": 1.0}


@pytest.mark.parametrize(
    ("shared", "ei", "sft"),
    [
        ([], [], []),
        (["seed=3", "model=small", "dataset=gsm8k", "dataset.path=x"], [], []),
        (["evaluation.split=ood", "sampler.batch_size=2"], ["algorithm.rounds=2"], []),
        ([], ["init.sft.epochs=7"], ["algorithm.epochs=7"]),
        ([], ["algorithm.epochs=5", "algorithm.learning_rate=0.1"], []),
    ],
)
def test_init_sft_is_the_run_of_algorithm_sft(shared: list[str], ei: list[str], sft: list[str]):
    """So that it is found where that run was made before, and made once for all that need it."""
    prerequisite = prerequisites(train("algorithm=ei", "init=sft", *shared, *ei))["init"]
    by_itself = train("algorithm=sft", *shared, *sft)
    assert decisive(prerequisite) == decisive(by_itself)
    assert readable_name(prerequisite) == readable_name(by_itself)


def names(config: TrainConfig) -> dict[str, str]:
    return {gives: readable_name(first) for gives, first in prerequisites(config).items()}


def all_prerequisites(config: TrainConfig) -> list[TrainConfig]:
    """What a run needs first, and what that needs, and so on; some more than once."""
    first = list(prerequisites(config).values())
    return [*first, *(earlier for one in first for earlier in all_prerequisites(one))]


def test_what_a_run_needs_first():
    assert prerequisites(train("init=pretrained")) == {}
    assert prerequisites(train("init=run", "init.run=x")) == {}
    assert names(train()) == {"init": "sft-tiny-pretrained-stories-s0"}
    assert names(train("init=ei")) == {"init": "ei-sparse-tiny-sft-stories-s0"}
    assert names(train("init=ei", "init.sft=null")) == {
        "init": "ei-sparse-tiny-pretrained-stories-s0"
    }
    assert names(train("init=ei", "init.sft=null", "init.run=x")) == {
        "init": "ei-sparse-tiny-run-stories-s0"
    }
    assert names(train("algorithm=sample", "init=sft")) == {
        "init": "sft-tiny-pretrained-stories-s0"
    }
    for kind in ("orm", "sorm"):
        steps = {"steps": "steps-tiny-ei-stories-s0"} if kind == "sorm" else {}
        assert names(train(f"algorithm={kind}")) == steps | {
            "init": "ei-sparse-tiny-sft-stories-s0",
            "rollouts": "sample-tiny-ei-stories-s0",
        }
        assert names(train(f"reward={kind}")) == {
            "init": "sft-tiny-pretrained-stories-s0",
            "reward": f"{kind}-tiny-ei-stories-s0",
        }
        # Of the starting policy itself, and of an earlier run.
        assert names(train(f"reward={kind}", "reward.policy=null"))["reward"] == (
            f"{kind}-tiny-sft-stories-s0"
        )
        assert "reward" not in names(train(f"reward={kind}", "reward.run=outputs/runs/x"))
        assert names(train("algorithm=sft", f"reward={kind}")) == {}


def test_what_comes_first_is_the_same_run_whoever_needs_it():
    ei = train()
    orm, sorm = (train(f"algorithm={kind}") for kind in ("orm", "sorm"))
    for kind, model in (("orm", orm), ("sorm", sorm)):
        with_reward = prerequisites(train(f"reward={kind}"))
        assert with_reward["reward"] == model
        assert decisive(prerequisites(model)["init"]) == decisive(ei)
        assert with_reward["init"] == prerequisites(ei)["init"]
    assert prerequisites(orm)["rollouts"] == prerequisites(sorm)["rollouts"]
    assert decisive(prerequisites(orm)["rollouts"]) == decisive(
        train("algorithm=sample", "init=ei")
    )
    assert ei.reward == SPARSE


INIT = {"init": "sft-tiny-pretrained-stories-s0"}
SAMPLES = {"rollouts": "sample-tiny-ei-stories-s0"}
STEPS = {"steps": "steps-tiny-ei-stories-s0"}


@pytest.mark.parametrize(
    ("overrides", "needed"),
    [
        ([], INIT | SAMPLES | STEPS),
        (["algorithm.returns=solution"], INIT | SAMPLES),
        (["reward=dense"], INIT | SAMPLES),
        (["reward=dense", "algorithm.returns=solution"], INIT | SAMPLES),
        (["reward=orm"], INIT | SAMPLES | {"reward": "orm-tiny-ei-stories-s0"}),
        (["reward=sorm"], INIT | SAMPLES | {"reward": "sorm-tiny-ei-stories-s0"}),
        (["reward=orm", "reward.run=outputs/runs/x"], INIT | SAMPLES),
        (
            ["algorithm.policy=null"],
            INIT | {"rollouts": "sample-tiny-sft-stories-s0", "steps": "steps-tiny-sft-stories-s0"},
        ),
        (["algorithm.policy=null", "reward=dense", "init=run", "init.run=outputs/runs/x"],
         {"rollouts": "sample-tiny-run-stories-s0"}),
        (["init=pretrained"], SAMPLES | STEPS),
    ],
)  # fmt: skip
def test_what_rcrl_needs_first(overrides: list[str], needed: dict[str, str]):
    assert names(train(*RCRL, *overrides)) == needed


def test_steps_are_those_of_the_samples():
    needed = {"init": "ei-sparse-tiny-sft-stories-s0", "rollouts": "sample-tiny-ei-stories-s0"}
    assert names(train("algorithm=steps")) == needed
    assert names(train("algorithm=steps", "init=sft")) == INIT | {
        "rollouts": "sample-tiny-sft-stories-s0"
    }


def test_rcrl_shares_its_runs_with_reward_models_and_expert_iteration():
    first = prerequisites(train(*RCRL))
    orm = prerequisites(train("algorithm=orm"))
    numbers = ["num_solutions_per_prompt=4", "num_continuations=4"]
    sorm = prerequisites(train("algorithm=sorm", *(f"algorithm.{number}" for number in numbers)))
    assert decisive(first["init"]) == decisive(train("algorithm=sft"))
    assert decisive(first["rollouts"]) == decisive(orm["rollouts"])
    assert decisive(first["rollouts"]) == decisive(train("algorithm=sample", "init=ei"))
    assert decisive(first["steps"]) == decisive(sorm["steps"])
    assert decisive(first["steps"]) == decisive(train("algorithm=steps"))
    # The policy that is sampled from is that of Expert Iteration as it comes.
    for gives in ("rollouts", "steps"):
        assert decisive(prerequisites(first[gives])["init"]) == decisive(train())
    assert decisive(prerequisites(first["steps"])["rollouts"]) == decisive(first["rollouts"])
    for kind in ("orm", "sorm"):
        learned = prerequisites(train(*RCRL, f"reward={kind}"))
        assert learned["reward"] == train(f"algorithm={kind}")
        assert decisive(learned["rollouts"]) == decisive(first["rollouts"])
    same = [f"reward.model.{number}" for number in numbers]
    needed = prerequisites(prerequisites(train(*RCRL, "reward=sorm", *same))["reward"])
    assert decisive(needed["steps"]) == decisive(first["steps"])


def test_a_policy_of_another_kind_is_sampled_from():
    changed = prerequisites(train(*RCRL, "algorithm.policy.rounds=3"))
    sampled_from = prerequisites(changed["rollouts"])["init"]
    assert decisive(sampled_from) == decisive(train("algorithm.rounds=3"))
    own = prerequisites(train(*RCRL, "algorithm.policy=null"))
    assert decisive(own["rollouts"]) == decisive(train("algorithm=sample", "init=sft"))
    assert decisive(own["steps"]) == decisive(train("algorithm=steps", "init=sft"))
    # How many are sampled, learnt from and gone on from.
    numbers = ["algorithm.num_solutions_per_prompt=2", "algorithm.num_continuations=3"]
    numbers.append("algorithm.sample.num_samples_per_prompt=5")
    more = prerequisites(train(*RCRL, *numbers))
    assert decisive(more["steps"]) == decisive(train("algorithm=steps", *numbers))


def test_runs_that_learn_from_samples_may_have_their_own_number_of_problems():
    def size(algorithm: str, own: str) -> int | None:
        sizes = ["dataset.train_size=20", f"dataset.reward_train_size={own}"]
        return training_set(train(f"algorithm={algorithm}", *sizes)).train_size

    assert {name: size(name, "50") for name in ("sft", "ei")} == {"sft": 20, "ei": 20}
    for algorithm in ("ppo", "rcrl", "sample", "steps", "orm", "sorm"):
        assert size(algorithm, "50") == 50
        assert size(algorithm, "null") == 20


def test_how_a_reward_model_would_be_made_does_not_count_where_there_is_one():
    given = ["reward=orm", "reward.run=a/orm-1"]
    for same in (["reward.run=b/orm-1"], ["reward.model.epochs=9"], ["reward.policy=null"]):
        assert decisive(train(*given, *same)) == decisive(train(*given))
    assert decisive(train(*given, "reward.run=a/orm-2")) != decisive(train(*given))
    assert decisive(train("reward=orm", "reward.model.epochs=9")) != decisive(train("reward=orm"))


def test_the_stored_configuration_is_the_run_s():
    """A run's folder keeps what asdict gives: reading it back gives the same run."""
    rcrl = [*RCRL, *OWN_NUMBERS, "algorithm.solution_ratio=inf"]
    for overrides in ([], ["algorithm=sft"], ["dataset=svamp", "init=pretrained"], rcrl):
        config = train(*overrides)
        stored = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
        assert resolve(stored) == config
