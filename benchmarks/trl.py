"""TRL beside us: its releases that are compared with, and a tiny model that both can read."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from benchmarks.sampler import cpu_name

# Of each algorithm the newest release that has it, as of when it was measured.
RELEASES = {"ppo": "1.12.0", "grpo": "1.16.0", "rloo": "1.16.0"}
VOCABULARY = 512
LAYERS = 4


def find_trl(folder: str | None, release: str) -> None:
    """Makes TRL importable, or ends the program and says how to install it."""
    if folder:
        sys.path.insert(0, folder)
    try:
        found = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != release:
        raise SystemExit(
            f"--trl={folder} must be a folder with TRL {release}; got {found}. "
            f"pip install --no-deps --target {folder or 'FOLDER'} trl=={release}"
        )
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    warnings.simplefilter("ignore")  # TRL's, of names that transformers has renamed
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def versions(release: str) -> dict[str, str]:
    """What is compared, and on what."""
    return {
        "trl": release,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": cpu_name(),
    }


def llama_config(**more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        **more,
    )


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """A word for each id of the vocabulary; a special token has the id after the last."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def text_of(token_ids: Sequence[int]) -> str:
    """What the tokenizer makes those tokens of."""
    return " ".join(f"w{token}" for token in token_ids)
