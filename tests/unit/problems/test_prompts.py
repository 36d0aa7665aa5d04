"""Prompts: their literal text, and that what a policy can't read is refused."""

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from reasonrl.problems.prompts import (
    Plain,
    build_prompts,
    check_lengths,
    label_ids,
    solution_text,
)
from reasonrl.types import Problem, Prompt
from reasonrl.util.errors import UserError

TEMPLATE = Plain("Q: {question}\nA:")
CAT = Problem("cat", "a cat?", "3", "1+2=3\n#### 3")
DOG = Problem("dog", "a dog?", "4", "#### 4")
FOUR = Problem("four", "4?", "4", "4")

# One token a character, as an id known by hand: <eos> 0, <unk> 1, <bos> 2, and from 3 on these.
CHARACTERS = "QA:?+=# \nacdgot1234"


def character_tokenizer(
    *, unk: str | None = "<unk>", bos: bool = False, eos: bool = False
) -> PreTrainedTokenizerFast:
    vocabulary = {t: i for i, t in enumerate(["<eos>", "<unk>", "<bos>", *CHARACTERS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=unk or "<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    if bos or eos:
        single = "<bos> " * bos + "$A" + " <eos>" * eos
        tokenizer.post_processor = TemplateProcessing(
            single=single, pair=f"{single} $B", special_tokens=[("<bos>", 2), ("<eos>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token=unk,
        clean_up_tokenization_spaces=False,
    )


def read(prompt: Prompt, tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode(prompt.token_ids)


def test_zero_shot():
    tokenizer = character_tokenizer()
    prompts = build_prompts([CAT, DOG], tokenizer, TEMPLATE)
    assert [p.problem_id for p in prompts] == ["cat", "dog"]
    assert [read(p, tokenizer) for p in prompts] == ["Q: a cat?\nA:", "Q: a dog?\nA:"]
    # Q 3, A 4, ':' 5, '?' 6, ' ' 10, '\n' 11, a 12, c 13, t 17
    assert prompts[0].token_ids == (3, 5, 10, 12, 10, 13, 12, 17, 6, 11, 4, 5)


def test_few_shot():
    tokenizer = character_tokenizer()
    exemplars = [Problem("one", "a toad?", "2", "1+1=2\n#### 2"), DOG]
    (prompt,) = build_prompts([CAT], tokenizer, TEMPLATE, exemplars)
    assert read(prompt, tokenizer) == (
        "Q: a toad?\nA: 1+1=2\n#### 2\n\nQ: a dog?\nA: #### 4\n\nQ: a cat?\nA:"
    )


def test_a_brace_in_a_question_is_text():
    assert solution_text(CAT) == " 1+2=3\n#### 3"
    tokenizer = character_tokenizer(unk=None)
    problem = Problem("odd", "{question}{0}", "1", "#### 1")
    (prompt,) = build_prompts([problem], tokenizer, Plain("{question}:"))
    assert len(prompt.token_ids) == len("{question}{0}:")


def test_an_exemplar_that_is_asked_is_refused():
    copy = Problem("another-id", CAT.question, "3", "#### 3")
    with pytest.raises(UserError, match=r"dataset\.num_exemplars=2 must leave out .* another-id"):
        build_prompts([CAT], character_tokenizer(), TEMPLATE, [DOG, copy])


def test_a_word_the_tokenizer_lacks_is_refused():
    cow = Problem("cow", "a cow?", "1", "#### 1")  # no w
    with pytest.raises(
        UserError, match="must have a tokenizer that knows the dataset's words; got cow"
    ):
        build_prompts([CAT, cow], character_tokenizer(), TEMPLATE)


def test_a_tokenizer_whose_unknown_token_is_eos_is_believed():
    """Byte-level tokenizers know every text, and call their unknown token like their EOS."""
    tokenizer = character_tokenizer(unk="<eos>")
    cow = Problem("cow", "a cow?", "1", "#### 1")
    (prompt,) = build_prompts([cow], tokenizer, TEMPLATE)
    assert tokenizer.eos_token_id in prompt.token_ids


def test_bos_where_the_tokenizer_adds_it():
    plain = build_prompts([CAT], character_tokenizer(), TEMPLATE)
    with_bos = build_prompts([CAT], character_tokenizer(bos=True), TEMPLATE)
    assert with_bos[0].token_ids == (2, *plain[0].token_ids)
    # A completion goes on where the prompt ended: no second BOS.
    assert TEMPLATE.reference_ids([FOUR], character_tokenizer(bos=True)) == [(10, 21, 0)]


@pytest.mark.parametrize("bos", [False, True])
def test_no_eos_after_a_prompt_whatever_the_tokenizer_adds(bos: bool):
    """As fine-tuning recipes save tokenizers: the policy would go on after its end of text."""
    plain = build_prompts([CAT, DOG], character_tokenizer(bos=bos), TEMPLATE)
    assert build_prompts([CAT, DOG], character_tokenizer(bos=bos, eos=True), TEMPLATE) == plain
    assert TEMPLATE.reference_ids([FOUR], character_tokenizer(bos=bos, eos=True)) == [(10, 21, 0)]


def test_an_eos_that_the_template_writes_itself_stays():
    tokenizer = character_tokenizer(eos=True)
    (prompt,) = build_prompts([CAT], tokenizer, Plain("Q: {question}<eos>"))
    assert prompt.token_ids[-1] == tokenizer.eos_token_id


def test_completions_end_in_eos():
    # ' ' 10, '#' 9, '\n' 11, 1 18, 2 19, 3 20, 4 21, + 7, = 8, <eos> 0
    assert TEMPLATE.reference_ids([CAT, DOG], character_tokenizer()) == [
        (10, 18, 7, 19, 8, 20, 11, 9, 9, 9, 9, 10, 20, 0),
        (10, 9, 9, 9, 9, 10, 21, 0),
    ]


def test_prompt_and_completion_are_tokenized_apart():
    """A tokenizer that would merge ": 4" into one token must not be given the chance."""
    vocabulary = {"<eos>": 0, "<unk>": 1, "A": 2, ":": 3, " 4": 4, ": 4": 5}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("A", behavior="isolated")
    merging = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>"
    )
    assert merging("A: 4")["input_ids"] == [2, 5]
    (prompt,) = build_prompts([Problem("a", "A", "4", "4")], merging, Plain("{question}:"))
    assert prompt.token_ids == (2, 3)
    assert TEMPLATE.reference_ids([FOUR], merging) == [(4, 0)]


def test_what_does_not_fit_in_the_context_is_refused():
    short, long = Prompt("short", (1,) * 5), Prompt("long", (1,) * 20)
    check_lengths([short, long], max_new_tokens=12, context=32)  # 20 + 12 = 32: fits
    with pytest.raises(
        UserError,
        match=r"dataset\.max_new_tokens=13 must fit after the prompt; got 20 prompt tokens for "
        r"long and a context of 32\. Lower dataset\.max_new_tokens or dataset\.num_exemplars",
    ):
        check_lengths([short, long], max_new_tokens=13, context=32)


def test_labels_as_text(tokenizer):
    # [ 31, ] 32, . 15, and the digits 0 to 9 are 3 to 12
    assert list(label_ids(["[0.7]", "[0.0]", "[1.0]"], tokenizer).items()) == [
        ("[0.7]", (31, 3, 15, 10, 32)),
        ("[0.0]", (31, 3, 15, 3, 32)),
        ("[1.0]", (31, 4, 15, 3, 32)),
    ]
    assert label_ids(["[0.7]\n"], tokenizer) == {"[0.7]\n": (31, 3, 15, 10, 32, 14)}


def test_labels_as_text_have_no_bos():
    # c 13, o 16, d 14, g 15
    assert label_ids(["cod", "dog"], character_tokenizer(bos=True)) == {
        "cod": (13, 16, 14),
        "dog": (14, 16, 15),
    }


def test_a_label_the_tokenizer_lacks_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"must have a tokenizer .*; got the label \[GOOD\], which"):
        label_ids(["[0.7]", "[GOOD]"], tokenizer)
