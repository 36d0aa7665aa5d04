"""PPO by two processes, of models that read each completion with its own prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from reasonrl.algorithms.ppo import PPO
from reasonrl.learning.packed import PADDED
from reasonrl.policy import shards
from reasonrl.policy.policy import Policy, save_policy
from reasonrl.runs.metrics_log import reproducible
from reasonrl.runs.process import ALONE, Process
from reasonrl.types import Completion, Prompt, Rollout
from tests.helpers.configs import small_config
from tests.helpers.families import random_model
from tests.helpers.jobs import job_of
from tests.helpers.ranks import in_ranks

SMALL = (
    "algorithm=ppo",
    "init=pretrained",
    "algorithm.rollouts_per_iteration=6",
    "algorithm.num_samples_per_prompt=2",
    "algorithm.batch_size=4",
    "algorithm.epochs=1",
    "algorithm.iterations=1",
    "algorithm.kl_coef=0.1",
    "algorithm.lora_rank=2",
    "algorithm.micro_batch_tokens=64",
    "runtime.checkpoint_seconds=1e6",
)


def rollouts() -> list[Rollout]:
    """Three questions of two completions each, of other lengths."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(3):
        prompt = Prompt(f"t{number}", tuple(range(20, 27 + number)))
        for sample in range(2):
            length = 8 + (3 * number + 2 * sample) % 6
            ids = tuple(torch.randint(2, 268, (length,), generator=generator).tolist())
            completion = Completion(prompt.problem_id, sample, ids, (-0.5,) * length, "eos", "")
            rewards = (0.0,) * (length - 1) + (float(sample),)
            made.append(Rollout(prompt, completion, None, False, rewards))
    return made


def learn(process: Process, folder: str, trainable: str) -> tuple[list[dict[str, Any]], float]:
    """The metrics of an iteration, and the sum of the weights' sizes."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "LARGE", 1)  # gathered layer by layer, as a large model
        config = small_config(
            Path(folder) / "outputs",
            *SMALL,
            f"algorithm.trainable={trainable}",
            f"algorithm.value_layers={0 if trainable == 'lora' else 1}",
        )
        work = Path(folder) / str(process.size)
        with job_of(config, str(Path(folder) / "model"), work, process=process) as job:
            ppo = PPO(job, config.algorithm)
            assert ppo.trainer.model.layout == PADDED
            ppo.trainer.state.iteration = 1
            ppo.update(ppo.compute_advantages(ppo.exploration.explored(rollouts())))
            weights = ppo.trainer.model.in_use("float32").parameters()
            sizes = sum(w.detach().double().abs().sum().item() for w in weights)
            return process.first(lambda: reproducible(job.run.metrics)), sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "trainable"), [("Gemma 3", "all"), ("Falcon-H1", "all"), ("Qwen3-Next", "lora")]
)
def test_two_ranks_learn_what_one_process_does(
    name: str, trainable: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_policy(Policy(random_model(name), tokenizer), tmp_path / "model")
    metrics, sizes = learn(ALONE, str(tmp_path), trainable)
    for theirs, their_sizes in in_ranks(2, learn, str(tmp_path), trainable, timeout=240):
        assert len(metrics) == len(theirs) == 1 + 2
        for one, other in zip(metrics, theirs, strict=True):
            assert other == pytest.approx(one, rel=1e-4, abs=1e-5)
        assert their_sizes == pytest.approx(sizes, rel=1e-8)
