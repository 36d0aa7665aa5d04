"""The tokens that end a completion, of models whose files don't agree on them."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from reasonrl.policy.ends import end_tokens, name_end_tokens
from reasonrl.policy.policy import Policy, save_policy
from reasonrl.problems.prompts import Chat
from tests.helpers.tokenizers import QWEN, chat_tokenizer, llama_3, qwen

CHAT = Chat("{question}", None, None)


@pytest.mark.parametrize(
    ("tokenizer", "configured", "chat", "ends"),
    [
        # Llama-3, as its files were at first, and as they are.
        (llama_3(), 128001, [], (128001,)),
        (llama_3(), 128001, [128009], (128001, 128009)),
        (llama_3(), [128001, 128008, 128009], [128009], (128001, 128008, 128009)),
        # Qwen2.5 (base): the config has one, the tokenizer the other.
        (qwen(), 151643, [], (151643, 151645)),
        (qwen(), [151645, 151643], [151645], (151645, 151643)),
        (chat_tokenizer(None, QWEN, "<|endoftext|>"), None, [], (151643,)),
    ],
)
def test_the_union_of_what_the_files_say(
    tokenizer: PreTrainedTokenizerFast,
    configured: int | list[int] | None,
    chat: list[int],
    ends: tuple[int, ...],
) -> None:
    assert end_tokens(tokenizer, GenerationConfig(eos_token_id=configured), *chat) == ends
    assert not chat or [CHAT.end_token(tokenizer)] == chat


def test_a_saved_policy_names_them_all(tmp_path: Path) -> None:
    """So that ``generate`` of transformers stops at each."""
    specials = {"<|begin_of_text|>": 256, "<|end_of_text|>": 257, "<|eot_id|>": 258}
    tokenizer = chat_tokenizer(None, specials, "<|end_of_text|>")
    config = LlamaConfig(
        vocab_size=259, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    save_policy(name_end_tokens(Policy(LlamaForCausalLM(config), tokenizer), 258), tmp_path / "p")
    assert GenerationConfig.from_pretrained(tmp_path / "p").eos_token_id == [257, 258]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "p")
    with torch.no_grad():
        loaded.model.norm.weight.zero_()
        loaded.lm_head = torch.nn.Linear(8, 259)
        loaded.lm_head.bias.zero_()[258] = 1.0
    out = loaded.generate(torch.tensor([[5, 6]]), max_new_tokens=9, do_sample=False, pad_token_id=0)
    assert out.tolist() == [[5, 6, 258]]


def test_one_token_stays_a_number(tokenizer: PreTrainedTokenizerFast, make_model) -> None:
    policy = Policy(make_model(), tokenizer)
    assert name_end_tokens(policy, 0).model.generation_config.eos_token_id == 0
