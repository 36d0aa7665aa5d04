"""A run of algorithm=steps: whose steps are gone on from, how often, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from reasonrl.algorithms import steps
from reasonrl.config.schema import TrainConfig
from reasonrl.sampling import ENGINES
from reasonrl.sampling.rollouts import write_rollouts
from tests.helpers.jobs import TRAIN, job_of, sampled


def test_the_steps_of_so_many_completions_of_each_question_are_gone_on_from(
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    random_policy: str,
    scripted: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of each question three completions that begin with steps of their own, and a blank one.
    texts = [" 1+1=2\n#### 2", "\n", " 2+2=4\n#### 4", " 3+3=6\n#### 6"]
    rollouts = [r for p in TRAIN for r in sampled(tokenizer, p, texts)]
    write_rollouts(tmp_path / "train.parquet", rollouts)
    sampler = scripted(lambda *_: ["#### 1"])
    monkeypatch.setitem(ENGINES, "transformers", sampler)
    config = configure(
        "algorithm=steps",
        "algorithm.sample.num_samples_per_prompt=4",
        "algorithm.sample.temperature=0.9",
        "algorithm.num_solutions_per_prompt=3",
        "algorithm.num_continuations=2",
    )
    with job_of(config, random_policy, tmp_path / "run", tmp_path) as job:
        steps.run(job, job.config.algorithm)
    ((prompts, params, _),) = sampler.calls
    # The third has index 2; the fourth is one too many, and the blank one has no step.
    begun = [" 1+1=2\n", " 2+2=4\n"]
    questions = [p.token_ids for p in job.prompts(TRAIN, few_shot=False)]
    assert [p.token_ids for p in prompts] == [
        (*question, *tokenizer(text, add_special_tokens=False)["input_ids"])
        for question in questions
        for text in begun
    ]
    assert (params.num_samples_per_prompt, params.temperature) == (2, 0.9)
    assert params.step_label == ()
    files = {path.name for path in job.run.rollouts.iterdir()}
    assert files == {"continuations.parquet", "steps.parquet"}
