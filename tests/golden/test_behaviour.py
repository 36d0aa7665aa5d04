"""What the package does is what behaviour.json says; tests/helpers/behaviour.py writes it.

What broken rules say is compared in tests/unit/config/test_config.py, which breaks each of them.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.helpers import behaviour
from tests.helpers.behaviour import ALGORITHMS, DATA, Values, differences, golden

SHOWN = 5


def assert_same(then: Values, now: Values) -> None:
    """Compares section by section, and tells of all of them."""
    said = []
    for section, entries in now.items():
        if different := differences(then[section], entries):
            said += [f"{len(different)} of {section} differ, the first:", *different[:SHOWN]]
    assert not said, "\n".join(said)


@pytest.mark.slow
def test_planning() -> None:
    missing = [name for name in ("gsm8k", "svamp") if not (DATA / name).is_dir()]
    if missing:
        pytest.skip(f"{DATA} has no {missing}: set REASONRL_DATA to a folder that holds them")
    assert_same(golden(), behaviour.planning())


@pytest.mark.slow
def test_runs(tmp_path: Path) -> None:
    now = behaviour.made(tmp_path / "outputs")
    then = golden()["metrics"]
    assert now["metrics"].keys() == then.keys()
    for run, metrics in now["metrics"].items():
        assert metrics["lines"] == then[run]["lines"], run
        assert metrics["first"] == pytest.approx(then[run]["first"], rel=1e-3), run
    here, known = behaviour.machine(), golden()["digests"]
    if here in known:
        assert_same({"digests": known[here]}, {"digests": now["digests"]})
    else:
        warnings.warn(f"no digests of {here}: results compared only roughly", stacklevel=1)


def test_the_file_covers_every_choice() -> None:
    assert len(golden()["combinations"]) == 384 + len(behaviour.VARIANTS)
    assert len(golden()["rules"]) == len(behaviour.RULES)
    assert {name.split("-")[0] for name in golden()["metrics"]} == set(ALGORITHMS)
