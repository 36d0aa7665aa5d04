"""Algorithms by two processes: what one process logs and leaves behind, they do together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import PreTrainedTokenizerBase

from reasonrl.algorithms import ALGORITHMS
from reasonrl.algorithms.ei import read_rounds
from reasonrl.config.schema import TrainConfig
from reasonrl.policy.policy import load_tokenizer
from reasonrl.runs.metrics_log import reproducible
from reasonrl.runs.process import ALONE, Process
from reasonrl.sampling import ENGINES
from tests.helpers.jobs import TRAIN, VALIDATION, job_of, right, write_samples, wrong
from tests.helpers.ranks import in_ranks
from tests.helpers.scripted import ScriptedSampler, opening

RCRL = ["algorithm=rcrl", "reward=dense", "algorithm.num_solutions_per_prompt=4"]
# Three examples in steps of two: the last step has one for two processes.
RUNS = {
    "sft": ["algorithm=sft", "dataset.num_references=3"],
    "ei": ["algorithm=ei", "init=pretrained", "algorithm.num_samples_per_prompt=[2]"],
    "ei-lora": ["algorithm=ei", "init=pretrained", "algorithm.trainable=lora"],
    "rcrl": RCRL,
    "orm": ["algorithm=orm"],
    "orm-lora": ["algorithm=orm", "algorithm.trainable=lora", "algorithm.likelihood=false"],
}


def run_all(process: Process, configs: dict[str, TrainConfig], init: str, folder: Path) -> Any:
    """Makes each of the runs twice: the second time all of it is there."""
    tokenizer = load_tokenizer(init)
    answers = {p.id: [right(p), wrong(p)] for p in (*TRAIN, *VALIDATION)}
    ENGINES["transformers"] = opening(  # in this process alone
        lambda *_, **__: ScriptedSampler(tokenizer, lambda name, _: answers[name])
    )
    for name, config in configs.items():
        for _ in range(2):
            with job_of(
                config, init, folder / name, folder.parent / "rollouts", process=process
            ) as job:
                ALGORITHMS[config.algorithm.name](job, config.algorithm)


@pytest.mark.slow
def test_two_processes_make_what_one_does(
    configure: Callable[..., TrainConfig],
    tokenizer: PreTrainedTokenizerBase,
    random_policy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_samples(tmp_path / "rollouts", tokenizer, right, wrong)
    shared = ["algorithm.batch_size=2", "algorithm.epochs=2"]
    configs = {name: configure(*overrides, *shared) for name, overrides in RUNS.items()}
    in_ranks(2, run_all, configs, random_policy, tmp_path / "together", timeout=300)
    monkeypatch.setitem(ENGINES, "transformers", None)  # so that it is as before afterwards
    run_all(ALONE, configs, random_policy, tmp_path / "alone")
    for name in RUNS:
        found, expected = (tmp_path / how / name for how in ("together", "alone"))
        lines, wanted = (reproducible(folder / "metrics.jsonl") for folder in (found, expected))
        assert len(lines) == len(wanted) > 3
        for line, of_one in zip(lines, wanted, strict=True):
            assert line == pytest.approx(of_one, rel=1e-4, abs=1e-6), name
        files = sorted(str(f.relative_to(expected)) for f in expected.rglob("*"))
        assert sorted(str(f.relative_to(found)) for f in found.rglob("*")) == files
        weights = [f for f in files if f.endswith(".safetensors") and "checkpoints" not in f]
        assert weights, name
        for file in weights:
            saved, of_one = load_file(found / file), load_file(expected / file)
            assert saved.keys() == of_one.keys()
            for tensor, value in saved.items():
                np.testing.assert_allclose(value, of_one[tensor], rtol=0, atol=2e-5, err_msg=tensor)
        # The numbers of a log may have more digits.
        mine, one = (
            [dataclasses.replace(r, log_position=0) for r in read_rounds(folder)]
            for folder in (found, expected)
        )
        assert mine == one
