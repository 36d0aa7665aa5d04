"""The plan of memory against the memory tracker of torch's FSDP2, on tensors without content.

A pass forwards and backwards is tracked on gradients that are there already, as in the last
micro-batch of a step. Adam's moments, 8 bytes of each parameter that trains, aren't tracked: an
optimizer makes copies on fake tensors that it doesn't make otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM

from reasonrl.config.algorithm.base import Footprint
from reasonrl.config.model import LARGE, ShapeConfig
from reasonrl.learning.packed import PromptGroup
from reasonrl.learning.recompute import recompute_layers
from reasonrl.learning.supervised import Example, Reader, collate
from reasonrl.pipeline.memory import GB, memory
from reasonrl.policy.adapters import add_lora
from reasonrl.policy.shards import divide
from reasonrl.policy_gradient.actor_critic import ActorCritic

pytestmark = pytest.mark.slow

SHAPES = {
    "0.5b": ShapeConfig(896, 4864, 24, 14, 2, 32000, tie_word_embeddings=True),
    "7b": ShapeConfig(4096, 11008, 32, 32, 32, 32000, tie_word_embeddings=False),
    "13b": ShapeConfig(5120, 13824, 40, 40, 40, 32000, tie_word_embeddings=False),
}
# Tracking takes the longer the more layers there are.
SHAPES["a quarter of 7b"] = replace(SHAPES["7b"], num_hidden_layers=8)
# 7,700 tokens in 11 rows: a question of 100, and four completions of 151 each.
GROUPS = [PromptGroup((1,) * 100, ((1,) * 151,) * 4)] * 11


@pytest.mark.parametrize(
    ("name", "gpus", "rank"),
    [
        ("7b", 8, 0),
        ("a quarter of 7b", 1, 0),
        ("a quarter of 7b", 8, 128),
        ("13b", 8, 0),
        ("0.5b", 8, 0),
        ("0.5b", 2, 32),
    ],
)
def test_a_supervised_learner(name: str, gpus: int, rank: int) -> None:
    run = Footprint("lora" if rank else "all", "apart", 8192, rank, checkpoint_layers=True)
    reader = Reader(llama(SHAPES[name], rank))
    examples = [Example((1,) * 100, (1,) * 156)] * (8192 // 256)

    def read() -> Tensor:
        return reader(collate(examples), torch.bfloat16)

    assert_a_little_above(SHAPES[name], run, gpus, tracked(reader, gpus, read))


@pytest.mark.parametrize(("gpus", "rank"), [(8, 128), (8, 0)])
def test_ppo(gpus: int, rank: int) -> None:
    """The reference is left out: it is read in another pass, and its shards don't change."""
    trains = "lora" if rank else "all"
    run = Footprint(trains, "while it learns", 7700, rank, value_layers=4)
    shape = SHAPES["a quarter of 7b"]
    policy = llama(shape, 0)
    with torch.device("meta"):
        model = ActorCritic(policy, 4, detach_value=True)
        if rank:
            add_lora(policy, rank, seed=0)

    def read() -> Tensor:
        out = model(GROUPS, torch.bfloat16, 0.7)
        return out.logprobs + out.values

    assert_a_little_above(shape, run, gpus, tracked(model, gpus, read))


def assert_a_little_above(shape: ShapeConfig, run: Footprint, gpus: int, found: float) -> None:
    """``found``: the bytes without Adam's moments."""
    held = memory(shape, run, gpus, 80, 2, max_new_tokens=256).learning
    plan = sum(held.values())
    track = found + held["Adam"] + held["value function"] / 2
    most = 1.1 if shape.num_parameters >= LARGE else 1.15  # of GPUs that are nearly empty
    assert track <= plan <= most * track, f"planned {plan / GB:.2f} GB, tracked {track / GB:.2f}"


def llama(shape: ShapeConfig, rank: int) -> LlamaForCausalLM:
    """A model on the meta device, with LoRA adapters of this rank if it isn't 0."""
    sizes = {name: value for name, value in vars(shape).items() if value is not None}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=4096))
        if rank:
            add_lora(model, rank, seed=0)
    return model


def tracked(module: nn.Module, gpus: int, read: Callable[[], Tensor]) -> float:
    """The most bytes on one of so many devices in a second pass, forwards and backwards."""
    dist.init_process_group("fake", rank=0, world_size=gpus, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (gpus,))
        with FakeTensorMode():
            _fill(module)
            recompute_layers(module)
            divide(module, mesh, torch.bfloat16)
            trained = [p for p in module.parameters() if p.requires_grad]
            tracker = FSDPMemTracker(module, torch.optim.AdamW(trained))
            with tracker:
                for _ in range(2):
                    tracker.reset_mod_stats()
                    read().sum().backward()
        peak = tracker.get_tracker_snapshot("peak")
        return float(peak[torch.device("cpu")]["Total"])
    finally:
        dist.destroy_process_group()


def _fill(module: nn.Module) -> None:
    """Puts tensors without content in place of those on the meta device, ties staying ties."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, old in part.named_parameters(recurse=False, remove_duplicate=False):
            if id(old) not in made:
                dtype = torch.float32 if old.requires_grad else torch.bfloat16
                made[id(old)] = nn.Parameter(torch.empty(old.shape, dtype=dtype), old.requires_grad)
            setattr(part, name, made[id(old)])
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))
