"""A GGUF file to a folder that transformers loads by itself."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from reasonrl.policy.policy import load, save_policy


def convert(file: Path, folder: Path) -> None:
    """Writes the model's folder, whole or not at all, with weights in float32."""
    policy = load(str(file.parent), torch.float32, gguf_file=file.name)
    policy.model = _plain(policy.model)
    save_policy(policy, folder)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights without the memory of having been quantised, which could not be saved."""
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    return plain
