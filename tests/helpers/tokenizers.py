"""Tokenizers whose tokens a test decides."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers import models as tokenizer_models
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from reasonrl.policy.policy import Policy, save_policy


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


def chat_tokenizer(
    template: str | None, specials: dict[str, int], eos: str, bos: str | None = None
) -> PreTrainedTokenizerFast:
    """One token a byte, special tokens with ids of their own, and a chat template.

    bos: is put before each text, as Llama's tokenizer does.
    """
    vocabulary = {token: i for i, token in enumerate(sorted(ByteLevel.alphabet()))} | specials
    backend = Tokenizer(tokenizer_models.BPE(vocabulary, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in specials])
    if bos is not None:
        backend.post_processor = TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, specials[bos])]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos)
    tokenizer.chat_template = template
    return tokenizer


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}"
    "{% endif %}{% endif %}"
)
QWEN = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
LLAMA_3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>"
    "\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
LLAMA_3 = {
    "<|begin_of_text|>": 128000,
    "<|end_of_text|>": 128001,
    "<|start_header_id|>": 128006,
    "<|end_header_id|>": 128007,
    "<|eom_id|>": 128008,
    "<|eot_id|>": 128009,
}


def qwen() -> PreTrainedTokenizerFast:
    """With the special tokens of Qwen2.5's files, and ChatML."""
    return chat_tokenizer(CHATML, QWEN, "<|im_end|>")


def llama_3(template: str | None = LLAMA_3_TEMPLATE) -> PreTrainedTokenizerFast:
    """With the special tokens of Llama-3's files."""
    return chat_tokenizer(template, LLAMA_3, "<|end_of_text|>", "<|begin_of_text|>")


def save_instruct_model(folder: Path) -> str:
    """Saves a model with random weights that chats, and whose files name another EOS."""
    specials = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    config = LlamaConfig(
        vocab_size=259,
        **sizes,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=256,
    )
    tokenizer = chat_tokenizer(CHATML, specials, "<|endoftext|>")
    save_policy(Policy(LlamaForCausalLM(config), tokenizer), folder)
    return str(folder)
