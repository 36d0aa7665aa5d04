"""Chat prompts: their exact ids, what ends a turn, and references as the template writes them."""

from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from reasonrl.problems.prompts import Chat, build_prompts, form_from, plain_values
from reasonrl.types import Problem
from reasonrl.util.errors import UserError
from tests.helpers.tokenizers import CHATML, QWEN, chat_tokenizer, ids_of, llama_3, qwen

FORM = Chat("{question} End.", None, None)
ONE = Problem("one", "1+2?", "3", "3 #### 3")
TWO = Problem("two", "2+2?", "4", "4 #### 4")


def rendered(
    form: Chat, tokenizer: PreTrainedTokenizerFast, *exemplars: Problem
) -> tuple[str, str]:
    """The texts of ONE's prompt and of its reference completion, special tokens too."""
    (prompt,) = build_prompts([ONE], tokenizer, form, exemplars)
    (reference,) = form.reference_ids([ONE], tokenizer)
    return tokenizer.decode(prompt.token_ids), tokenizer.decode(reference)


def test_llama_3_to_the_token() -> None:
    tokenizer = llama_3()
    (prompt,) = build_prompts([ONE], tokenizer, FORM)
    assert tokenizer("a")["input_ids"][0] == 128000  # it adds BOS, and so does its template
    assert prompt.token_ids == (
        128000, 128006, *ids_of(tokenizer, "user"), 128007, *ids_of(tokenizer, "\n\n1+2? End."),
        128009, 128006, *ids_of(tokenizer, "assistant"), 128007, *ids_of(tokenizer, "\n\n"),
    )  # fmt: skip
    assert FORM.end_token(tokenizer) == 128009
    (reference,) = FORM.reference_ids([ONE], tokenizer)
    assert reference == (*ids_of(tokenizer, "3 #### 3"), 128009)


def test_prompt_and_reference_are_the_beginning_of_what_the_template_writes() -> None:
    tokenizer = qwen()
    prompt, reference = rendered(FORM, tokenizer)
    assert prompt == "<|im_start|>user\n1+2? End.<|im_end|>\n<|im_start|>assistant\n"
    assert reference == "3 #### 3<|im_end|>"
    turns = [
        {"role": "user", "content": "1+2? End."},
        {"role": "assistant", "content": "3 #### 3"},
    ]
    whole = tokenizer.apply_chat_template(turns, return_dict=False)
    (asked,) = FORM.prompt_ids([ONE], tokenizer)
    (answered,) = FORM.reference_ids([ONE], tokenizer)
    assert [*asked, *answered] == whole[: len(asked) + len(answered)]
    assert tokenizer.decode(whole[len(asked) + len(answered) :]) == "\n"


def test_a_system_message_and_exemplars_are_earlier_turns() -> None:
    prompt, reference = rendered(replace(FORM, system="Be brief."), qwen(), TWO)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n2+2? End.<|im_end|>\n<|im_start|>assistant\n4 #### 4<|im_end|>\n"
        "<|im_start|>user\n1+2? End.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert reference == "3 #### 3<|im_end|>"


def test_arguments_reach_the_template() -> None:
    """Under this one an answer isn't written behind the prompt that has no thoughts in it."""
    form = replace(FORM, template_args={"enable_thinking": False})
    prompt, reference = rendered(form, qwen())
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert reference == "3 #### 3<|im_end|>"
    assert not form.renders_answers(ONE, qwen())
    assert FORM.renders_answers(ONE, qwen())


def test_what_the_template_writes_before_and_behind_an_answer_is_learnt() -> None:
    template = (
        "{% for m in messages %}{{ '[' + m.role + ']' }}"
        "{{ '<think></think>' + m.content + ' <|im_end|>' if m.role == 'assistant' "
        "else m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    tokenizer = chat_tokenizer(template, QWEN, "<|endoftext|>")
    assert rendered(FORM, tokenizer) == (
        "[user]1+2? End.[assistant]",
        "<think></think>3 #### 3 <|im_end|>",
    )


def test_eos_ends_a_turn_that_the_template_does_not_end() -> None:
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    tokenizer = chat_tokenizer(template, QWEN, "<|endoftext|>")
    assert FORM.end_token(tokenizer) == 151643
    assert FORM.reference_ids([ONE], tokenizer)[0][-1] == 151643


@pytest.mark.parametrize(
    ("template", "form", "said"),
    [
        (None, FORM, r"a chat template; got .*, which has none\. Pass prompt=plain\."),
        (
            "{{ raise_exception('System role not supported') }}",
            FORM,
            r"it fails with .*System role not supported.*prompt\.system",
        ),
        (
            CHATML,
            replace(FORM, template_args={"enable_thought": False}),
            r"prompt\.template_args must hold .* got enable_thought, which it doesn't read",
        ),
    ],
)
def test_what_a_template_cannot_do_is_refused(template: str | None, form: Chat, said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_prompts([ONE], chat_tokenizer(template, QWEN, "<|im_end|>"), form)


def test_a_reward_model_keeps_its_form() -> None:
    form = Chat("{question}", "Be brief.", {"enable_thinking": False})
    values = plain_values(form)
    assert values == {
        "name": "chat",
        "template": "{question}",
        "system": "Be brief.",
        "template_args": {"enable_thinking": False},
    }
    assert form_from(values) == form
