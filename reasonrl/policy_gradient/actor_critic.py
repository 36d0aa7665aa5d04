"""A policy that learns, its value function, and the policy it started from.

    h = trunk(question, completion)          log π(a_t | s_t) = log softmax(head(h_t) / T) at a_t
    V(s_t) = w · branch(h'_t) + b            s_t: the question and the tokens before a_t

The value function shares the policy's trunk. With value_layers=M its branch is a copy of the
policy's top M layers and reads h', which is what those layers read; with value_layers=0 there is no
branch, and h' = h; with null there is no value function. V is 0 at first. detach_value=true stops
V's gradient at h', so the policy's weights never feel it.

A question's completions are read in one pass over the question and all of them, and each sees only
the question and itself: the question costs once, whatever the number of completions. Models that
can't read them so read each with its question (``learning.packed``).

The reference policy needs no second full copy where the policy trains LoRA adapters, for then it is
the policy without them; a process alone shares with it all weights that don't train. There is no
dropout: the model is in evaluation mode throughout, so that a ratio of probabilities is 1 where
nothing was learnt.

Where several processes hold the model in shards (``policy.shards``), a pass of one is a pass of
all. A policy to sample from is then a whole copy, which each process gathers for itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reasonrl.config.algorithm.ppo import PPOConfig
from reasonrl.learning.optimization import Group
from reasonrl.learning.packed import (
    PACKED,
    Layout,
    PromptGroup,
    find_layout,
    token_statistics,
)
from reasonrl.policy.adapters import adapters_off, add_lora
from reasonrl.policy.policy import DTYPES, autocast, check_num_layers
from reasonrl.policy.probe import short_windows
from reasonrl.policy.shards import empty_copy, is_sharded, refresh
from reasonrl.policy.twin import try_twin
from reasonrl.runs.process import ALONE, Process
from reasonrl.util.errors import UserError


class TokenOutputs(NamedTuple):
    """What a pass gives at the n completion tokens of a batch, one completion after another.

    What wasn't asked for is empty.
    """

    logprobs: Tensor  # (n,), of each token
    entropy: Tensor  # (n,), in nats, of the distribution that the token was drawn from
    values: Tensor  # (n,), of the state before the token; 0 without a value function


# Takes a batch, the dtype to compute in and the temperature; gives the log-probabilities (n,) that
# the batch's completion tokens have under the reference policy.
ReadReference = Callable[[Sequence[PromptGroup], torch.dtype, float], Tensor]


class Reference(nn.Module):
    """A policy as it was when a run began, in a model of its own: its weights don't train."""

    def __init__(self, policy: PreTrainedModel, layout: Layout = PACKED) -> None:
        super().__init__()
        self.policy = policy.eval().requires_grad_(False)
        self.layout = layout

    def forward(
        self, batch: Sequence[PromptGroup], compute_dtype: torch.dtype, temperature: float
    ) -> Tensor:
        """The log-probabilities (n,) of the batch's completion tokens."""
        packed = self.layout.lay_out(batch, self.policy.device)
        with _computing(self, compute_dtype):
            states = packed.at_tokens(self.policy.base_model(**packed.inputs).last_hidden_state)
            return token_statistics(
                self.policy,
                states,
                packed.token_ids,
                temperature,
                with_entropy=False,
                chunked=is_sharded(self),
            )[0]


class ActorCritic(nn.Module):
    """A policy with its value function, as the module's docstring defines it."""

    def __init__(
        self, policy: PreTrainedModel, value_layers: int | None, *, detach_value: bool
    ) -> None:
        super().__init__()
        self.policy = policy.eval()
        self.branch = top_layers(policy, value_layers) if value_layers else None
        self.value_head = None if value_layers is None else _zeros(policy.config.hidden_size)
        self.value_layers, self.detach_value = value_layers or 0, detach_value
        self.layout = PACKED
        self.to(policy.device)
        self._adapters: list[Any] = []  # LoRA's; a list hides them from PyTorch

    @classmethod
    def build(
        cls, policy: PreTrainedModel, config: PPOConfig, seed: int, process: Process = ALONE
    ) -> ActorCritic:
        """Adds the value function, and freezes what ``config.trainable`` doesn't name.

        policy: several processes build together; all but the main one hold it on the meta device.
        seed: decides LoRA's random half.

        Raises UserError if the model has too few layers, or layers that can't be copied, and if
        it doesn't read completions in a batch as it reads each alone.
        """
        built = cls(policy, config.value_layers, detach_value=bool(config.detach_value))
        built.layout = process.first(lambda: built._find_layout(process))
        if config.trainable == "lora":
            built._adapters = [add_lora(policy, config.lora_rank, seed)]
        elif config.trainable == "top":
            freeze_below(policy, config.trainable_layers)
        return built

    def _find_layout(self, process: Process) -> Layout:
        """How models of this architecture are read. Raises UserError if they can't be."""
        model, top = self.policy, self.branch
        twin = try_twin(model.config) if process.size > 1 else None  # else large, on the CPU
        if twin is not None:
            model, top = twin, None if top is None else top_layers(twin, 1)
        if top is not None:
            check_top_layers(model, top)
        return find_layout(model)

    def groups(self, config: PPOConfig) -> dict[str, Group]:
        """The parameters that train, by a name for their metrics."""
        groups = {"policy": Group(self.policy_parameters(), config.learning_rate)}
        if config.value_learning_rate is not None:
            value = self.value_parameters(), config.value_learning_rate, "value_learning_rate"
            groups["value"] = Group(*value)
        return groups

    def frozen_policy(self) -> PreTrainedModel:
        """A frozen copy of the policy as it is now; it shares the weights that don't train."""
        frozen = {id(p): p for p in self.policy.parameters() if not p.requires_grad}
        return copy.deepcopy(self.policy, frozen).requires_grad_(False)

    def without_adapters(
        self, batch: Sequence[PromptGroup], compute_dtype: torch.dtype, temperature: float
    ) -> Tensor:
        """The log-probabilities (n,) under the policy that LoRA began with: see ``Reference``."""
        with adapters_off(self.policy):
            return self(batch, compute_dtype, temperature, with_values=False).logprobs

    def in_use(self, dtype: str) -> PreTrainedModel:
        """The policy as it is sampled from and saved: of ``dtype``, with its adapters merged.

        It is the policy itself where nothing has to change for that, else a copy. Where the model
        lies in shards, each process gets a whole copy, together.
        """
        if is_sharded(self):
            whole = empty_copy(self.policy, DTYPES[dtype], self.policy.device)
            refresh(whole, self.policy)
            return whole
        if self._adapters:
            merged: Any = copy.deepcopy(self._adapters[0]).merge_and_unload()
            return merged.to(DTYPES[dtype])
        if self.policy.dtype == DTYPES[dtype]:
            return self.policy
        return copy.deepcopy(self.policy).to(DTYPES[dtype])

    def value_parameters(self) -> list[nn.Parameter]:
        """The parameters of the value function alone."""
        branch = [] if self.branch is None else list(self.branch.parameters())
        head = [] if self.value_head is None else list(self.value_head.parameters())
        return [*branch, *head]

    def policy_parameters(self) -> list[nn.Parameter]:
        """The parameters of the policy that train."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    def forward(
        self,
        batch: Sequence[PromptGroup],
        compute_dtype: torch.dtype,
        temperature: float,
        *,
        with_entropy: bool = False,
        with_values: bool = True,
    ) -> TokenOutputs:
        """Reads the batch in one pass, for policy and value function.

        temperature: that of log-probabilities and entropy.
        with_entropy, with_values: whether to compute these too.
        """
        packed = self.layout.lay_out(batch, self.policy.device)
        with _computing(self, compute_dtype):
            out = self.policy.base_model(
                **packed.inputs, output_hidden_states=with_values and self.branch is not None
            )
            hidden = packed.at_tokens(out.last_hidden_state)
            logprobs, entropy = token_statistics(
                self.policy,
                hidden,
                packed.token_ids,
                temperature,
                with_entropy=with_entropy,
                chunked=is_sharded(self),
            )
            if not with_values:
                return TokenOutputs(logprobs, entropy, logprobs.new_empty(0))
            if self.value_head is None:
                return TokenOutputs(logprobs, entropy, torch.zeros_like(logprobs))
            if self.branch is None:
                states = hidden.detach() if self.detach_value else hidden
            else:
                below = out.hidden_states[-1 - self.value_layers]
                inputs = packed.inputs | {"input_ids": None}
                above = self.branch(
                    **inputs, inputs_embeds=below.detach() if self.detach_value else below
                )
                states = packed.at_tokens(above.last_hidden_state)
        return TokenOutputs(logprobs, entropy, self.value_head(states.float())[..., 0].clone())


def _zeros(size: int) -> nn.Linear:
    head = nn.Linear(size, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def freeze_below(model: PreTrainedModel, num_layers: int) -> None:
    """Freezes all but the top ``num_layers`` layers and the norm above them; embeddings too."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    for module in (*_layers(model, num_layers, "trainable_layers")[:-num_layers], *embeddings):
        module.requires_grad_(False)


def top_layers(model: PreTrainedModel, num_layers: int) -> nn.Module:
    """A copy of the top layers and the final norm, to be called with their ``inputs_embeds``."""
    base: Any = model.base_model
    layers = _layers(model, num_layers, "value_layers")
    left_out = (*layers[:-num_layers], base.get_input_embeddings())
    top = copy.deepcopy(base, {id(module): nn.Identity() for module in left_out})
    top.layers = top.layers[-num_layers:]
    top.config.num_hidden_layers = num_layers
    if len(kinds := getattr(top.config, "layer_types", None) or ()) > num_layers:
        top.config.layer_types = kinds[-num_layers:]
    return top.requires_grad_(True)


@torch.no_grad()
def check_top_layers(model: PreTrainedModel, top: Any) -> None:
    """Raises UserError unless the copy ``top`` gives what the model's own top layers give."""
    base: Any = model.base_model
    ids = torch.arange(min(8, base.config.vocab_size), device=model.device)[None]
    with short_windows(base.config), short_windows(top.config):
        whole = base(input_ids=ids, use_cache=False, output_hidden_states=True)
        below = whole.hidden_states[-1 - len(top.layers)]
        try:
            copied = top(inputs_embeds=below, use_cache=False).last_hidden_state
        except torch.OutOfMemoryError:
            raise
        except Exception:  # layers that read more than what is below them raise anything
            raise _not_copied(model) from None
    if not torch.allclose(copied, whole.last_hidden_state, atol=1e-4):
        raise _not_copied(model)


def _computing(root: nn.Module, compute_dtype: torch.dtype) -> AbstractContextManager[Any]:
    """A context in which ``root`` computes in ``compute_dtype``, as shards do by themselves."""
    if is_sharded(root):
        return nullcontext()
    return autocast(next(root.parameters()).device, compute_dtype)


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
