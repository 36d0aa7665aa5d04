"""A fit by several processes takes the steps that one process takes."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from reasonrl.config.learner import LearnerConfig
from reasonrl.learning.checkpoint import Checkpoints
from reasonrl.learning.optimization import Group, Optimization
from reasonrl.learning.recompute import recompute_layers
from reasonrl.learning.supervised import Example, Reader, accumulate_gradients, fit, num_steps
from reasonrl.policy import shards
from reasonrl.policy.adapters import add_lora
from reasonrl.policy.shards import shard, structure, whole_policy
from reasonrl.runs.metrics_log import MetricsLog, reproducible
from reasonrl.runs.process import ALONE, Process
from tests.helpers.ranks import in_ranks

# Three epochs of 10 examples, in steps of 4, 4 and 2: the last is fewer than three processes.
LEARNER = LearnerConfig(
    epochs=3,
    batch_size=4,
    learning_rate=3e-3,
    final_learning_rate=1e-4,
    warmup_fraction=0.2,
    weight_decay=0.01,
    max_grad_norm=1.0,
    micro_batch_tokens=40,
)
CONFIG = LlamaConfig(
    vocab_size=268,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    tie_word_embeddings=True,
    attn_implementation="sdpa",
)


def masked(count: int) -> list[Example]:
    """Ragged examples; of every second one only the last two tokens are learnt."""
    rng = np.random.default_rng(0)

    def ids() -> tuple[int, ...]:
        return tuple(map(int, rng.integers(2, 268, rng.integers(2, 12))))

    drawn = [Example(ids(), ids()) for _ in range(count)]
    return [
        dataclasses.replace(
            e, loss_mask=(False,) * (len(e.completion_ids) - 2) + (True, True) if i % 2 else None
        )
        for i, e in enumerate(drawn)
    ]


def learnt(
    process: Process, folder: Path, how: str, dtype: torch.dtype = torch.float32
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The metrics of a fit, and the policy's weights at its end."""
    sharded = process.mesh is not None
    torch.manual_seed(0)
    policy: Any = (
        LlamaForCausalLM(CONFIG)
        if process.is_main
        else structure(CONFIG, GenerationConfig(), torch.float32)
    )
    adapted = add_lora(policy, 2, seed=1) if "lora" in how else None
    reader = Reader(policy)
    if sharded:
        shard(reader, process, dtype)
    if "recomputed" in how:
        recompute_layers(reader)
    examples = masked(10)
    with MetricsLog(folder / "metrics.jsonl", process=process) as log:
        optimization = Optimization(
            reader,
            [Group([p for p in reader.parameters() if p.requires_grad], LEARNER.learning_rate)],
            LEARNER,
            num_steps(len(examples), LEARNER),
            name="sft",
            checkpoints=Checkpoints(folder / "checkpoints"),
            checkpoint_seconds=math.inf,
            log=log,
            process=process,
        )
        fit(
            optimization,
            examples,
            lambda batch: accumulate_gradients(
                reader, batch, LEARNER.micro_batch_tokens, dtype, process
            ),
            seed=3,
        )
    whole: PreTrainedModel | None = policy
    if sharded:
        whole = whole_policy(policy, torch.float32, process)
    elif adapted is not None:
        assert adapted.merge_and_unload() is policy
    weights = {} if whole is None else {n: p.detach() for n, p in whole.named_parameters()}
    return reproducible(folder / "metrics.jsonl"), {n: w.numpy() for n, w in weights.items()}


WAYS = ("all", "lora", "all recomputed")


def learnt_each_way(process: Process, folder: Path) -> list[Any]:
    """Three processes gather the model layer by layer, as a large one."""
    with pytest.MonkeyPatch.context() as patch:
        if process.size == 3:
            patch.setattr(shards, "LARGE", 1)
        return [learnt(process, folder / how, how) for how in WAYS]


def agree(found: Any, expected: Any, *, rtol: float, atol: float) -> None:
    (metrics, weights), (expected_metrics, expected_weights) = found, expected
    assert len(metrics) == len(expected_metrics) == 9
    for line, wanted in zip(metrics, expected_metrics, strict=True):
        assert line == pytest.approx(wanted, rel=rtol)
    assert weights.keys() == expected_weights.keys()
    for name, weight in weights.items():
        np.testing.assert_allclose(weight, expected_weights[name], rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_number_of_processes_takes_the_steps_of_one(size: int, tmp_path: Path) -> None:
    found = in_ranks(size, learnt_each_way, tmp_path / "together")[0]
    alone = learnt_each_way(ALONE, tmp_path / "alone")
    losses = [line["sft/loss"] for line in alone[0][0]]
    assert losses[-1] < losses[0] - 0.01  # it does learn
    exact = size == 1
    for one, other in zip(found, alone, strict=True):
        agree(one, other, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-5)


@pytest.mark.slow
def test_bfloat16_is_computed_in_and_learns_as_much(tmp_path: Path) -> None:
    half = partial(learnt, how="all", dtype=torch.bfloat16)
    metrics, _ = in_ranks(2, half, tmp_path / "half")[0]
    expected, _ = learnt(ALONE, tmp_path / "full", "all")
    losses, wanted = ([line["sft/loss"] for line in of] for of in (metrics, expected))
    assert losses == pytest.approx(wanted, rel=5e-3)
    assert losses != pytest.approx(wanted, rel=1e-5)


def step_while_whole(process: Process, folder: Path) -> None:
    policy: Any = (
        LlamaForCausalLM(CONFIG)
        if process.is_main
        else structure(CONFIG, GenerationConfig(), torch.float32)
    )
    reader = Reader(policy)
    shard(reader, process, torch.float32)
    reader.unshard()  # type: ignore[operator]
    with (
        MetricsLog(folder / "metrics.jsonl", process=process) as log,
        pytest.raises(RuntimeError, match="aren't in shards"),
    ):
        Optimization(
            reader,
            [Group(list(reader.parameters()), LEARNER.learning_rate)],
            LEARNER,
            1,
            name="sft",
            checkpoints=Checkpoints(folder / "checkpoints"),
            checkpoint_seconds=math.inf,
            log=log,
            process=process,
        )


@pytest.mark.slow
def test_an_optimizer_of_a_model_that_is_whole_at_the_moment_is_refused(tmp_path: Path) -> None:
    in_ranks(2, step_while_whole, tmp_path)
