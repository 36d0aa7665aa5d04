"""Samples per CPU-second of one iteration of PPO: TRL 1.12.0, the last that has it, and ours.

    pip install --no-deps --target FOLDER trl==1.12.0
    python -m benchmarks.ppo --trl FOLDER

In one process, iteration by iteration in turn; CPU time is what the process used
(``time.process_time``). The first iteration of each is a warm-up and isn't counted.

Equal work. A random Llama of 1.02M parameters, float32, the same weights in both. An iteration
samples 64 completions, N=4 of each of 16 prompts of 32 tokens (``--samples``), at temperature 1,
without top-k and top-p, and scores each by its share of even token ids. Then comes one epoch of one
optimizer step on all 64: clipped policy and value losses, GAE with γ=1 and λ=0.95, a penalty of
0.05 × KL (k1) to the frozen starting policy in the rewards, fused AdamW. There is no EOS, so that
every completion has 64 tokens; the tokens sampled are counted and printed.

Not equal, and counted as it is:

- TRL's value function is a model of its own, as large as the policy; ours is a branch of the
  policy (``--value-layers``).
- TRL doesn't know that completions share a prompt; ours reads it once for all of them.
- Ours also writes the rollouts and its log to disk, and clips gradients.
- TRL takes a model for a reward. Ours is a rule, so a module stands in for that model, which
  computes nothing else.
- TRL calls ``gc.collect`` twice an iteration. What that takes depends on the objects in the process
  and not on the model, so the ratio is printed without any garbage collection too.

TRL's options are the fastest of those tried. Rollout batches of 32 instead of 64 cost a fifth more,
eager instead of scaled dot-product attention a sixth; micro-batches of 32, gradient checkpointing
(off) and the models' ``use_cache`` made no difference beyond noise.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.metadata
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset
from hydra import compose, initialize_config_dir
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
)

from benchmarks.sampler import cpu_name
from reasonrl.algorithms.ppo import PPO
from reasonrl.config.resolve import resolve
from reasonrl.job import Job
from reasonrl.policy.policy import Policy
from reasonrl.rewards import Reward, TokenRewards
from reasonrl.rewards.sparse import at_end
from reasonrl.runs.folder import RunFolder
from reasonrl.runs.metrics_log import MetricsLog
from reasonrl.sampling import SamplingParams
from reasonrl.types import Completion, Problem, Prompt
from reasonrl.util.progress import Progress

ROOT = Path(__file__).parents[1]
TRL = "1.12.0"
VOCABULARY = 512
LAYERS = 4
PROMPT_TOKENS = 32
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
    parser.add_argument("--value-layers", type=int, default=2, help="of our value function")
    parser.add_argument("--samples", type=int, default=4, help="N, completions of each prompt")
    parser.add_argument("--iterations", type=int, default=10, help="counted, of each")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    find_trl(args.trl)
    torch.set_num_threads(args.threads)

    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config()).eval()
    ids = torch.randint(VOCABULARY, (COMPLETIONS // args.samples, PROMPT_TOKENS)).tolist()
    prompts = [Prompt(str(i), tuple(row)) for i, row in enumerate(ids)]
    print(
        f"{platform.processor() or platform.machine()}, {cpu_name()}, {args.threads} thread(s); "
        f"python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, trl {TRL}\n"
        f"{model.num_parameters() / 1e6:.2f}M parameters, {model.dtype}; {len(prompts)} prompts of "
        f"{PROMPT_TOKENS} tokens × {args.samples} completions of exactly {NEW_TOKENS}, scored by a "
        f"rule; 1 epoch of 1 optimizer step on all; kl_coef={KL_COEF}, gamma={GAMMA}, "
        f"gae_lambda={GAE_LAMBDA}\n"
        f"value function: TRL's is a model of its own with all {LAYERS} layers, ours a branch of "
        f"the policy with value_layers={args.value_layers}"
    )
    with tempfile.TemporaryDirectory() as folder:
        ppo = our_ppo(copy.deepcopy(model), prompts, args.samples, args.value_layers, Path(folder))
        turns = Turns(partial(iterate, ppo))
        repeated = [prompt for prompt in prompts for _ in range(args.samples)]
        run_trl(model, repeated, iterations=1 + args.iterations, turns=turns)
    turns.summarise()


def our_ppo(
    model: LlamaForCausalLM,
    prompts: Sequence[Prompt],
    num_samples_per_prompt: int,
    value_layers: int,
    folder: Path,
) -> PPO:
    """Our PPO, training ``model`` on ``prompts``."""
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
        "value_learning_rate": LEARNING_RATE,
        "gamma": GAMMA,
        "gae_lambda": GAE_LAMBDA,
        "clip_range": CLIP_RANGE,
        "value_clip_range": CLIP_RANGE,
        "value_coef": VALUE_COEF,
        "value_layers": value_layers,
        "kl_coef": KL_COEF,
        "micro_batch_tokens": COMPLETIONS * (PROMPT_TOKENS + NEW_TOKENS),
    }
    overrides = [f"algorithm.{name}={value}" for name, value in settings.items()]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(
            compose("train", ["algorithm=ppo", "runtime.checkpoint_seconds=1e9", *overrides])
        )
    job = BenchmarkJob(
        config=config,
        run=RunFolder(folder),
        device=torch.device("cpu"),
        base="",
        init="",
        few_shot=False,
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
    rollouts, _ = ppo.sample(ppo.trainer.state.iteration)
    ppo.update(ppo.compute_advantages(rollouts))
    return sum(len(rollout.completion.token_ids) for rollout in rollouts)


def even_share(
    completions: Sequence[Completion], problems: Sequence[Problem]
) -> list[TokenRewards]:
    """The rule, as one of our rewards. It needs no problem."""
    del problems
    return [
        at_end(c, sum(token % 2 == 0 for token in c.token_ids) / len(c.token_ids))
        for c in completions
    ]


class EvenShare(nn.Module):
    """The rule in the shape of a reward model of TRL: a backbone, and a score of what it gives.

    tokens: real ones, padding left out, in the completions scored since it was last set to 0.
    """

    base_model_prefix = "backbone"

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 0

    def backbone(self, input_ids: Tensor, attention_mask: Tensor, **_: object) -> SimpleNamespace:
        self.tokens += int(attention_mask[:, PROMPT_TOKENS:].sum())
        return SimpleNamespace(hidden_states=[input_ids])

    def score(self, input_ids: Tensor) -> Tensor:
        """(B, L) to (B, L, 1), of which TRL reads the last place of each row."""
        share = (input_ids[:, PROMPT_TOKENS:] % 2 == 0).float().mean(dim=1)
        return share[:, None, None].expand(*input_ids.shape, 1)


def run_trl(
    model: LlamaForCausalLM, prompts: Sequence[Prompt], iterations: int, turns: Turns
) -> None:
    """TRL's PPO, training ``model``; ``turns`` hears of the end of each iteration."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            PPOConfig(
                output_dir=folder,
                total_episodes=iterations * COMPLETIONS,
                per_device_train_batch_size=COMPLETIONS,
                local_rollout_forward_batch_size=COMPLETIONS,
                gradient_accumulation_steps=1,
                num_mini_batches=1,
                num_ppo_epochs=1,
                response_length=NEW_TOKENS,
                temperature=TEMPERATURE,
                kl_coef=KL_COEF,
                gamma=GAMMA,
                lam=GAE_LAMBDA,
                cliprange=CLIP_RANGE,
                cliprange_value=CLIP_RANGE,
                vf_coef=VALUE_COEF,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                gradient_checkpointing=False,
                bf16=False,
                use_cpu=True,
                num_sample_generations=0,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            # It must have an EOS and a padding id. Outside the vocabulary neither is ever sampled.
            processing_class=tokenizer(eos_token="<end>", pad_token="<end>"),
            model=model,
            ref_model=None,  # a frozen copy of the model
            reward_model=turns.reward,
            value_model=LlamaForSequenceClassification(llama_config(num_labels=1)),
            train_dataset=Dataset.from_dict({"input_ids": [list(p.token_ids) for p in prompts]}),
            callbacks=[turns],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


class Turns(TrainerCallback):
    """Does one of our iterations after each of TRL's, and measures both."""

    def __init__(self, iterate: Callable[[], int]) -> None:
        self.iterate = iterate
        self.reward = EvenShare()
        self.meter = Meter()
        self.costs: dict[str, list[np.ndarray]] = {"trl": [], "ours": []}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start = self.meter.read()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.record("trl", self.reward.tokens)
        self.reward.tokens = 0
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

    def summarise(self) -> None:
        for name, costs in self.costs.items():
            rate = statistics.median(COMPLETIONS / cost[0] for cost in costs[1:])
            print(f"{name:4}  {rate:7.2f} samples per CPU-second, median")
        pairs = list(zip(self.costs["trl"], self.costs["ours"], strict=True))[1:]
        ratio = statistics.median(trl[0] / ours[0] for trl, ours in pairs)
        without = statistics.median((trl[0] - trl[1]) / (ours[0] - ours[1]) for trl, ours in pairs)
        print(f"median ratio per CPU-second: {ratio:.2f}; {without:.2f} without garbage collection")


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


def llama_config(**more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        **more,
    )


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """A word for each id of the vocabulary; a special token has the id after the last."""
    words = models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w1")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **special)


def find_trl(folder: str | None) -> None:
    """Makes TRL importable, or ends the program and says how to install it."""
    if folder:
        sys.path.insert(0, folder)
    try:
        found = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != TRL:
        raise SystemExit(
            f"--trl={folder} must be a folder with TRL {TRL}; got {found}. "
            f"pip install --no-deps --target {folder or 'FOLDER'} trl=={TRL}"
        )
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.simplefilter("ignore")  # TRL's, of names that transformers has renamed
    transformers.logging.set_verbosity_error()


if __name__ == "__main__":
    main()
