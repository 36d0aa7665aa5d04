"""A dtype that is slow on this machine is taken, and warned of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from reasonrl.policy import speed
from reasonrl.policy.speed import warn_where_slow

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _not_warned_yet() -> Iterator[None]:
    speed._warn_once.cache_clear()
    yield
    speed._warn_once.cache_clear()


@pytest.mark.parametrize(("taken", "warned"), [(0.044, True), (0.0021, False)])
def test_a_dtype_that_is_slow_here_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    taken: float,
    warned: bool,
) -> None:
    seconds = {torch.float32: 0.001, torch.bfloat16: taken}
    monkeypatch.setattr(speed, "_seconds", seconds.__getitem__)
    warn_where_slow("bfloat16", CPU)
    warn_where_slow("bfloat16", CPU)
    said = "this processor multiplies bfloat16 44 times more slowly than float32; pass model.comp"
    assert caplog.text.count(said) == int(warned)
    assert len(caplog.records) == int(warned)


@pytest.mark.parametrize(("dtype", "device"), [("float32", "cpu"), ("bfloat16", "meta")])
def test_nothing_is_timed_where_there_is_nothing_to_warn_of(
    monkeypatch: pytest.MonkeyPatch, dtype: str, device: str
) -> None:
    monkeypatch.setattr(speed, "_seconds", lambda _: pytest.fail("timed"))
    warn_where_slow(dtype, torch.device(device))


def test_the_time_is_a_few_milliseconds() -> None:
    assert 0 < speed._seconds(torch.float32) < 1
