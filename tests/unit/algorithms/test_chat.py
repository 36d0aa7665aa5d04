"""A job that chats: what is learnt is what is sampled, to the token."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reasonrl.algorithms.rcrl import Steps, make_examples
from reasonrl.config.schema import TrainConfig
from reasonrl.job import Job
from reasonrl.learning.supervised import with_end
from reasonrl.pipeline.planner import plan
from reasonrl.util.errors import UserError
from tests.helpers.jobs import TRAIN, job_of, right, sampled
from tests.helpers.tokenizers import ids_of, save_instruct_model

EOS, TURN = 256, 258


@pytest.fixture
def job(tmp_path: Path, configure: Callable[..., TrainConfig]):
    config = configure("prompt=chat", "algorithm=rcrl", "algorithm.label_tokens=text")
    model = save_instruct_model(tmp_path / "instruct")
    with job_of(config, model, tmp_path / "run") as job:
        yield job


def test_a_reference_ends_its_turn(job: Job) -> None:
    example = job.references()["t0"]
    assert job.tokenizer.decode(list(example.prompt_ids)) == (
        f"<|im_start|>user\n{TRAIN[0].question}\n\nEnd with a line of #### and the number."
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert example.completion_ids == (*ids_of(job.tokenizer, TRAIN[0].solution), TURN)


def test_its_completions_end_with_their_turn(job: Job) -> None:
    assert job.params(4, 1.0).end_tokens == (TURN,)
    assert job.learner(job.init).model.generation_config.eos_token_id == [EOS, TURN]
    (stopped,) = sampled(job.tokenizer, TRAIN[0], ["7"], "stop")
    assert with_end(stopped.completion, job.end_token) == (*ids_of(job.tokenizer, "7"), TURN)


def test_labels_and_steps_follow_the_prompt(job: Job) -> None:
    (rollout,) = sampled(job.tokenizer, TRAIN[0], [right(TRAIN[0]).strip()], "stop")
    last = np.array([0, 0, 0]), np.arange(3), np.ones(3), np.array([0, 1, 1]), np.full(3, True)
    labels = [tuple(ids_of(job.tokenizer, text)) for text in ("[BAD]", "[GOOD]")]
    (example,) = make_examples(job, [rollout], Steps(*last), labels)
    assert job.tokenizer.decode(list(example.prompt_ids)).endswith("<|im_start|>assistant\n")
    assert job.tokenizer.decode(list(example.completion_ids)) == (
        "[BAD]2+3=5\n[GOOD]5*4=20\n[GOOD]#### 20<|im_end|>"
    )


def test_a_model_without_a_chat_template_is_refused_in_the_plan(
    configure: Callable[..., TrainConfig], random_policy: str
) -> None:
    config = configure("prompt=chat", "init=pretrained", f"model.path={random_policy}")
    with pytest.raises(UserError, match=r"a chat template; got .*\. Pass prompt=plain\."):
        plan(config)


def test_the_plan_says_where_answers_are_not_written_behind_their_prompt(
    configure: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    model = save_instruct_model(tmp_path / "instruct")
    chat = ["prompt=chat", "algorithm=sft", "init=pretrained", "model.compute_dtype=float32"]
    chat += ["dataset.max_new_tokens=200", f"model.path={model}"]
    thinking = "prompt.template_args={enable_thinking: false}"
    assert plan(configure(*chat)).warnings == ()
    (said,) = plan(configure(*chat, thinking)).warnings
    assert said.startswith("the chat template of the model writes another prompt")
