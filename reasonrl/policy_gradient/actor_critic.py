"""A policy that learns, its value function, and the policy it started from.

    h = trunk(question, completion)          log π(a_t | s_t) = log softmax(head(h_t) / T) at a_t
    V(s_t) = w · branch(h'_t) + b            s_t: the question and the tokens before a_t

The value function shares the policy's trunk. With value_layers=M its branch is a copy of the
policy's top M layers and reads h', which is what those layers read; with value_layers=0 there is no
branch, and h' = h. V is 0 at first. detach_value=true stops V's gradient at h', so the policy's
weights never feel it.

A question's completions are read in one pass over the question and all of them, and each sees only
the question and itself: the question costs once, whatever the number of completions.

The reference policy shares all weights that don't train, so there is no second full copy where the
policy trains only its top layers or LoRA adapters. There is no dropout: the model is in evaluation
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
from reasonrl.learning.packed import PromptGroup, check_packing, output_logits, pack
from reasonrl.policy.adapters import add_lora
from reasonrl.policy.policy import DTYPES, autocast, check_num_layers
from reasonrl.util.errors import UserError


@dataclass(frozen=True, slots=True)
class TokenOutputs:
    """What a pass gives at the n completion tokens of a batch, one completion after another."""

    logits: Tensor  # (n, V), of the distribution the token was drawn from, before any temperature
    token_ids: Tensor  # (n,)
    values: Tensor  # (n,), of the state before the token


class ActorCritic(nn.Module):
    """A policy with its value function, as the module's docstring defines it."""

    def __init__(self, policy: PreTrainedModel, value_layers: int, *, detach_value: bool) -> None:
        super().__init__()
        self.policy = policy.eval()
        self.branch = top_layers(policy, value_layers) if value_layers else None
        self.value_head = nn.Linear(policy.config.hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.value_layers, self.detach_value = value_layers, detach_value
        self.to(policy.device)
        self._adapters: list[Any] = []  # LoRA's; a list hides them from PyTorch

    @classmethod
    def build(cls, policy: PreTrainedModel, config: PPOConfig, seed: int) -> ActorCritic:
        """Adds the value function, and freezes what ``config.trainable`` doesn't name.

        seed: decides LoRA's random half.

        Raises UserError if the model has too few layers, or layers that can't be copied, and if
        several completions of a prompt can't be read in one pass.
        """
        built = cls(policy, config.value_layers, detach_value=config.detach_value)
        check_packing(policy)
        if config.trainable == "lora":
            built._adapters = [add_lora(policy, config.lora_rank, seed)]
        elif config.trainable == "top":
            freeze_below(policy, config.trainable_layers)
        return built

    def reference(self) -> PreTrainedModel:
        """A frozen copy of the policy as it is now; it shares the weights that don't train."""
        frozen = {id(p): p for p in self.policy.parameters() if not p.requires_grad}
        reference = copy.deepcopy(self.policy, frozen)
        return reference.requires_grad_(False)

    def in_use(self, dtype: str) -> PreTrainedModel:
        """The policy as it is sampled from and saved: of ``dtype``, with its adapters merged.

        It is the policy itself where nothing has to change for that, else a copy.
        """
        if self._adapters:
            merged: Any = copy.deepcopy(self._adapters[0]).merge_and_unload()
            return merged.to(DTYPES[dtype])
        if self.policy.dtype == DTYPES[dtype]:
            return self.policy
        return copy.deepcopy(self.policy).to(DTYPES[dtype])

    def value_parameters(self) -> list[nn.Parameter]:
        """The parameters of the value function alone."""
        branch = [] if self.branch is None else list(self.branch.parameters())
        return [*branch, *self.value_head.parameters()]

    def policy_parameters(self) -> list[nn.Parameter]:
        """The parameters of the policy that train."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    def forward(self, batch: Sequence[PromptGroup], compute_dtype: torch.dtype) -> TokenOutputs:
        """Reads the batch in one pass, for policy and value function."""
        packed = pack(batch, self.policy.device)
        with autocast(self.policy.device, compute_dtype):
            out = self.policy.base_model(
                **packed.inputs, output_hidden_states=self.branch is not None
            )
            hidden = packed.at_tokens(out.last_hidden_state)
            logits = output_logits(self.policy, hidden)
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
        return TokenOutputs(logits, packed.token_ids, values)


def freeze_below(model: PreTrainedModel, num_layers: int) -> None:
    """Freezes all but the top ``num_layers`` layers and the norm above them; embeddings too."""
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
