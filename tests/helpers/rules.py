"""The rules of configurations, each with an override that breaks it."""

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
