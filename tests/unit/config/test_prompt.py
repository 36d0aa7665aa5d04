"""How a model is asked: what the form sets, what counts in an identity, and what is refused."""

from pathlib import Path

import pytest

from reasonrl.config.identity import decisive, identity
from reasonrl.config.schema import TrainConfig
from reasonrl.problems.prompts import Chat, Plain, form_of
from reasonrl.util.errors import UserError
from tests.unit.config.test_config import train


def name(config: TrainConfig) -> str:
    return identity(decisive(config))


def test_a_chat_has_no_stop_strings_and_no_exemplars_unless_they_are_asked_for() -> None:
    plain, chat = train().dataset, train("prompt=chat").dataset
    assert (plain.stop, plain.num_exemplars) == (["\n\n", "\nQ:"], 2)
    assert (chat.stop, chat.num_exemplars) == ([], 0)
    asked = train("prompt=chat", "dataset.num_exemplars=3", "dataset.stop=[X]").dataset
    assert (asked.stop, asked.num_exemplars) == (["X"], 3)


def test_the_form_has_the_template_with_the_grader_s_instruction() -> None:
    assert form_of(train()) == Plain("Q: {question}\nA:")
    told = "{question}\n\nEnd with a line of #### and the number."
    assert form_of(train("prompt=chat")) == Chat(told, None, None)
    data = ["dataset=jsonl", "dataset.path=x", "init=pretrained", "dataset.grader=boxed"]
    args = ["prompt=chat", "prompt.system=Hi", "prompt.template_args={enable_thinking: false}"]
    assert form_of(train(*data, *args)) == Chat(
        "{question}\n\nPut the final answer in \\boxed{}.", "Hi", {"enable_thinking": False}
    )


def test_what_a_chat_is_counts() -> None:
    thinking = "prompt.template_args={enable_thinking: true}"
    chats = [["prompt=chat"], ["prompt=chat", "prompt.system=Hi"], ["prompt=chat", thinking]]
    assert len({name(train()), *(name(train(*chat)) for chat in chats)}) == 4
    assert "prompt" not in decisive(train())  # nor in older runs'


def test_a_template_in_a_file_is_its_text(tmp_path: Path) -> None:
    file = tmp_path / "template.txt"
    file.write_text("Problem: {question}\nSolution:\n", encoding="utf-8")
    config = train(f"dataset.prompt=file:{file}")
    assert config.dataset.prompt == "Problem: {question}\nSolution:"
    assert name(config) == name(train('dataset.prompt="Problem: {question}\nSolution:"'))
    file.write_bytes(b"\xff")
    for path, why in ((file, "it isn't UTF-8"), (tmp_path / "no", "No such file or directory")):
        with pytest.raises(UserError, match=rf"dataset\.prompt=file:{path} must .*{why}\. Check"):
            train(f"dataset.prompt=file:{path}")


def test_the_run_s_own_variables_are_refused() -> None:
    with pytest.raises(UserError, match="got messages, which the run sets"):
        train("prompt=chat", "prompt.template_args={messages: []}")
