"""What a run holds on its GPUs: literal numbers, what fits where, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from reasonrl.config.algorithm.base import Footprint
from reasonrl.config.model import ShapeConfig
from reasonrl.config.resolve import resolve, resolve_evaluation
from reasonrl.config.schema import TrainConfig
from reasonrl.pipeline import execute
from reasonrl.pipeline.memory import (
    EVALUATION,
    GB,
    Memory,
    _activations,
    check_memory,
    fewest_gpus,
    memory,
    memory_of,
    with_batch_size,
)
from reasonrl.pipeline.plan import Plan
from reasonrl.pipeline.planner import with_sizes
from reasonrl.pipeline.text import memory_table
from reasonrl.policy.adapters import add_lora
from reasonrl.policy.policy import num_parameters_of, shape_of
from reasonrl.report.wandb_mirror import Mirror
from reasonrl.runs.folder import read_config, run_folder
from reasonrl.runs.process import ALONE
from reasonrl.types import SavedPolicy
from reasonrl.util.errors import UserError
from reasonrl.util.progress import Progress, console
from tests.helpers.configs import ROOT, TINY, small_config
from tests.helpers.families import random_model

T = 8192
SUPERVISED = Footprint("all", "apart", T)
PPO = Footprint("all", "while it learns", T, value_layers=4, reference=True)
PPO_LORA = Footprint("lora", "while it learns", T, lora_rank=128, value_layers=4)


def configured(*overrides: str) -> TrainConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("train", list(overrides)))


def shape(name: str) -> ShapeConfig:
    found = configured(f"model={name}").model.shape
    assert found is not None
    return found


def llama(shape: ShapeConfig) -> LlamaForCausalLM:
    """A model of this shape, without weights."""
    config = LlamaConfig(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        vocab_size=shape.vocab_size,
        tie_word_embeddings=shape.tie_word_embeddings,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


# Counts, against models on the meta device.


@pytest.mark.parametrize(
    ("name", "whole", "layer", "outer", "adapters"),
    [
        ("7b", 6_738_415_616, 202_383_360, 262_148_096, 319_815_680),
        ("13b", 13_015_864_320, 317_204_480, 327_685_120, 500_695_040),
    ],
)
def test_parameters_of_the_paper_s_models(
    name: str, whole: int, layer: int, outer: int, adapters: int
) -> None:
    found = shape(name)
    assert (found.num_parameters, found.layer_parameters) == (whole, layer)
    assert (found.outer_parameters, found.lora_parameters(128)) == (outer, adapters)
    model = llama(found)
    assert model.num_parameters() == whole
    assert sum(p.numel() for p in model.model.layers[0].parameters()) == layer
    with torch.device("meta"):
        add_lora(model, 128, seed=0)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == adapters


@pytest.mark.parametrize(
    ("name", "biases"),
    [
        ("smollm2-135m", 0),
        ("smollm2-360m", 0),
        ("llama-3.2-1b", 0),
        ("qwen2.5-0.5b", 24 * (896 + 2 * 128)),
        ("qwen2.5-1.5b", 28 * (1536 + 2 * 256)),
        ("7b", 0),
        ("13b", 0),
    ],
)
def test_every_shape_has_the_model_s_parameters(name: str, biases: int) -> None:
    model = configured(f"model={name}").model
    assert model.shape is not None
    assert model.shape.num_parameters + biases == model.num_parameters


def test_a_model_that_is_here_says_its_shape() -> None:
    found = shape_of(str(TINY))
    assert found == ShapeConfig(128, 448, 4, 4, 4, 268, tie_word_embeddings=True, head_dim=32)
    assert found.num_parameters == 985_728


def test_a_config_without_these_sizes_has_no_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')  # has no vocabulary of keys
    assert shape_of(str(tmp_path)) is None


def test_a_mixture_of_experts_has_no_shape_but_a_number_of_parameters(tmp_path: Path) -> None:
    """Its config has all of a shape's names, and four experts in each layer."""
    model = random_model("Qwen3 MoE")
    model.config.save_pretrained(tmp_path)
    assert shape_of(str(tmp_path)) is None
    assert num_parameters_of(str(tmp_path)) == model.num_parameters()
    own = with_sizes(small_config(tmp_path, f"model.path={tmp_path}").model, str(tmp_path))
    assert (own.num_parameters, own.shape) == (985_728, None)  # what the settings say wins
    unsaid = replace(own, num_parameters=None)
    assert with_sizes(unsaid, str(tmp_path)).num_parameters == model.num_parameters()
    for name in ("Llama 2, 3", "Qwen2.5", "Gemma 2", "SmolLM3"):
        config = random_model(name).config
        config.update({"hidden_size": 64, "intermediate_size": 160})  # biases and norms are few
        config.save_pretrained(tmp_path / name)
        assert shape_of(str(tmp_path / name)) is not None, name


# What a token leaves behind, against what autograd keeps.


@pytest.mark.parametrize(
    ("hidden", "inner", "heads", "kv_heads"),
    [(256, 688, 4, 4), (256, 1024, 8, 2), (128, 640, 4, 1)],
)
def test_activations_of_a_layer(hidden: int, inner: int, heads: int, kv_heads: int) -> None:
    """All that the backward pass of a layer keeps, in bfloat16, but its weights and positions."""
    found = ShapeConfig(hidden, inner, 1, heads, kv_heads, 32, tie_word_embeddings=True)
    config = llama(found).config
    config._attn_implementation = "sdpa"
    layer = LlamaDecoderLayer(config, layer_idx=0).bfloat16()
    length, width = 64, hidden // heads
    states = torch.randn(1, length, hidden, dtype=torch.bfloat16, requires_grad=True)
    positions = tuple(torch.ones(1, length, width, dtype=torch.bfloat16) for _ in range(2))
    known = {p.untyped_storage().data_ptr() for p in (*layer.parameters(), *positions)}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known and tensor.numel() > length * heads:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        after = layer(states, position_embeddings=positions)
    assert after.requires_grad
    per_token = sum(kept.values()) / length
    assert _activations(found, Footprint("all", "apart"), 2) == pytest.approx(per_token, rel=0.03)


# By term, and what fits where.


def test_the_terms_of_expert_iteration() -> None:
    """7B on four GPUs, in GB: 4, 4 and 8 bytes of 6.738e9 parameters, a quarter each; and so on."""
    held = memory(shape("7b"), SUPERVISED, 4, 80, 2, max_new_tokens=256)
    assert {term: round(value / GB, 2) for term, value in held.learning.items() if value} == {
        "weights": 6.74,
        "gradients": 6.74,
        "Adam": 13.48,
        "gathered layers": 4.12,  # 4 L + 2 R + 6 (L + R)
        "activations": 3.67,  # 8192 tokens: 2 × 4096 × 32, and 186 kB of one layer
        "log-probabilities": 0.23,  # 512 × 32000 × 14
    }
    assert {term: round(value / GB, 2) for term, value in held.sampling.items() if value} == {
        "policy to sample with": 13.48
    }
    assert held.row == 256 * 524_288  # 2 × 32 layers × 4096 × 2 bytes a token


@pytest.mark.parametrize(
    ("name", "run", "cells"),
    [
        ("7b", SUPERVISED, ["116 433 -", "116 851", "62 433", "35 433", "22 433", "35 851"]),
        ("7b", PPO, ["143 0 -", "143 75 -", "76 45 -", "42 239", "25 336", "42 657"]),
        ("7b", PPO_LORA, ["39 231", "39 649", "23 332", "15 382", "11 407", "15 800"]),
        ("13b", SUPERVISED, ["220 217 -", "220 484 -", "115 217 -", "63 217", "37 217", "63 484"]),
        ("13b", PPO, ["266 0 -", "266 0 -", "139 0 -", "76 0 -", "44 99", "76 249"]),
        ("13b", PPO_LORA, ["65 0 -", "65 259", "38 104", "24 160", "17 189", "24 428"]),
    ],
)
def test_what_fits_where(name: str, run: Footprint, cells: list[str]) -> None:
    """GB while it learns, completions at a time, and - where it doesn't fit."""
    places = [(1, 80), (1, 141), (2, 80), (4, 80), (8, 80), (4, 141)]

    def cell(held: Memory) -> str:
        learning = sum(held.learning.values()) / GB
        return f"{learning:.0f} {held.rows}{'' if held.fits else ' -'}"

    found = shape(name)
    held = [memory(found, run, *place, 2, max_new_tokens=256) for place in places]
    assert [cell(one) for one in held] == cells


def test_more_gpus_never_hold_more() -> None:
    for run in (SUPERVISED, PPO, PPO_LORA):
        held = [memory(shape("13b"), run, n, 80, 2, max_new_tokens=256).most for n in (1, 2, 4, 8)]
        assert held == sorted(held, reverse=True)


def test_a_reward_model_is_whole_in_each_gpu() -> None:
    config = configured("model=7b", "algorithm=ppo", "reward=orm")
    with_it = memory_of(config, shape("7b"))
    without = memory_of(configured("model=7b", "algorithm=ppo"), shape("7b"))
    assert with_it.learning["reward model"] == 2 * 6_738_415_616
    assert sum(with_it.sampling.values()) - sum(without.sampling.values()) == 2 * 6_738_415_616
    # A run that makes one reads none.
    assert memory_of(configured("model=7b", "algorithm=orm"), shape("7b")).sampling == {}


@pytest.mark.parametrize(
    ("overrides", "gigabytes"),
    [
        # Of 6.738e9 parameters on one GPU: those that train 16 bytes each, the others 2.
        (["algorithm=sft"], 107.8),
        (["algorithm=orm", "algorithm.trainable=head"], 13.5),
        (["algorithm=orm", "algorithm.trainable=lora", "algorithm.lora_rank=128"], 18.6),
        (["algorithm=ppo", "algorithm.trainable=top", "algorithm.trainable_layers=2"], 19.1),
        (["algorithm=sample"], 0),
        (["algorithm=steps"], 0),
        (["algorithm=sft", "model.compute_dtype=float32"], 107.8),
    ],
)
def test_what_trains(overrides: list[str], gigabytes: float) -> None:
    config = configured("model=7b", "model.resources.gpus=1", *overrides)
    learning = memory_of(config, shape("7b")).learning
    held = sum(learning.get(term, 0) for term in ("weights", "gradients", "Adam"))
    assert held / GB == pytest.approx(gigabytes, abs=0.05)


def test_a_small_model_alone_on_a_gpu() -> None:
    """Nothing is in shards, nothing is computed again, and all tokens are scored at once.

    24 layers keep 62,720 bytes of a token each, 3 · 896 · 2 of them copies for packed rows; there
    are 151,936 words, and 494e6 parameters.
    """
    alone = memory(shape("qwen2.5-0.5b"), PPO_LORA, 1, 80, 2, max_new_tokens=256)
    assert alone.learning["activations"] == T * (24 + 4) * 62_720
    assert alone.learning["log-probabilities"] == T * 151_936 * 14
    assert alone.learning["gathered layers"] == 0
    assert alone.learning["weights as computed with"] == 2 * 494_005_120
    adapters = shape("qwen2.5-0.5b").lora_parameters(128)
    assert alone.learning["weights"] == 4 * (494_005_120 + adapters)
    two = memory(shape("qwen2.5-0.5b"), PPO_LORA, 2, 80, 2, max_new_tokens=256)
    assert two.learning["log-probabilities"] == 512 * 151_936 * 14
    assert two.learning["weights as computed with"] == 0
    assert two.learning["weights"] == (2 * 494_005_120 + 4 * adapters) / 2


def test_no_more_rows_than_are_worth_it() -> None:
    assert memory(shape("qwen2.5-0.5b"), SUPERVISED, 1, 80, 2, max_new_tokens=80).rows == 1024


def test_as_many_completions_are_sampled_at_a_time_as_have_room() -> None:
    """EI holds 2 bytes a parameter beside them, PPO its learner's state too."""

    def rows(*overrides: str) -> int | str:
        config = configured("model=7b", "dataset.max_new_tokens=256", *overrides)
        held = config.algorithm.footprint()
        return with_batch_size(config, shape("7b"), held, reward_model=False).sampler.batch_size

    assert rows("algorithm=ei") == 433
    assert rows("algorithm=ei", "model.resources.gpu_gb=141") == 851
    assert rows("algorithm=ppo", "algorithm.value_layers=4") == 382
    assert rows("sampler.batch_size=64") == 64
    assert rows("model.resources.gpus=0") == "auto"
    unknown = configured("model=7b")
    assert with_batch_size(unknown, None, SUPERVISED, reward_model=False) is unknown
    assert unknown.sampler.num_rows == 1024


def test_an_evaluation_by_itself_has_its_own_room() -> None:
    """(0.92 · 80e9 - 2e9 - 2 P) / 134,217,728 bytes a completion; less 2 P for a reward model."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = ["model=7b", "dataset.max_new_tokens=256"]
        config = resolve_evaluation(compose("evaluate", overrides))
    for reward_model, rows in ((False, 433), (True, 332)):
        found = with_batch_size(config, shape("7b"), EVALUATION, reward_model=reward_model)
        assert found.sampler.batch_size == rows


def test_a_run_at_work_has_the_number_and_its_record_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = ["dataset=stories", "dataset.max_new_tokens=256", f"runtime.outputs={tmp_path}"]
    config = configured("model=7b", "algorithm=sample", *sizes)
    run = run_folder(config)
    planned = Plan(config, run, {}, "", False, config.model.shape, [], [], [], [])
    at_work: list[Plan] = []
    monkeypatch.setattr(execute, "starting_policy", lambda _: SavedPolicy("", few_shot=False))
    monkeypatch.setattr(execute, "_carry_out", lambda planned, *_: at_work.append(planned))
    monkeypatch.setattr(execute, "_draw", lambda _: None)
    execute._execute(planned, Progress(), Mirror(run, None), ALONE)
    assert at_work[0].config.sampler.batch_size == 433
    assert read_config(run).sampler.batch_size == "auto"


# What is refused, and what is said to fit.


def refusal(*overrides: str) -> str:
    config = configured("model.name=x", *overrides)
    with pytest.raises(UserError) as raised:
        check_memory(config, shape("13b"))
    return str(raised.value)


EI_13B = ("model=13b", "algorithm=ei", "model.resources.nodes=1")


def test_a_run_without_room_is_refused() -> None:
    assert refusal(*EI_13B, "model.resources.gpus=2") == (
        "model.resources.gpus=2 must have room for algorithm=ei model=x: 115 GB on each; got 80 "
        "GB, of which 74 can be used. Pass model.resources.gpus=4, or model.resources.gpu_gb=141, "
        "or trainable=lora for ei."
    )


def test_lora_is_named_where_it_helps() -> None:
    ppo = [f"algorithm.{value}" for value in ("trainable=all", "lora_rank=16", "value_layers=0")]
    said = refusal("model=13b", "algorithm=ppo", *ppo, "model.resources.gpus=2")
    assert said.endswith(
        "Pass model.resources.gpus=8, or model.resources.gpu_gb=141, or trainable=lora for ppo."
    )


def test_several_nodes_are_named_where_one_is_not_enough() -> None:
    said = refusal(*EI_13B, "model.resources.gpus=1", "model.resources.gpu_gb=40")
    assert "Pass model.resources.nodes=2 model.resources.gpus=8" in said


def test_a_run_on_a_cpu_is_never_refused() -> None:
    config = configured("model=13b", "model.resources.gpus=0")
    check_memory(config, shape("13b"))


def test_the_fewest_gpus() -> None:
    for name, algorithm, expected in (("7b", "ei", 2), ("13b", "ei", 4), ("13b", "sample", 1)):
        config = configured(f"model={name}", f"algorithm={algorithm}")
        assert fewest_gpus(config, shape(name)) == expected
    small = replace(config.model.resources, gpu_gb=24)  # the copy to sample with has no room
    config = replace(config, model=replace(config.model, resources=small))
    assert fewest_gpus(config, shape("13b")) is None


def test_the_table_has_a_column_for_each_run_that_differs() -> None:
    configs = [configured("model=7b", "algorithm=ei", f"seed={seed}") for seed in (0, 1)]
    configs += [configured("model=7b", "algorithm=sample")]
    with console.capture() as captured:
        console.print(memory_table(configs, shape("7b")))
    lines = [line.split() for line in captured.get().splitlines() if line.strip()]
    assert ["ei", "sample"] in lines
    assert ["while", "it", "learns", "35.0"] in lines
    assert ["while", "it", "samples", "13.5", "13.5"] in lines
    assert lines[-1][-2:] == ["433", "433"]
