"""A policy that learns, its value function, and the policy it started from.

    h = trunk(question, completion)          log π(a_t | s_t) = log softmax(head(h_t) / T) at a_t
    V(s_t) = w · branch(h'_t) + b            s_t: the question and the tokens before a_t

The value function shares the policy's trunk. value_layers=M: its branch is a copy of the policy's
top M layers and reads h', what these layers read; value_layers=0: no branch, and h' = h. V is 0 at
first. detach_value=true stops its gradient at h', so the policy's weights never feel it.

A question's completions are read in one pass over the question and all of them, each seeing the
question and itself: the question costs once, whatever the number of completions.

The reference policy shares all weights that don't train: no second full copy where the policy
trains only its top layers or LoRA adapters. Nobody drops anything out: the model is in evaluation
mode throughout, so that a ratio of probabilities is 1 where nothing was learnt.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.policy.adapters import add_lora
from reasonrl.policy.policy import DTYPES, autocast, check_num_layers
from reasonrl.util.errors import UserError


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt and completions of it, none of them empty. Its length: the tokens read in a pass."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + sum(len(ids) - 1 for ids in self.completion_ids)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a pass gives at the n completion tokens of a batch, one completion after another.

    logits: (n, V), before any temperature, of the distribution that the token was drawn from.
    token_ids: (n,). values: (n,), of the state before the token.
    """

    logits: Tensor
    token_ids: Tensor
    values: Tensor


class ActorCritic(nn.Module):
    """``policy`` with its value function; see the module."""

    def __init__(self, policy: PreTrainedModel, value_layers: int, *, detach_value: bool) -> None:
        super().__init__()
        self.policy = policy.eval()
        self.branch = top_layers(policy, value_layers) if value_layers else None
        self.value_head = nn.Linear(policy.config.hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.value_layers, self.detach_value = value_layers, detach_value
        self.to(policy.device)
        self._adapters: list[Any] = []  # of LoRA; a list hides them from PyTorch

    @classmethod
    def build(cls, policy: PreTrainedModel, config: PPOConfig, seed: int) -> ActorCritic:
        """With what ``config.trainable`` names left to train; ``seed`` decides LoRA's random half.

        Raises UserError if the model hasn't so many layers, or none that can be copied, and if its
        completions can't be read together.
        """
        built = cls(policy, config.value_layers, detach_value=config.detach_value)
        _check_packing(policy)
        if config.trainable == "lora":
            built._adapters = [add_lora(policy, config.lora_rank, seed)]
        elif config.trainable == "top":
            freeze_below(policy, config.trainable_layers)
        return built

    def reference(self) -> PreTrainedModel:
        """The policy as it is now, frozen, sharing what doesn't train."""
        frozen = {id(p): p for p in self.policy.parameters() if not p.requires_grad}
        reference = copy.deepcopy(self.policy, frozen)
        return reference.requires_grad_(False)

    def in_use(self, dtype: str) -> PreTrainedModel:
        """The policy as it is sampled from and saved: of ``dtype``, adapters merged.

        Itself where it is that already, else a copy.
        """
        if self._adapters:
            merged: Any = copy.deepcopy(self._adapters[0]).merge_and_unload()
            return merged.to(DTYPES[dtype])
        if self.policy.dtype == DTYPES[dtype]:
            return self.policy
        return copy.deepcopy(self.policy).to(DTYPES[dtype])

    def value_parameters(self) -> list[nn.Parameter]:
        """Of the value function alone."""
        branch = [] if self.branch is None else list(self.branch.parameters())
        return [*branch, *self.value_head.parameters()]

    def policy_parameters(self) -> list[nn.Parameter]:
        """Those of the policy that train."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    def forward(self, batch: Sequence[Answered], compute_dtype: torch.dtype) -> Reading:
        """One pass for policy and value function."""
        packed = _pack(batch, self.policy.device)
        with autocast(self.policy.device, compute_dtype):
            out = self.policy.base_model(
                **packed.inputs, output_hidden_states=self.branch is not None
            )
            hidden = packed.at_tokens(out.last_hidden_state)
            logits = _head(self.policy, hidden)
            if self.branch is None:
                states = hidden.detach() if self.detach_value else hidden
            else:
                below = out.hidden_states[-1 - self.value_layers]
                inputs = packed.inputs | {"input_ids": None}
                above = self.branch(
                    **inputs, inputs_embeds=below.detach() if self.detach_value else below
                )
                states = packed.at_tokens(above.last_hidden_state)
        values = self.value_head(states.float())[..., 0]
        return Reading(logits, packed.token_ids, values)


def completion_logits(
    model: PreTrainedModel, batch: Sequence[Answered], compute_dtype: torch.dtype
) -> Tensor:
    """``Reading.logits`` of a policy without a value function."""
    packed = _pack(batch, model.device)
    with autocast(model.device, compute_dtype):
        return _head(model, packed.at_tokens(model.base_model(**packed.inputs).last_hidden_state))


def freeze_below(model: PreTrainedModel, num_layers: int) -> None:
    """Leaves the top layers to train, and the norm above them; not the embeddings."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    for module in (*_layers(model, num_layers, "trainable_layers")[:-num_layers], *embeddings):
        module.requires_grad_(False)


def top_layers(model: PreTrainedModel, num_layers: int) -> nn.Module:
    """A copy of the top layers and the final norm, to be called with their ``inputs_embeds``.

    Raises UserError unless the copy gives what the model's own layers give.
    """
    base: Any = model.base_model
    layers = _layers(model, num_layers, "value_layers")
    left_out = (*layers[:-num_layers], base.get_input_embeddings())
    top = copy.deepcopy(base, {id(module): nn.Identity() for module in left_out})
    top.layers = top.layers[-num_layers:]
    top.config.num_hidden_layers = num_layers
    if getattr(top.config, "layer_types", None):
        top.config.layer_types = top.config.layer_types[-num_layers:]
    ids = torch.arange(min(8, base.config.vocab_size), device=model.device)[None]
    with torch.no_grad():
        whole = base(input_ids=ids, use_cache=False, output_hidden_states=True)
        copied = top(inputs_embeds=whole.hidden_states[-1 - num_layers], use_cache=False)
    if not torch.allclose(copied.last_hidden_state, whole.last_hidden_state, atol=1e-4):
        raise _not_copied(model)
    return top.requires_grad_(True)


def _layers(model: PreTrainedModel, num_layers: int, key: str) -> nn.ModuleList:
    layers = getattr(model.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise _not_copied(model)
    check_num_layers(key, num_layers, len(layers))
    return layers


def _not_copied(model: PreTrainedModel) -> UserError:
    return UserError(
        "algorithm.value_layers must be 0 for a model whose top layers don't work by themselves; "
        f"got model_type={model.config.model_type}. Pass algorithm.value_layers=0 and "
        "algorithm.trainable=all or lora."
    )


@dataclass(frozen=True, slots=True)
class _Packed:
    """A batch as a model reads it: in each row a prompt, then its completions without their last
    tokens, which predict nothing.

    inputs: of the model's call. places: (n,), in the flattened rows, from where each completion
    token is predicted. token_ids: (n,).
    """

    inputs: dict[str, Any]
    places: Tensor
    token_ids: Tensor

    def at_tokens(self, states: Tensor) -> Tensor:
        """(B, L, H) to (n, H)."""
        return states.flatten(0, 1)[self.places]


def _pack(batch: Sequence[Answered], device: torch.device) -> _Packed:
    length = max(map(len, batch))
    ids = torch.zeros(len(batch), length, dtype=torch.long)
    positions = torch.zeros_like(ids)
    part = torch.full_like(ids, -1)  # 0: the prompt; 1, 2, …: a completion; -1: padding
    places: list[Tensor] = []
    for row, answered in enumerate(batch):
        end = num_prompt = len(answered.prompt_ids)
        ids[row, :end] = torch.tensor(answered.prompt_ids)
        positions[row, :end] = torch.arange(end)
        part[row, :end] = 0
        for number, completion_ids in enumerate(answered.completion_ids, start=1):
            start, end = end, end + len(completion_ids) - 1
            ids[row, start:end] = torch.tensor(completion_ids[:-1])
            positions[row, start:end] = torch.arange(num_prompt, num_prompt + end - start)
            part[row, start:end] = number
            first = torch.tensor([num_prompt - 1])
            places.append(row * length + torch.cat([first, torch.arange(start, end)]))
    before = torch.ones(length, length, dtype=torch.bool).tril()
    same = part[:, None, :] == part[:, :, None]
    attends = before & (same | (part == 0)[:, None, :])  # (B, L, L)
    token_ids = [i for answered in batch for ids in answered.completion_ids for i in ids]
    inputs = {
        "input_ids": ids.to(device),
        "position_ids": positions.to(device),
        "attention_mask": attends[:, None].to(device),
        "use_cache": False,
    }
    return _Packed(inputs, torch.cat(places).to(device), torch.tensor(token_ids, device=device))


@torch.no_grad()
def _check_packing(model: PreTrainedModel) -> None:
    """Masks, positions and logits of a packed row may mean nothing to an architecture."""
    prompt, completions = (0, 1, 2, 3), ((4, 5, 6), (5, 4))
    packed = completion_logits(model, [Answered(prompt, completions)], torch.float32)
    for completion in completions:
        ids = torch.tensor([prompt + completion[:-1]], device=model.device)
        plain = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]
        together, packed = packed.split([len(completion), len(packed) - len(completion)])
        if not torch.allclose(together, plain, atol=1e-3):
            raise UserError(
                "model must read several completions of a prompt in one pass as it reads each "
                f"alone; got model_type={model.config.model_type}, which doesn't. Take a model "
                "with plain causal attention, such as Llama or Qwen."
            )


def _head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    head: Any = model.get_output_embeddings()
    logits: Tensor = head(hidden)
    return logits
