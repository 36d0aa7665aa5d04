"""Where steps end, in characters and in tokens."""

import pytest
import torch

from reasonrl.grading.steps import closing_tokens, ends_step, step_starts, step_tokens
from reasonrl.grading.stops import decode
from reasonrl.sampling import SamplingParams, TransformersEngine
from reasonrl.types import Completion, Prompt
from tests.helpers.grading import STRICT
from tests.helpers.tokenizers import byte_level, ids_of


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
    assert STRICT.step_ends(text) == ends


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
    assert step_tokens(tokenizer, completion, STRICT) == last_tokens


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        ("", False),
        ("7", False),
        ("7\n", True),
        ("7\n8", True),
        ("7\n\n", True),
        ("\n", False),
        ("\n\n \t\n", False),
        ("\n7", False),
        ("\n7\n", True),
        (" 7 \n", True),
    ],
)
def test_a_step_has_ended_once_a_line_that_is_not_blank_has_its_newline(
    tokenizer, text: str, ended: bool
):
    assert ends_step(tokenizer, ids_of(tokenizer, text), "\n") is ended


def test_part_of_a_character_is_text():
    tokenizer = byte_level()
    assert not ends_step(tokenizer, ids_of(tokenizer, "é")[:1], "\n")
    assert ends_step(tokenizer, [*ids_of(tokenizer, "é")[:1], *ids_of(tokenizer, "\n")], "\n")


def completion_of(tokenizer, ids: list[int]) -> Completion:
    text = decode(tokenizer, ids)
    return Completion("p", 0, tuple(ids), (0.0,) * len(ids), "eos", text)


@pytest.mark.parametrize(
    ("text", "starts"),
    [
        # "3+4=7\n" is 6 tokens, "7*2=14\n" 7, and "####", " ", "1", "4" and EOS are left.
        ("3+4=7\n7*2=14\n#### 14<eos>", [(0, 0), (6, 1), (13, 2)]),
        ("7\n8\n9", [(0, 0), (2, 1), (4, 2)]),
        ("\n\n7\n8<eos>", [(0, 0), (4, 1)]),  # blank lines at the beginning end nothing
        ("7\n\n8<eos>", [(0, 0), (2, 1)]),  # a blank line is read after the next step's label
        ("7\n\n \n8\n9", [(0, 0), (2, 1), (7, 2)]),
        ("7\n8\n<eos>", [(0, 0), (2, 1), (4, 1)]),  # EOS alone counts to the last step
        ("7\n8\n", [(0, 0), (2, 1)]),
        ("7\n\n\n<eos>", [(0, 0), (2, 0)]),
        ("7+8<eos>", [(0, 0)]),
        ("7", [(0, 0)]),
        ("7\nQ: 1\n8<eos>", [(0, 0), (2, 0), (7, 0)]),  # after a question of its own: no step
        ("<eos>", []),
        (" \n\n<eos>", []),
        ("", []),
        ("Q: 1\n8<eos>", []),
    ],
)
def test_step_starts_of_the_tiny_tokenizer(tokenizer, text: str, starts: list[tuple[int, int]]):
    ids = ids_of(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert step_starts(tokenizer, completion_of(tokenizer, ids), STRICT) == starts


@pytest.mark.parametrize(
    ("text", "merges", "tokens", "starts"),
    [
        # The label comes after a token that holds a newline and more. The first 8 is read under
        # the first label; what is next has the last's: the newline of "8" is read, not written.
        ("7\n8\n9", (("7", "Ċ"), ("7Ċ", "8")), ["7\n8", "\n", "9"], [(0, 0), (1, 2)]),
        # One token that ends two steps closes one of step_tokens: "9" is number 1.
        ("7\n8\n9", (("7", "Ċ"), ("7Ċ", "8"), ("7Ċ8", "Ċ")), ["7\n8\n", "9"], [(0, 0), (1, 1)]),
        ("7\n\n8", (("Ċ", "Ċ"),), ["7", "\n\n", "8"], [(0, 0), (2, 1)]),
        ("7\n 8", (("Ċ", "Ġ"),), ["7", "\n ", "8"], [(0, 0), (2, 1)]),
        ("7\n8", (("Ċ", "8"),), ["7", "\n8"], [(0, 0)]),  # EOS is to come: (2, 1) below
        # é is Ã and ©, and the first half comes with the newline.
        ("7\né", (("Ċ", "Ã"),), ["7", "\n\ufffd", "\ufffd"], [(0, 0), (2, 1)]),
        ("é\n😀", (), ["\ufffd", "\ufffd", "\n", *["\ufffd"] * 4], [(0, 0), (3, 1)]),
    ],
)
def test_step_starts_where_tokens_hold_newlines_and_more(
    text: str, merges: tuple[tuple[str, str], ...], tokens: list[str], starts: list[tuple[int, int]]
):
    tokenizer = byte_level(*merges)
    ids = ids_of(tokenizer, text)
    assert [tokenizer.decode([i]) for i in ids] == tokens
    assert step_starts(tokenizer, completion_of(tokenizer, ids), STRICT) == starts


def test_what_follows_the_last_text_counts_to_the_last_step():
    tokenizer = byte_level(("Ċ", "8"))
    ids = [*ids_of(tokenizer, "7\n8"), tokenizer.eos_token_id]  # "7", "\n8", EOS
    assert step_starts(tokenizer, completion_of(tokenizer, ids), STRICT) == [(0, 0), (2, 1)]


MERGES = [("7", "Ċ"), ("Ċ", "8"), ("Ċ", "Ċ"), ("Ċ", "Ã"), ("Ċ", "Ġ"), ("7Ċ", "8"), ("7Ċ8", "Ċ")]
NEWLINES = ["\n", "7\n", "\n8", "\n\n", "\n ", "7\n8", "7\n8\n", "Q", ":", " ", "7", "é", "\u3000"]


def acted(tokenizer, make_model) -> list[tuple[Completion, list[int]]]:
    """Random completions, and before which of their tokens the engine put a label."""
    vocabulary = len(tokenizer)
    label = (vocabulary, vocabulary + 1)  # beyond what the tokenizer knows
    model = make_model(vocab_size=vocabulary + 2)
    model.generation_config.suppress_tokens = [*label]
    likelier = torch.zeros(vocabulary + 2)
    likelier[[i for text in NEWLINES for i in ids_of(tokenizer, text)]] = 4.0
    likelier[tokenizer.eos_token_id] = 3.0
    model.get_output_embeddings().register_forward_hook(lambda _module, _args, out: out + likelier)
    read: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _module, args: read.extend(args[0].flatten().tolist())
    )
    params = SamplingParams(1, 1.0, max_new_tokens=24, step_label=label, step_delimiter="\n")
    pairs = []
    for seed in range(30):
        read.clear()
        (completion,) = TransformersEngine(model, tokenizer).sample(
            [Prompt("p", (5, 6, 7))], params, seed=seed
        )
        labels = [i for i, token in enumerate(read[3:]) if token == label[0]]
        pairs.append((completion, [i - 2 * number for number, i in enumerate(labels)]))
    return pairs


@pytest.mark.parametrize("kind", ["tiny", "bytes", "merges"])
def test_steps_are_found_to_begin_where_the_engine_put_labels(tokenizer, make_model, kind: str):
    tokenizer = {"tiny": tokenizer, "bytes": byte_level(), "merges": byte_level(*MERGES)}[kind]
    pairs = acted(tokenizer, make_model)
    # A completion without a step has nothing to learn; acting, that is only known at its end.
    with_steps = [pair for pair in pairs if STRICT.step_ends(pair[0].text)]
    assert sum(len(places) for _, places in with_steps) > 50  # else what follows is idle
    for completion, places in with_steps:
        starts = step_starts(tokenizer, completion, STRICT)
        assert [start for start, _ in starts] == places
        numbers = [number for _, number in starts]
        steps = range(len(step_tokens(tokenizer, completion, STRICT)))
        assert numbers == sorted(numbers)
        assert numbers[0] == 0
        # Where newlines are tokens of their own, every step is given a label.
        assert {*numbers} == {*steps} if kind == "tiny" else {*numbers} <= {*steps}
    assert all(
        step_starts(tokenizer, c, STRICT) == [] for c, _ in pairs if not STRICT.step_ends(c.text)
    )
