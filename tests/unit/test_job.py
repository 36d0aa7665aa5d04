"""What all algorithms share: a validation, and which of its completions are shown."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from reasonrl.config.schema import TrainConfig
from tests.helpers.jobs import VALIDATION, job_of


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        ([], ["v0", "v1"]),  # as conf/train.yaml has it
        (["runtime.log_completions=1"], ["v0"]),
        (["runtime.log_completions=9"], ["v0", "v1"]),  # all there are
        (["runtime.log_completions=0"], []),
    ],
)
def test_the_first_completions_of_each_validation_are_shown(
    configure: Callable[..., TrainConfig],
    random_policy: str,
    scripted: Callable,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    overrides: list[str],
    shown: list[str],
) -> None:
    # (1 + 2) * 3 = 9 is the first problem's answer alone.
    sampler = scripted(lambda *_: ["#### 9"])
    config = configure("algorithm=sft", *overrides)
    with job_of(config, random_policy, tmp_path / "run") as job, caplog.at_level(logging.INFO):
        for step in (1, 2):
            file = tmp_path / f"{step}.parquet"
            said = {"few_shot": False, "file": file, "description": "validation"}
            assert job.accuracy(sampler, VALIDATION, **said) == 0.5
            texts = [one.getMessage() for one in caplog.records if one.name == "reasonrl.job"]
            assert [text.partition(":")[0] for text in texts] == shown * step
    assert all("| #### 9" in text for text in texts)
