"""Steps labelled by what becomes of them: who is asked what, and which label comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerBase

from reasonrl.algorithms.steps import label_steps, last_step, uses_results
from reasonrl.config.schema import TrainConfig
from reasonrl.grading.stops import decode
from reasonrl.job import Job
from reasonrl.rewards.steps import STEPS_FILE, Step, read_steps
from reasonrl.sampling import ENGINES
from reasonrl.sampling import rollouts as rollouts_module
from reasonrl.types import Completion, Rollout
from tests.helpers.grading import STRICT
from tests.helpers.jobs import TRAIN, job_of, sampled
from tests.helpers.scripted import ScriptedSampler

T0, T1, _ = TRAIN  # 2+3=5, 5*4=20; 4+4=8, 8*2=16
RIGHT = " 2+3=5\n5*4=20\n#### 20"  # its steps end with tokens 6, 13 and 18, EOS
SLIP = " 2+3=5\n5+4=9\n#### 9"  # with 6, 12 and 16
LOST = ["9+9=18\n#### 18"]

Texts = Mapping[str, Sequence[str]]


class Killed(BaseException):
    pass


@pytest.fixture
def asking(
    configure: Callable[..., TrainConfig],
    scripted: Callable,
    random_policy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable:
    """A job whose policy goes on as told; prefixes that aren't named are lost."""

    @contextmanager
    def make(
        texts: Texts, folder: str = "run", max_new_tokens: int = 48, **options: Any
    ) -> Iterator[tuple[Job, ScriptedSampler]]:
        sampler = scripted(lambda prefix, _: texts.get(prefix, LOST))
        monkeypatch.setitem(ENGINES, "transformers", sampler)
        config = configure("algorithm=steps", f"dataset.max_new_tokens={max_new_tokens}")
        with job_of(config, random_policy, tmp_path / folder, **options) as j:
            yield j, sampler

    return make


@pytest.mark.parametrize(
    ("text", "step"),
    [
        (" 2+3=5\n", " 2+3=5\n"),
        (" 2+3=5\n5*4=20\n\n", "5*4=20\n\n"),
        (" 2+3=5\n\n \n", " 2+3=5\n\n \n"),
        ("\n", ""),
    ],
)
def test_the_last_step_of_a_prefix(text: str, step: str) -> None:
    assert last_step(text, STRICT) == step


@pytest.mark.parametrize(
    ("step", "continuation", "answer", "used"),
    [
        ("2+3=5\n", "5*4=20\n#### 20", "20", True),
        ("2+3=5\n", "Ana has 5.\n5*4=20\n#### 20", "20", True),
        ("2+3=5\n", "2+3=5\n#### 20", "20", False),  # calculated again is not used
        ("2+3=5\n", "15*4=60\n#### 60", "60", False),  # 15 isn't 5
        ("2+3=5\n", "#### 5", "5", True),
        ("1,000+200=1,200\n", "1200*2=2400\n#### 2400", "2400", True),
        ("2+3=5, 4+4=8\n", "5*4=20\n#### 20", "20", False),  # all that it calculates
        ("2+3=5, 4+4=8\n", "5*8=40\n#### 40", "40", True),
        ("First the apples.\n", "anything", None, True),  # a step that calculates nothing
        ("2+3=5\n", "", None, False),
    ],
)
def test_a_continuation_uses_the_results_of_the_step(
    step: str, continuation: str, answer: str | None, used: bool
) -> None:
    assert uses_results(step, continuation, answer, STRICT) is used


def test_one_verifying_continuation_makes_a_step_good(
    asking: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = {
        "t0/0": ["5*4=20\n#### 20", "5+4=9\n#### 9", "5*4=20\n#### 20"],
        # 9 leads nowhere: whoever finds the answer from here has started over.
        "t0/2": ["2+3=5\n5*4=20\n#### 20"],
    }
    with asking(texts) as (job, _):
        right, slip = label_steps(job, sampled(tokenizer, T0, [RIGHT, SLIP]), 3, 1.0)
        rows = pq.read_table(job.run.rollouts / "steps.parquet").to_pylist()
    # The last step of a right completion is good, and so is what comes before it: none of the
    # continuations of 5*4=20 is right.
    assert right == [
        Step(0, 6, 2, 2, True),
        Step(1, 13, 0, 0, True),
        Step(2, 18, None, None, True),
    ]
    assert slip == [
        Step(0, 6, 2, 2, True),  # the same beginning
        Step(1, 12, 3, 0, False),
        Step(2, 16, None, None, False),
    ]
    names = ("number", "token", "correct", "verifying", "good")
    assert rows == [
        {"problem_id": "t0", "sample_index": index} | {name: getattr(step, name) for name in names}
        for index, steps in enumerate((right, slip))
        for step in steps
    ]


def test_beginning_and_continuation_are_right_within_what_may_be_written(
    asking: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The whole solution has 19 tokens; a policy that may write 18 would be cut off."""
    continued = {"t0/0": ["5*4=20\n#### 20"]}
    for limit, good in ((19, True), (18, False)):
        with asking(continued, str(limit), max_new_tokens=limit) as (job, _):
            (steps,) = label_steps(job, sampled(tokenizer, T0, [SLIP]), 1, 1.0)
        assert steps[0] == Step(0, 6, int(good), int(good), good)


def test_a_beginning_with_a_wrong_answer_is_not_mended(
    asking: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    text = " 2+3=5\n#### 9\n5*4=20\n#### 9"
    with asking({"t0/1": ["5*4=20\n#### 20"]}) as (job, _):
        (steps,) = label_steps(job, sampled(tokenizer, T0, [text]), 1, 1.0)
    assert (steps[1].correct, steps[1].good) == (0, False)  # right by itself, not as a whole


def test_what_comes_before_a_good_step_is_good(
    asking: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    # From the second step on the answer is found, from the first and third it isn't.
    with asking({"t0/1": ["5*4=20\n#### 20"]}) as (job, _):
        text = " 4+4=8\n2+3=5\n8+5=13\n#### 13"
        (steps,) = label_steps(job, sampled(tokenizer, T0, [text]), 1, 1.0)
    assert [step.verifying for step in steps] == [0, 1, 0, None]
    assert [step.good for step in steps] == [True, True, False, False]


def test_each_beginning_is_gone_on_from_once_in_its_own_ids(
    asking: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    # A padding token among the digits of the slip: no text encodes to these ids.
    (slip,) = sampled(tokenizer, T0, [SLIP])
    ids = tuple(slip.completion.token_ids)
    odd = Completion("t0", 3, (*ids[:9], 1, *ids[9:]), (-0.5,) * 18, "eos", SLIP)
    rollouts = [
        *sampled(tokenizer, T0, [RIGHT, SLIP, RIGHT]),
        Rollout(slip.prompt, odd, slip.answer, slip.correct, (0.0,) * 18),
        *sampled(tokenizer, T1, [" 2+3=5\n#### 5"]),  # another problem, the same beginning
    ]
    with asking({}) as (job, sampler):
        label_steps(job, rollouts, 2, 0.9)
        question = [p.token_ids for p in job.prompts(TRAIN, few_shot=False)]
    ((prompts, params, _),) = sampler.calls
    assert (params.num_samples_per_prompt, params.temperature) == (2, 0.9)
    first = tuple(rollouts[0].completion.token_ids)
    five, other = first[:7], first[:14]
    assert [(p.problem_id, p.token_ids) for p in prompts] == [
        ("t0/0", question[0] + five),
        ("t0/1", question[0] + other),
        ("t0/2", question[0] + ids[:13]),
        ("t0/3", question[0] + (*ids[:9], 1, *ids[9:13])),
        ("t1/4", question[1] + five),
    ]


def test_a_policy_that_needs_exemplars_is_shown_them(
    asking: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    with asking({}, few_shot=True) as (job, sampler):
        label_steps(job, sampled(tokenizer, T0, [" 2+3=5\n#### 5"]), 1, 1.0)
    ((prompts, _, _),) = sampler.calls
    text = decode(tokenizer, prompts[0].token_ids)
    assert text.count("Q:") == 2
    assert text.endswith("Tom has 4 apples.\nA: 2+3=5\n")


def test_completions_of_one_step_or_none(
    asking: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    with asking({}) as (job, sampler):
        rollouts = sampled(tokenizer, T0, ["#### 20", "", "\n", " 2+3=5\n#### 20"])
        labelled = label_steps(job, rollouts, 2, 1.0)
    assert [[step.good for step in steps] for steps in labelled] == [[True], [], [], [True, True]]
    assert labelled[0] == [Step(0, 4, None, None, True)]
    assert [len(prompts) for prompts, _, _ in sampler.calls] == [1]


def test_what_is_read_is_what_was_written(
    asking: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    rollouts = sampled(tokenizer, T0, [RIGHT, "\n", SLIP]) + sampled(tokenizer, T1, ["#### 5"])
    with asking({"t0/0": ["5*4=20\n#### 20"]}) as (job, _):
        labelled = label_steps(job, rollouts, 2, 1.0)
        file = job.run.rollouts / STEPS_FILE
        # "####", " ", "5" and EOS: its only step is its last.
        assert labelled[1] == []
        assert labelled[3] == [Step(0, 3, None, None, False)]
        assert read_steps(file, rollouts) == labelled
        # Of each rollout its own, in whatever order and however few are asked for.
        assert read_steps(file, rollouts[:0:-1]) == labelled[:0:-1]


def test_an_interrupted_collection_goes_on(
    asking: Callable, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollouts_module, "SHARD_SIZE", 2)  # a prefix in each
    texts = {"t0/0": ["5*4=20\n#### 20"], "t0/2": ["2+3=5\n5*4=20\n#### 20"]}
    rollouts = sampled(tokenizer, T0, [RIGHT, SLIP])
    with asking(texts, "straight") as (job, sampler):
        expected = label_steps(job, rollouts, 2, 1.0)
        assert len(sampler.calls) == 3
        straight = job.run.rollouts
    with asking(texts, "killed") as (job, sampler):
        going_on = sampler.script

        def dying(prefix: str, visit: int) -> Sequence[str]:
            if prefix == "t0/2":
                raise Killed
            return going_on(prefix, visit)

        sampler.script = dying
        with pytest.raises(Killed):
            label_steps(job, rollouts, 2, 1.0)
        assert not (job.run.rollouts / "steps.parquet").exists()
        sampler.script = going_on
        assert label_steps(job, rollouts, 2, 1.0) == expected
        asked = [p.problem_id for prompts, _, _ in sampler.calls for p in prompts]
        assert asked == ["t0/0", "t0/1", "t0/2", "t0/2"]  # the last, killed, again
        assert label_steps(job, rollouts, 2, 1.0) == expected
        assert len(sampler.calls) == 4  # what is there is read
        for name in ("continuations.parquet", "steps.parquet"):
            assert (job.run.rollouts / name).read_bytes() == (straight / name).read_bytes()
