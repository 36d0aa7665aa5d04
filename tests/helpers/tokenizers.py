"""Tokenizers whose tokens a test decides."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders
from tokenizers import models as tokenizer_models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast


def byte_level(*merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """One token a byte, but for the merges."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = ["[eos]", *alphabet, *("".join(merge) for merge in merges)]
    backend = Tokenizer(
        tokenizer_models.BPE({token: i for i, token in enumerate(tokens)}, list(merges))
    )
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[eos]")


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
