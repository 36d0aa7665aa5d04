"""What goes wrong around a run: a full disk, a damaged checkpoint, a kill after the last step."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reasonrl.config.schema import TrainConfig
from reasonrl.learning.checkpoint import Checkpoints
from reasonrl.learning.optimization import Optimization
from reasonrl.pipeline import execute
from reasonrl.pipeline.execute import ensure_done
from reasonrl.pipeline.planner import plan
from reasonrl.runs.folder import read_status
from reasonrl.util.errors import UserError
from reasonrl.util.progress import Progress
from tests.helpers.kill_and_resume import differences

# Eight references in batches of two, twice: eight steps, with a checkpoint after each.
SFT = ("algorithm=sft", "algorithm.batch_size=2", "algorithm.epochs=2")
SFT += ("runtime.checkpoint_seconds=0",)


class Killed(BaseException):
    pass


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(configure(*SFT))
    rename = os.rename
    writes = []

    def fill_up(source: Path, target: Path) -> None:
        writes.append(target)
        if Path(target).name == "step-00000005":
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    with monkeypatch.context() as full:
        full.setattr(os, "rename", fill_up)
        with pytest.raises(UserError) as raised:
            ensure_done(planned, Progress())
    message = str(raised.value)
    assert "No space left on device. Free some space" in message
    assert "\n" not in message
    status = read_status(planned.run)
    assert status is not None
    assert (status.state, status.error) == ("failed", message)

    steps_before = len(writes)
    assert steps_before > 4  # it failed in mid-run, four checkpoints on
    ensure_done(planned, Progress())
    status = read_status(planned.run)
    assert status is not None
    assert (status.state, status.attempt, status.error) == ("done", 2, None)


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(
    tmp_path: Path,
    configure: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    straight, damaged = tmp_path / "straight", tmp_path / "damaged"
    ensure_done(plan(configure(*SFT, f"runtime.outputs={straight}")), Progress())

    planned = plan(configure(*SFT, f"runtime.outputs={damaged}"))
    save = Checkpoints.save

    def dying_save(self: Checkpoints, step: int, **what: object) -> None:
        save(self, step, **what)  # type: ignore[arg-type]
        if step == 5:
            raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(Checkpoints, "save", dying_save)
        with pytest.raises(Killed):
            ensure_done(planned, Progress())

    checkpoints = planned.run.path / "work" / "policy.checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["step-00000004", "step-00000005"]
    weights = checkpoints / "step-00000005" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # a bit flipped on the disk
    weights.write_bytes(content)

    learnt: list[int] = []
    step = Optimization.step
    monkeypatch.setattr(Optimization, "step", lambda self: learnt.append(1) or step(self))
    with caplog.at_level(logging.WARNING):
        ensure_done(planned, Progress())
    assert len(learnt) == 4  # from the fourth of eight steps
    (warning,) = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
    assert "step-00000005 is damaged" in warning
    assert "step-00000004 instead" in warning
    assert differences(straight, damaged) == []


def test_a_run_killed_after_learning_does_not_learn_again(
    configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(configure("algorithm=sft"))

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(execute, "draw_learning_curve", die)
        with pytest.raises(Killed):
            ensure_done(planned, Progress())
    assert planned.run.result.exists()
    weights = (planned.run.policy / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(Optimization, "step", die)
    ensure_done(planned, Progress())
    assert (planned.run.policy / "model.safetensors").stat().st_mtime_ns == weights
    assert planned.run.learning_curve.exists()
