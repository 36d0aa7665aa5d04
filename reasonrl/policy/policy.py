"""Language models and their tokenizers: from a folder to memory, and back.

Weights are read as safetensors or GGUF, never unpickled, and no code that comes with a model runs.
"""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reasonrl.config.model import ShapeConfig
from reasonrl.util.atomic import atomic_folder
from reasonrl.util.errors import UserError, reason

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
UNCOUNTED = 0.01  # the share of parameters that ``ShapeConfig`` may leave out, such as biases
# What transformers raises for a folder that is no model, or a damaged one.
LOADING_ERRORS = (OSError, ValueError, RuntimeError, AttributeError, ImportError, SafetensorError)


@dataclass
class Policy:
    """A causal language model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer alone, to check prompts before a model is loaded.

    Raises UserError if there is none, or if it has no EOS token: completions are learnt with it,
    and without it each one goes on to ``max_new_tokens`` and counts as wrong.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise _not_a_model(path, error) from None
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.path={path} must have a tokenizer with an EOS token, which ends a completion; "
            'got none. Name one of its tokens in tokenizer_config.json: "eos_token": "…".'
        )
    return tokenizer


def config_of(path: str) -> Any:
    """A language model's config, which may be of any architecture.

    Of a model that reads images too, it is that of its language model. Raises UserError if there is
    none.
    """
    return _whole_config_of(path).get_text_config(decoder=True)


def _whole_config_of(path: str) -> Any:
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise _not_a_model(path, error) from None


def context_of(path: str) -> int:
    """A model's context length from its config alone. Raises UserError."""
    return _of_config(path, "max_position_embeddings")


def num_layers_of(path: str) -> int:
    """A model's number of layers from its config alone. Raises UserError."""
    return _of_config(path, "num_hidden_layers")


def shape_of(path: str) -> ShapeConfig | None:
    """A model's sizes from its config alone; None: it isn't a decoder of ``ShapeConfig``'s kind.

    Such as a mixture of experts, of which the sizes of a layer don't say how large it is. Raises
    UserError if there is no config.
    """
    config = config_of(path)
    sizes: dict[str, Any] = {
        f.name: getattr(config, f.name, f.default) for f in fields(ShapeConfig)
    }
    if MISSING in sizes.values():
        return None
    shape, number = ShapeConfig(**sizes), num_parameters_of(path)
    is_like_it = number is not None and abs(shape.num_parameters / number - 1) < UNCOUNTED
    return shape if is_like_it else None


def num_parameters_of(path: str) -> int | None:
    """A model's number of parameters from its config alone; None: transformers can't tell.

    Raises UserError if there is no config.
    """
    config = config_of(path)
    try:
        with torch.device("meta"):
            return int(AutoModelForCausalLM.from_config(config).num_parameters())
    except LOADING_ERRORS:
        return None


def check_num_layers(key: str, wanted: int, num_layers: int) -> None:
    """Raises UserError if a setting wants more layers than the model has."""
    if wanted > num_layers:
        raise UserError(
            f"algorithm.{key}={wanted} must be at most the model's number of layers; got "
            f"{num_layers}. Lower it."
        )


def _of_config(path: str, name: str) -> int:
    config = config_of(path)
    if getattr(config, name, None) is None:
        raise UserError(
            f"model.path={path} must say {name} in its config.json; got model_type="
            f"{config.model_type}, which has none. Take another model, such as Llama or Qwen."
        )
    return int(getattr(config, name))


def load_policy(path: str, dtype: str, device: torch.device) -> Policy:
    """A policy in evaluation mode, with weights of ``dtype`` (float32, bfloat16) on ``device``.

    Raises UserError if there is no model at ``path`` or its weights don't fit its config.
    """
    policy = load(path, DTYPES[dtype])
    policy.model.to(device)  # type: ignore[arg-type]  # the decorator's signature is lost
    if device.type == "cpu":
        for weights in (*policy.model.parameters(), *policy.model.buffers()):
            # It lay where the file has it, and some processors round otherwise at other places: a
            # policy from a folder would give other last bits than the same one still in memory.
            weights.data = weights.data.clone()
    return policy


def load(path: str, dtype: torch.dtype, **how: Any) -> Policy:
    alone = bool(how) or type(_whole_config_of(path)) in MODEL_FOR_CAUSAL_LM_MAPPING
    kind: Any = AutoModelForCausalLM if alone else AutoModelForImageTextToText
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **how)
        loaded: Any = kind.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=None if how else True,
            trust_remote_code=False,
            output_loading_info=True,
            **how,
        )
        model, info = loaded
        model = _language_model(model)
    except LOADING_ERRORS as error:
        if "ignore_mismatched_sizes" in str(error):  # a hint for programmers; says nothing else
            raise _other_weights(path, "some are of another shape") from None
        raise _not_a_model(path, error) from None
    if info["missing_keys"]:
        raise _other_weights(path, f"{min(info['missing_keys'])} is missing")
    model.eval()
    return Policy(model, tokenizer)


def _language_model(model: Any) -> PreTrainedModel:
    """The language model of one that reads images or sounds too: the same weights, no others."""
    if model.config.get_text_config(decoder=True) is model.config:
        whole: PreTrainedModel = model
        return whole
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    with torch.device("meta"):
        alone: Any = AutoModelForCausalLM.from_config(decoder.config, dtype=model.dtype)
    setattr(alone, alone.base_model_prefix, decoder)
    alone.set_output_embeddings(head)
    alone.config, alone.generation_config = decoder.config, model.generation_config
    alone.config.tie_word_embeddings = head.weight is decoder.get_input_embeddings().weight
    language_model: PreTrainedModel = alone
    return language_model


def _other_weights(path: str, what: str) -> UserError:
    return UserError(
        f"model.path={path} must hold the weights of its config.json; {what}. "
        "Pass the folder of a complete model."
    )


def autocast(device: torch.device, compute_dtype: torch.dtype) -> torch.autocast:
    """A context in which matrix products of float32 weights are computed in ``compute_dtype``."""
    return torch.autocast(device.type, compute_dtype, enabled=compute_dtype != torch.float32)


def _not_a_model(path: str, error: Exception) -> UserError:
    files = [file for file in Path(path).glob("*") if not os.access(file, os.R_OK)]
    if files:
        return UserError(
            f"model.path={path} must be readable; got {files[0].name}, which isn't for this user. "
            "Ask its owner for the right to read it."
        )
    return UserError(
        f"model.path={path} must be a folder or hub id of a causal language model with "
        f"safetensors; got {reason(error)}. Pass another model.path."
    )


def save_policy(policy: Policy, folder: Path, dtype: str = "float32") -> None:
    """Writes a folder that transformers loads by itself (safetensors), whole or not at all.

    Converts the policy in place to ``dtype``, in which it will be used.
    """
    policy.model.to(DTYPES[dtype])  # type: ignore[arg-type]
    with atomic_folder(folder) as target:
        policy.model.save_pretrained(target)
        policy.tokenizer.save_pretrained(target)
