"""Where steps end, in characters and in tokens."""

import pytest
from tokenizers import Tokenizer, decoders
from tokenizers import models as tokenizer_models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from reasonrl.rewards.steps import closing_tokens, step_ends, step_tokens
from reasonrl.types import Completion


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


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("3+4=7\n7*2=14\n#### 14", ["3+4=7\n", "7*2=14\n", "#### 14"]),
        ("one line", ["one line"]),
        ("a newline at the end\n", ["a newline at the end\n"]),
        ("blank lines\n\n \t\nbelong to it\n\n", ["blank lines\n\n \t\n", "belong to it\n\n"]),
        ("\n\nblank at the start\nnext", ["\n\nblank at the start\n", "next"]),
        ("an\n  indented line", ["an\n", "  indented line"]),
        ("carriage\r\nreturns", ["carriage\r\n", "returns"]),
        ("3+4=7\nQ: next?\n1+1=2", ["3+4=7\n"]),
        ("3+4=7\n\n Q: next?\n1+1=2", ["3+4=7\n\n"]),
        ("So, Q: how many?\n7", ["So, Q: how many?\n", "7"]),
        ("Q: next?", []),
        (" \n\t\n", []),
        ("", []),
    ],
)
def test_the_steps_of(text: str, steps: list[str]):
    ends = [sum(map(len, steps[: i + 1])) for i in range(len(steps))]
    assert step_ends(text) == ends


def test_closing_tokens_of_the_tiny_tokenizer(tokenizer):
    ids = ids_of(tokenizer, "3+4=7\n7*2=14\n")
    tokens = [tokenizer.decode([i]) for i in ids]
    assert tokens == ["3", "+", "4", "=", "7", "\n", "7", "*", "2", "=", "1", "4", "\n"]
    # "3" is one character, "3+4=7" five, with its newline six; the last token closes all 13.
    assert closing_tokens(tokenizer, ids, [1, 5, 6, 12, 13]) == [0, 4, 5, 11, 12]


def test_a_token_that_goes_past_an_offset_closes_it():
    tokenizer = byte_level(("7", "Ċ"))  # Ċ is a newline
    ids = ids_of(tokenizer, "3+4=7\n8")
    assert [tokenizer.decode([i]) for i in ids] == ["3", "+", "4", "=", "7\n", "8"]
    assert closing_tokens(tokenizer, ids, [5, 6, 7]) == [4, 4, 5]


def test_part_of_a_character_closes_nothing():
    tokenizer = byte_level()
    ids = ids_of(tokenizer, "é😀=7")  # 2, 4, 1 and 1 bytes
    assert len(ids) == 8
    assert closing_tokens(tokenizer, ids, [1, 2, 3, 4]) == [1, 5, 6, 7]
    # Cut within the emoji, that decodes to one character: the last token closes it.
    assert closing_tokens(tokenizer, ids[:4], [1, 2]) == [1, 3]


def test_the_sampled_ids_are_never_encoded_again():
    tokenizer = byte_level(("7", "Ċ"))
    ids = [ids_of(tokenizer, c)[0] for c in "3+4=7\n8"]  # encoding would merge 7 and newline
    assert closing_tokens(tokenizer, ids, [5, 6, 7]) == [4, 5, 6]


def test_special_tokens_have_no_characters():
    tokenizer = byte_level()
    eos = tokenizer.eos_token_id
    ids = [eos, *ids_of(tokenizer, "ab"), eos]
    assert closing_tokens(tokenizer, ids, [1, 2]) == [1, 2]
    assert closing_tokens(tokenizer, [], []) == []


@pytest.mark.parametrize(
    ("text", "merges", "last_tokens"),
    [
        ("3+4=7\n#### 7", (), [5, 12]),  # 6 characters, 6 more and EOS
        ("3+4=7\n#### 7\nQ: 1", (), [5, 12]),  # the newline before Q: is number 12
        ("7\n8", (("7", "Ċ"),), [0, 2]),  # "7\n", "8", EOS
        ("7\n8\n9", (("7", "Ċ"), ("7Ċ", "8"), ("7Ċ8", "Ċ")), [0, 2]),  # "7\n8\n", "9", EOS
        ("7", (), [1]),
        ("", (), []),
    ],
)
def test_step_tokens(text: str, merges: tuple[tuple[str, str], ...], last_tokens: list[int]):
    tokenizer = byte_level(*merges)
    ids = (*ids_of(tokenizer, text), tokenizer.eos_token_id)
    completion = Completion("p", 0, ids, (0.0,) * len(ids), "eos", text)
    assert step_tokens(tokenizer, completion) == last_tokens
