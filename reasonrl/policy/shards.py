"""Models whose weights lie in shards, a share of each parameter in every process of a run.

Weights are sharded as ZeRO's third stage does (Rajbhandari et al. 2020, arXiv 1910.02054), by
torch's ``fully_shard``. What trains is held in float32. A layer is gathered in the dtype that it
computes in, when it is read, and the gradients are reduced in float32.

    root module: policy, perhaps value function or reward head
      ├ each decoder layer      a group that is gathered by itself, one or two at a time
      ├ each head of the root   a group of its own, which computes in float32
      └ all the rest            the root's group: embeddings, norms, the language modelling head

The layers of a model below 10⁹ parameters belong to the root's group: gathered whole it takes
little memory, and one exchange takes less time than one for each layer.

Everything goes through the root's ``forward``: a layer that is read from outside of it would become
a root itself.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from reasonrl.config.model import LARGE
from reasonrl.runs.process import Process


def shard(module: nn.Module, process: Process, compute_dtype: torch.dtype) -> None:
    """Gives each process its share of the module's weights, in place, together.

    The main process holds the module whole on the CPU, the others the same structure on the meta
    device. Afterwards every parameter is a DTensor on the process's device: in float32 if it
    trains, else in ``compute_dtype``. Ties stay ties, and buffers are whole in every process.
    """
    assert process.mesh is not None
    whole = module.state_dict()
    buffers = process.broadcast(
        {name: b.cpu() for name, b in module.named_buffers()} if process.is_main else {}
    )
    module.to("meta")
    _tie(module)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(
            torch.float32 if parameter.requires_grad else compute_dtype
        )
    divide(module, process.mesh, compute_dtype)
    module.to_empty(device=process.mesh.device_type)
    _tie(module)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(module, whole, options=options)
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])


def divide(module: nn.Module, mesh: DeviceMesh, compute_dtype: torch.dtype) -> None:
    """Makes the module's parameters DTensors, in the groups in which they are gathered."""
    how: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True}
    precision = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    if max(model.num_parameters() for model in _models(module)) >= LARGE:
        for layer in decoder_layers(module):
            fully_shard(layer, **how, mp_policy=precision)
    for head in _heads(module):
        fully_shard(head, **how)
    fully_shard(module, **how, mp_policy=precision)
    # Heads return views, but nothing writes to them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")


def is_sharded(module: nn.Module) -> bool:
    """Whether ``shard`` has been here: then weights are cast to the compute dtype as they are read.

    What reads them needs no autocast.
    """
    return isinstance(module, FSDPModule)


def check_sharded(module: nn.Module) -> None:
    """Raises RuntimeError if a parameter of a sharded module is whole at this moment.

    It would be an object of its own, and an optimizer that is made of it would change nothing.
    """
    whole = [name for name, p in module.named_parameters() if not isinstance(p, DTensor)]
    if whole:
        raise RuntimeError(f"{len(whole)} parameters aren't in shards, {whole[0]} among them")


def decoder_layers(module: nn.Module) -> list[nn.Module]:
    """The decoder layers of all language models that a module holds."""
    kinds = {kind for model in _models(module) for kind in model._no_split_modules or ()}
    # Those of a sharded module are of classes that torch has derived.
    return [part for part in module.modules() if kinds & {c.__name__ for c in type(part).__mro__}]


def structure(
    config: PreTrainedConfig, generation_config: GenerationConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """A model on the meta device: all of it but its weights. It is in evaluation mode."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=dtype
        )
    model.generation_config = copy.deepcopy(generation_config)
    return model.eval()


def empty_copy(
    policy: PreTrainedModel, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """A whole model like a policy without its adapters, for ``refresh`` to fill."""
    model = structure(policy.config, policy.generation_config, dtype)
    model.to_empty(device=device)
    _tie(model)
    return model


@torch.no_grad()
def refresh(copy: nn.Module, sharded: nn.Module) -> None:
    """Copies a sharded module's weights and buffers into a whole one, together.

    Weights are gathered one at a time, in the dtype of the copy. Adapters are merged, in float32.

    copy: of a policy, a model as ``empty_copy`` makes it.
    sharded: a sharded module or a part of one.
    """
    for name, target in copy.named_parameters():
        target.copy_(_gathered(sharded, name, target.dtype))
    for name, buffer in copy.named_buffers():
        buffer.copy_(sharded.get_buffer(name))


def whole_policy(
    sharded: PreTrainedModel, dtype: torch.dtype, process: Process
) -> PreTrainedModel | None:
    """The sharded policy on the main process's CPU, adapters merged; None elsewhere. Together."""
    model = empty_copy(sharded, dtype, torch.device("cpu" if process.is_main else "meta"))
    refresh(model, sharded)
    return model if process.is_main else None


def _gathered(sharded: nn.Module, name: str, dtype: torch.dtype) -> Tensor:
    """A weight of the policy as it would be without adapters, which are merged into it."""
    path, _, last = name.rpartition(".")
    module: Any = sharded.get_submodule(path)
    adapted = []  # each around the next, where several weights of a module are adapted
    while hasattr(module, "base_layer"):
        if getattr(module, "parameter_name", "weight") == last:
            adapted.append(module)
        module = module.base_layer
    if not adapted:
        return _full(getattr(module, last).to(dtype))
    weight = _full(getattr(module, last))
    for layer in adapted:
        for adapter in layer.active_adapters:
            weight = weight.float() + _change(layer, adapter)
    return weight.to(dtype)


def _change(layer: Any, adapter: str) -> Tensor:
    """What an adapter adds to the weight that it is on."""
    down, up = _full(layer.lora_A[adapter].weight), _full(layer.lora_B[adapter].weight)
    experts = getattr(layer, "num_experts", 1)  # whose matrices are one weight
    if experts == 1:
        change = up @ down
    else:
        down, up = down.unflatten(0, (experts, -1)), up.unflatten(1, (-1, experts))
        swapped = layer._did_swap_in_out_features
        change = torch.einsum(f"ore,eri->{'eoi' if swapped else 'eio'}", up, down)
    return change * layer.scaling[adapter]


def _full(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor), "a part of the policy isn't in shards at this moment"
    return tensor.full_tensor()


def _models(module: nn.Module) -> list[PreTrainedModel]:
    return [part for part in module.modules() if isinstance(part, PreTrainedModel)]


def _tie(module: nn.Module) -> None:
    """Ties weights again, which a move from or to the meta device makes parameters of their own."""
    for model in _models(module):
        model.tie_weights()


def _heads(module: nn.Module) -> list[nn.Module]:
    """What a root holds beside language models: it reads their states in float32."""
    if isinstance(module, PreTrainedModel):
        return []
    return [child for child in module.children() if not _models(child)]
