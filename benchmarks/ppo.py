"""Samples per CPU-second of one iteration of PPO, GRPO or RLOO: TRL's trainers and ours.

    pip install --no-deps --target FOLDER trl==1.12.0  # the last with PPO; else 1.16.0
    python -m benchmarks.ppo --trl FOLDER
    python -m benchmarks.ppo --trl FOLDER --algorithm grpo

In one process, iteration by iteration in turn; CPU time is what the process used
(``time.process_time``). The first iteration of each is a warm-up and isn't counted.

Equal work. A random Llama of 1.02M parameters, float32, the same weights in both. An iteration
samples 64 completions, N of each of 64 / N prompts (``--samples``; 4 with PPO and 8 without a value
function) of 32 tokens (``--prompt-tokens``), at temperature 1, without top-k and top-p, and scores
each by its share of even token ids. Then comes one epoch of one optimizer step on all 64, with the
clipped policy loss and fused AdamW, and a penalty of 0.05 × KL to the frozen starting policy: k1 in
the rewards, or k3 in GRPO's loss. PPO has a clipped value loss, too, and GAE with γ=1 and λ=0.95.
There is no EOS, so that every completion has 64 tokens; the tokens sampled are counted and printed.

Not equal, and counted as it is:

- TRL doesn't know that completions share a prompt; ours reads it once for all of them. So the
  longer the prompts, the more it gains.
- Ours also writes the rollouts and its log to disk.
- TRL's GRPO takes the policy that learns for the one that sampled, where it takes one step, and so
  reads the completions with it once less. Ours reads them, for its log, too.
- PPO: TRL's value function is a model of its own, as large as the policy; ours is a branch of the
  policy (``--value-layers``). Ours also clips gradients.
- PPO: TRL takes a model for a reward. Ours is a rule, so a module stands in for that model, which
  computes nothing else. Its other trainers take a rule.
- PPO: TRL calls ``gc.collect`` twice an iteration. What that takes depends on the objects in the
  process and not on the model, so the ratio is printed without any garbage collection too.

TRL's options are the fastest of those tried. PPO: rollout batches of 32 instead of 64 cost a fifth
more, eager instead of scaled dot-product attention a sixth; micro-batches of 32, gradient
checkpointing (off) and the models' ``use_cache`` made no difference beyond noise. GRPO: a static
cache of keys and values makes none, and continuous batching samples twenty times slower on a CPU.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PrinterCallback,
    TrainerCallback,
)

from benchmarks.trl import (
    RELEASES,
    VOCABULARY,
    find_trl,
    llama_config,
    text_of,
    tokenizer,
    versions,
)
from reasonrl.algorithms.ppo import PPO
from reasonrl.config.resolve import resolve
from reasonrl.grading import grader_of
from reasonrl.job import Job
from reasonrl.policy.policy import Policy
from reasonrl.rewards import Reward, TokenRewards
from reasonrl.rewards.sparse import at_end
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.metrics_log import MetricsLog
from reasonrl.sampling import SamplingParams
from reasonrl.types import Completion, Problem, Prompt
from reasonrl.util.atomic import write_json
from reasonrl.util.progress import Progress

ROOT = Path(__file__).parents[1]
COMPLETIONS = 64
NEW_TOKENS = 64
TEMPERATURE = 1.0
KL_COEF = 0.05
GAMMA, GAE_LAMBDA = 1.0, 0.95
CLIP_RANGE = 0.2  # of the probability ratio, and of values
VALUE_COEF = 0.1
LEARNING_RATE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl", metavar="FOLDER", help="where TRL is, unless it is installed")
    parser.add_argument("--algorithm", choices=RELEASES, default="ppo")
    parser.add_argument("--value-layers", type=int, default=2, help="of PPO's value function")
    parser.add_argument("--samples", type=int, help="N, completions of each prompt")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="of each prompt")
    parser.add_argument("--iterations", type=int, default=10, help="counted, of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    args = parser.parse_args()
    release = RELEASES[args.algorithm]
    find_trl(args.trl, release)
    torch.set_num_threads(args.threads)
    samples = args.samples or (4 if args.algorithm == "ppo" else 8)
    changed = {"value_layers": args.value_layers} if args.algorithm == "ppo" else {}

    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config()).eval()
    ids = torch.randint(VOCABULARY, (COMPLETIONS // samples, args.prompt_tokens)).tolist()
    prompts = [Prompt(str(i), tuple(row)) for i, row in enumerate(ids)]
    measured = {
        "what": "ppo",
        "algorithm": args.algorithm,
        "num_samples_per_prompt": samples,
        **changed,
        "completions": COMPLETIONS,
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": NEW_TOKENS,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype),
        "threads": args.threads,
        **versions(release),
    }
    print(json.dumps(measured, indent=1))
    load = [round(os.getloadavg()[0], 2)]
    with tempfile.TemporaryDirectory() as folder:
        ppo = our_ppo(copy.deepcopy(model), prompts, args.algorithm, samples, changed, Path(folder))
        turns = Turns(partial(iterate, ppo))
        run = run_trl_ppo if args.algorithm == "ppo" else partial(run_trl, args.algorithm)
        run(model, prompts, samples, 1 + args.iterations, turns)
    load.append(round(os.getloadavg()[0], 2))
    measured |= {"load_before_and_after": load, **turns.summary()}
    print(json.dumps(turns.summary(), indent=1))
    settings = [f"{name}-{value}".replace("_", "-") for name, value in changed.items()]
    name = "-".join(["trl", args.algorithm, *settings, "prompt", str(args.prompt_tokens)])
    write_json(args.out / f"{name}.json", measured)


def our_ppo(
    model: LlamaForCausalLM,
    prompts: Sequence[Prompt],
    algorithm: str,
    num_samples_per_prompt: int,
    changed: Mapping[str, Any],
    folder: Path,
) -> PPO:
    """Our PPO or one of its variants, training ``model`` on ``prompts``."""
    words = tokenizer()

    class BenchmarkJob(Job):
        def learner(self, _: str) -> Policy:
            return Policy(model, words)

        def prompts(self, problems: Sequence[Problem], *, few_shot: bool) -> list[Prompt]:
            del few_shot
            return [prompts[int(problem.id)] for problem in problems]

        def params(self, num_samples_per_prompt: int, temperature: float) -> SamplingParams:
            return SamplingParams(num_samples_per_prompt, temperature, NEW_TOKENS)

        def reward(self) -> Reward:
            return even_share

    settings = {
        "num_samples_per_prompt": num_samples_per_prompt,
        "rollouts_per_iteration": COMPLETIONS,
        "batch_size": COMPLETIONS,
        "epochs": 1,
        "temperature": TEMPERATURE,
        "learning_rate": LEARNING_RATE,
        "final_learning_rate": LEARNING_RATE,
        "clip_range": CLIP_RANGE,
        "kl_coef": KL_COEF,
        "micro_batch_tokens": COMPLETIONS * (len(prompts[0].token_ids) + NEW_TOKENS),
        **changed,
    }
    if algorithm == "ppo":
        settings |= {
            "value_learning_rate": LEARNING_RATE,
            "gamma": GAMMA,
            "gae_lambda": GAE_LAMBDA,
            "value_clip_range": CLIP_RANGE,
            "value_coef": VALUE_COEF,
        }
    overrides = [f"algorithm.{name}={value}" for name, value in settings.items()]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(
            compose(
                "train",
                [f"algorithm={algorithm}", "runtime.checkpoint_seconds=1e9", *overrides],
            )
        )
    job = BenchmarkJob(
        config=config,
        run=RunFolder(folder),
        device=torch.device("cpu"),
        base="",
        init="",
        few_shot=False,
        grader=grader_of(config.dataset),
        tokenizer=words,
        train=[Problem(prompt.problem_id, "", "0", "#### 0") for prompt in prompts],
        validation=[],
        exemplars=[],
        log=MetricsLog(folder / "metrics.jsonl"),
        progress=Progress(),
    )
    return PPO(job, config.algorithm)


def iterate(ppo: PPO) -> int:
    """One iteration; returns how many tokens were sampled."""
    ppo.trainer.state.iteration += 1
    ppo.trainer.state.taken = 0
    explored = ppo.explore(ppo.trainer.state.iteration)
    ppo.update(ppo.compute_advantages(explored))
    return sum(len(rollout.completion.token_ids) for rollout in explored.rollouts)


def share_of_even(token_ids: Sequence[int]) -> float:
    """The rule."""
    return sum(token % 2 == 0 for token in token_ids) / len(token_ids)


def even_share(
    completions: Sequence[Completion], problems: Sequence[Problem]
) -> list[TokenRewards]:
    """The rule, as one of our rewards. It needs no problem."""
    del problems
    return [at_end(c, share_of_even(c.token_ids)) for c in completions]


class EvenShare(nn.Module):
    """The rule in the shape of a reward model of TRL: a backbone, and a score of what it gives."""

    base_model_prefix = "backbone"

    def __init__(self, turns: Turns, prompt_tokens: int) -> None:
        super().__init__()
        self.turns = turns
        self.prompt_tokens = prompt_tokens

    def backbone(self, input_ids: Tensor, attention_mask: Tensor, **_: object) -> SimpleNamespace:
        self.turns.tokens += int(attention_mask[:, self.prompt_tokens :].sum())
        return SimpleNamespace(hidden_states=[input_ids])

    def score(self, input_ids: Tensor) -> Tensor:
        """(B, L) to (B, L, 1), of which TRL reads the last place of each row."""
        share = (input_ids[:, self.prompt_tokens :] % 2 == 0).float().mean(dim=1)
        return share[:, None, None].expand(*input_ids.shape, 1)


# What all of TRL's trainers are told.
COMMON = {
    "per_device_train_batch_size": COMPLETIONS,
    "gradient_accumulation_steps": 1,
    "temperature": TEMPERATURE,
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def run_trl(
    algorithm: str,
    model: LlamaForCausalLM,
    prompts: Sequence[Prompt],
    num_samples_per_prompt: int,
    iterations: int,
    turns: Turns,
) -> None:
    """TRL's GRPO or RLOO, training ``model``; ``turns`` hears of the end of each iteration."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    make_config, make_trainer, more = {
        "grpo": (GRPOConfig, GRPOTrainer, {"loss_type": "grpo"}),
        "rloo": (RLOOConfig, RLOOTrainer, {}),
    }[algorithm]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # the reference is read from where the policy was
        trainer = make_trainer(
            args=make_config(
                output_dir=folder,
                max_steps=iterations,
                num_generations=num_samples_per_prompt,
                max_completion_length=NEW_TOKENS,
                beta=KL_COEF,
                epsilon=CLIP_RANGE,
                **COMMON,
                **more,
            ),
            processing_class=tokenizer(eos_token="<end>", pad_token="<end>"),  # see run_trl_ppo
            model=LlamaForCausalLM.from_pretrained(folder),
            reward_funcs=turns.even_share,
            train_dataset=Dataset.from_dict({"prompt": [text_of(p.token_ids) for p in prompts]}),
            callbacks=[turns],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def run_trl_ppo(
    model: LlamaForCausalLM,
    prompts: Sequence[Prompt],
    num_samples_per_prompt: int,
    iterations: int,
    turns: Turns,
) -> None:
    """The same of TRL's PPO."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    rows = [list(prompt.token_ids) for prompt in prompts for _ in range(num_samples_per_prompt)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            PPOConfig(
                output_dir=folder,
                total_episodes=iterations * COMPLETIONS,
                local_rollout_forward_batch_size=COMPLETIONS,
                num_mini_batches=1,
                num_ppo_epochs=1,
                response_length=NEW_TOKENS,
                kl_coef=KL_COEF,
                gamma=GAMMA,
                lam=GAE_LAMBDA,
                cliprange=CLIP_RANGE,
                cliprange_value=CLIP_RANGE,
                vf_coef=VALUE_COEF,
                num_sample_generations=0,
                **COMMON,
            ),
            # It must have an EOS and a padding id. Outside the vocabulary neither is ever sampled.
            processing_class=tokenizer(eos_token="<end>", pad_token="<end>"),
            model=model,
            ref_model=None,  # a frozen copy of the model
            reward_model=EvenShare(turns, len(rows[0])),
            value_model=LlamaForSequenceClassification(llama_config(num_labels=1)),
            train_dataset=Dataset.from_dict({"input_ids": rows}),
            callbacks=[turns],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


class Turns(TrainerCallback):
    """Does one of our iterations after each of TRL's, and measures both."""

    def __init__(self, iterate: Callable[[], int]) -> None:
        self.iterate = iterate
        self.tokens = 0  # that TRL has sampled in this iteration
        self.meter = Meter()
        self.costs: dict[str, list[np.ndarray]] = {"trl": [], "ours": []}

    def even_share(self, completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        """The rule, as a reward function of TRL."""
        self.tokens += sum(map(len, completion_ids))
        return [share_of_even(ids) for ids in completion_ids]

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start = self.meter.read()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.record("trl", self.tokens)
        self.tokens = 0
        self.start = self.meter.read()
        self.record("ours", self.iterate())
        self.start = self.meter.read()

    def record(self, name: str, tokens: int) -> None:
        cost = self.meter.read() - self.start
        number = len(self.costs[name])
        self.costs[name].append(cost)
        print(
            f"{f'iteration {number}' if number else 'warm-up':12}  {name:4}  "
            f"{cost[0]:6.2f} CPU-s, {cost[1]:5.2f} of it garbage collection  "
            f"{COMPLETIONS / cost[0]:7.2f} samples/CPU-s  {tokens} tokens sampled",
            flush=True,
        )

    def summary(self) -> dict[str, float]:
        """Medians over iterations: samples per CPU-second, and ours by TRL's of the same turn."""
        pairs = list(zip(self.costs["trl"], self.costs["ours"], strict=True))[1:]
        ratios = {
            "ratio": [trl[0] / ours[0] for trl, ours in pairs],
            "ratio_without_garbage_collection": [
                (trl[0] - trl[1]) / (ours[0] - ours[1]) for trl, ours in pairs
            ],
        }
        rates = {
            f"{name}_samples_per_cpu_second": [COMPLETIONS / cost[0] for cost in costs[1:]]
            for name, costs in self.costs.items()
        }
        return {name: round(statistics.median(x), 2) for name, x in (rates | ratios).items()}


class Meter:
    """CPU seconds of this process so far, and those of them that went into collecting garbage."""

    def __init__(self) -> None:
        self._garbage = self._began = 0.0
        gc.callbacks.append(self._collect)

    def read(self) -> np.ndarray:
        return np.array([time.process_time(), self._garbage])

    def _collect(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.process_time()
        else:
            self._garbage += time.process_time() - self._began


if __name__ == "__main__":
    main()
