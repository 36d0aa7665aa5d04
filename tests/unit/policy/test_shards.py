"""A policy in shards: what every process holds, and what all of them give together."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from reasonrl.policy.adapters import add_lora, add_tokens
from reasonrl.policy.policy import Policy
from reasonrl.policy.shards import (
    check_sharded,
    empty_copy,
    refresh,
    shard,
    structure,
    whole_policy,
)
from reasonrl.runs.process import Process
from tests.helpers.families import random_model
from tests.helpers.ranks import in_ranks

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 200, 31, 7, 12, 99, 3]])


class Root(nn.Module):
    """A policy, and perhaps a value function that has a branch of its own."""

    def __init__(self, policy: LlamaForCausalLM, branch: bool) -> None:
        super().__init__()
        self.policy = policy
        self.branch = copy.deepcopy(policy.model) if branch else None
        self.value_head = nn.Linear(16, 1) if branch else None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits = self.policy(input_ids=ids, use_cache=False).logits
        if self.branch is None or self.value_head is None:
            return logits
        states = self.branch(input_ids=ids, use_cache=False).last_hidden_state
        return logits + self.value_head(states.float())


def make(added: str, *, tied: bool, meta: bool) -> tuple[Root, Any]:
    """A root on the CPU or the meta device, and peft's model of its policy, if that has adapters.

    added: names what the policy gets: labels, lora, branch.
    """
    config = LlamaConfig(
        vocab_size=268,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    policy: Any = (
        structure(config, GenerationConfig(), torch.float32)
        if meta
        else LlamaForCausalLM(config).eval()
    )
    if "labels" in added:
        add_tokens(Policy(policy, None), 3, seed=1)  # type: ignore[arg-type]
    root = Root(policy, "branch" in added)
    adapted = add_lora(policy, 2, seed=1) if "lora" in added else None
    if adapted is not None and not meta:
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:  # which is 0 at first
                nn.init.normal_(parameter)
    return root, adapted


def share(process: Process, added: str, tied: bool) -> dict[str, Any]:
    before, _ = make(added, tied=tied, meta=False)
    root, _ = make(added, tied=tied, meta=not process.is_main)
    shard(root, process, torch.float32)
    check_sharded(root)
    names = [name for name, _ in root.named_parameters()]
    assert names == [name for name, _ in before.named_parameters()]
    found: dict[str, Any] = {
        "tied": root.policy.lm_head.weight is root.policy.model.embed_tokens.weight,
        "dtypes": {p.dtype for p in root.parameters()},
        "bytes": sum(p.to_local().nbytes for p in root.parameters() if isinstance(p, DTensor)),
        "whole": sum(p.nbytes for p in before.parameters()),
    }
    with torch.no_grad():
        torch.testing.assert_close(root(IDS), before(IDS), rtol=0, atol=0)
    for (name, parameter), was in zip(root.named_parameters(), before.parameters(), strict=True):
        assert isinstance(parameter, DTensor), name
        assert torch.equal(parameter.full_tensor(), was), name
        assert parameter.requires_grad == was.requires_grad, name
    for (name, buffer), was in zip(root.named_buffers(), before.buffers(), strict=True):
        assert torch.equal(buffer, was), name
    return found


def share_all(process: Process) -> list[dict[str, Any]]:
    return [
        share(process, "labels and branch", True),
        share(process, "labels and lora", False),
        share(process, "lora", True),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shards_are_the_same_bits_with_ties_buffers_and_what_trains(size: int) -> None:
    for tied, *found in zip((True, False, True), *in_ranks(size, share_all), strict=True):
        assert [one["tied"] for one in found] == [tied] * size
        assert {dtype for one in found for dtype in one["dtypes"]} == {torch.float32}
        shares = [one["bytes"] for one in found]
        assert sum(shares) == found[0]["whole"]
        assert max(shares) < found[0]["whole"] / size * 1.1


def use(process: Process, added: str, tied: bool) -> None:
    before, adapted = make(added, tied=tied, meta=False)
    root, _ = make(added, tied=tied, meta=not process.is_main)
    shard(root, process, torch.float32)
    expected = before.policy if adapted is None else adapted.merge_and_unload()
    sampled = empty_copy(root.policy, torch.bfloat16, CPU)
    with gathered() as most:
        refresh(sampled, root.policy)
    assert most() == max(p.nbytes for p in sampled.parameters())
    with gathered() as most:
        saved = whole_policy(root.policy, torch.float32, process)
    assert most() == max(p.nbytes for p in expected.parameters())
    assert (saved is not None) == process.is_main
    for copied, dtype in ((sampled, torch.bfloat16), (saved, torch.float32)):
        if copied is None:
            continue
        weights = dict(copied.named_parameters())
        assert weights.keys() == dict(expected.named_parameters()).keys()
        for name, weight in expected.named_parameters():
            assert torch.equal(weights[name], weight.to(dtype)), name
        assert (copied.lm_head.weight is copied.model.embed_tokens.weight) == tied
        assert copied.generation_config.suppress_tokens == (
            [268, 269, 270] if "labels" in added else None
        )
        for name, buffer in expected.named_buffers():
            assert torch.equal(copied.get_buffer(name), buffer), name


@contextmanager
def gathered() -> Iterator[Callable[[], int]]:
    """The most bytes of gathered weights that are alive at the same time, inside the block."""
    alive: dict[int, int] = {}
    most, full_tensor = 0, DTensor.full_tensor

    def watched(tensor: DTensor, **options: Any) -> torch.Tensor:
        nonlocal most
        whole = full_tensor(tensor, **options)
        alive[id(whole)] = whole.nbytes
        weakref.finalize(whole, alive.pop, id(whole))
        most = max(most, sum(alive.values()))
        return whole

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DTensor, "full_tensor", watched)
        yield lambda: most


def use_all(process: Process) -> None:
    use(process, "labels", True)
    use(process, "lora", False)
    use(process, "labels and lora", True)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_a_copy_is_a_cast_of_the_whole_with_adapters_merged(size: int) -> None:
    in_ranks(size, use_all)


@pytest.mark.parametrize("name", ["Qwen3 MoE", "Qwen3-Next", "Kimi Linear"])
def test_adapters_of_experts_are_merged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some experts are a weight together, around which peft puts an adapter for all of them."""
    monkeypatch.setattr("reasonrl.policy.shards._full", lambda tensor: tensor)  # whole already
    model, copied = random_model(name), random_model(name, seed=1)
    adapted = add_lora(model, 2, seed=1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    refresh(copied, model)
    before = dict(random_model(name).named_parameters())
    merged = dict(adapted.merge_and_unload().named_parameters())
    for key, weight in copied.named_parameters():
        torch.testing.assert_close(weight, merged[key], msg=key)
    experts = [key for key in before if key.endswith(("experts.gate_up_proj", "experts.down_proj"))]
    assert experts
    changed = [key for key in experts if not torch.equal(before[key], merged[key])]
    assert changed == (experts if name.startswith("Qwen") else [])


def freeze(process: Process) -> list[Any]:
    root, _ = make("lora and branch", tied=True, meta=not process.is_main)
    shard(root, process, torch.bfloat16)
    root(IDS).float().square().mean().backward()
    learnt = [p for p in root.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learnt)
    return [
        {p.dtype for p in learnt},
        {p.grad.dtype for p in learnt if p.grad is not None},
        {p.dtype for p in root.parameters() if not p.requires_grad},
    ]


@pytest.mark.slow
def test_a_frozen_base_is_half_as_large_beside_its_adapters() -> None:
    full, half = {torch.float32}, {torch.bfloat16}
    assert in_ranks(2, freeze) == [[full, full, half]] * 2


def read_whole(process: Process) -> None:
    root, _ = make("", tied=True, meta=not process.is_main)
    shard(root, process, torch.float32)
    root.unshard()  # type: ignore[operator]  # it is torch's module of shards by now
    with pytest.raises(RuntimeError, match=r"29 parameters aren't in shards, policy\.model"):
        check_sharded(root)
    with pytest.raises(AssertionError, match="isn't in shards"):
        refresh(empty_copy(root.policy, torch.float32, CPU), root.policy)


@pytest.mark.slow
def test_a_module_that_is_whole_at_the_moment_is_refused() -> None:
    in_ranks(2, read_whole)
