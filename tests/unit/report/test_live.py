"""The line of each iteration, round and epoch, made of the lines of metrics.jsonl."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from reasonrl.config.algorithm import ALGORITHMS
from reasonrl.config.algorithm.base import Algorithm
from reasonrl.config.resolve import resolve
from reasonrl.report.live import GAP, LEFT, RATE, Live
from reasonrl.runs import metrics_log
from reasonrl.runs.metrics_log import MetricsLog
from tests.helpers.configs import ROOT


def settings_of(*overrides: str) -> Algorithm:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("train", [*overrides])).algorithm


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says, which each reading moves on by the last of these."""
    clock = [0.0, 10.0]

    def read() -> float:
        clock[0] += clock[1]
        return clock[0]

    monkeypatch.setattr(metrics_log.time, "monotonic", read)
    return clock


def shown_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    shown = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return shown


@pytest.mark.usefixtures("seconds")
def test_an_iteration_of_ppo_is_one_line_with_its_validation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = settings_of("algorithm=ppo", "algorithm.iterations=3", "algorithm.validate_every=2")
    file = tmp_path / "metrics.jsonl"
    live = Live(file, settings, num_validation=200)
    iteration = {"rollout/score": 0.25, "pg/kl": 0.0312, "rollout/mean_length": 41.26}
    end = {"pg/steps": 2, "time/tokens_per_second": 1234.5}
    with MetricsLog(file, live.follow) as log:  # the clock says 10 at its opening
        log.log(0, {"pg/rollouts": 0, "eval/validation_maj@1": 0.45})  # after 10 seconds
        log.log(0, {"pg/iteration": 1, **iteration})
        log.log(1, {"pg/policy_loss": 0.1})
        assert len(caplog.records) == 2
        log.log(2, end)  # after 40
        log.log(2, {"pg/iteration": 2, **iteration})
        log.log(4, end)
        assert len(caplog.records) == 3  # its validation is awaited
        log.log(4, {"eval/validation_maj@1": 1.0})  # after 70
    heads = "iteration   score      validation maj@1       KL  length   tok/s     left"
    assert shown_of(caplog) == [
        heads,
        "      0/3            45.0% [38.0, 52.2]",
        "      1/3   0.250                          0.031    41.3   1,234   1m 20s",
        heads,
        "      2/3   0.250  100.0% [98.2, 100.0]    0.031    41.3   1,234      35s",
    ]


@pytest.mark.usefixtures("seconds")
def test_a_resumed_run_shows_what_is_new_as_if_it_had_never_stopped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = settings_of("algorithm=sft", "init=pretrained", "algorithm.epochs=4")
    file = tmp_path / "metrics.jsonl"
    for epoch in (1, 2):
        with MetricsLog(file, Live(file, settings, num_validation=8).follow) as log:
            log.log(2 * epoch - 1, {"sft/loss": 3.0 / epoch})
            end = {"sft/epoch": epoch, "time/tokens_per_second": 99_999.0}
            log.log(2 * epoch, {"sft/loss": 2.0 / epoch, **end})
    heads = "epoch      loss   tok/s     left"
    # The loss is the mean over the epoch; two lines, ten seconds each, make an epoch.
    assert shown_of(caplog) == [
        heads,
        "  1/4    2.5000  99,999   1m 00s",
        heads,
        "  2/4    1.2500  99,999      40s",
    ]


def test_a_run_without_parts_shows_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "metrics.jsonl"
    live = Live(file, settings_of("algorithm=sample", "init=pretrained"), num_validation=8)
    with MetricsLog(file, live.follow) as log:
        log.log(1, {"sample/loss": 1.0})
    assert not caplog.records


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_line_wraps_at_80_columns(name: str) -> None:
    line = ALGORITHMS[name].panels.line
    if line is None:
        assert name in ("sample", "steps")  # they learn nothing
        return
    part = max(len(line.part), len("1000/1000"))
    assert len(GAP.join(["x" * part, *("x" * c.width for c in (*line.cells, RATE, LEFT))])) <= 80
