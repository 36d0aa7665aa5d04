"""What TRL's GRPO and RLOO trainers computed is what ours compute on the same completions.

``python -m benchmarks.trl_losses`` has written what TRL computed, and says what is made the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.trl_losses import FILE, Completions, Figures, ours
from reasonrl.config.schema import TrainConfig
from tests.helpers.configs import ROOT

WRITTEN = json.loads((ROOT / "benchmarks" / "results" / FILE).read_text(encoding="utf-8"))
CASES = {case["name"]: case for case in WRITTEN["cases"]}


def differences(
    configure: Callable[..., TrainConfig], name: str, *changes: dict[str, Any], **how: Any
) -> list[float]:
    """The largest differences of ours from TRL's numbers, with each of the changes to ours."""
    case = CASES[name]
    config: Any = configure(*case["overrides"]).algorithm
    completions = Completions(**WRITTEN["completions"][case["completions"]])
    how = {"whole_ratio": case["whole_ratio"], **how}
    return [
        ours(completions, replace(config, **change), **how).difference(Figures(**case["trl"]))
        for change in changes
    ]


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers(configure: Callable[..., TrainConfig], name: str) -> None:
    """Advantages, loss and gradient; weights by length are float32 in ours."""
    assert differences(configure, name, {}) == pytest.approx([0.0], abs=1e-7)


def test_other_options_have_other_numbers(configure: Callable[..., TrainConfig]) -> None:
    """The completions tell every option from its neighbours."""
    grpo = differences(
        configure,
        "grpo",
        {"baseline": "leave_one_out"},
        {"scale": "none"},
        {"ratio": "sequence"},
        {"clip_range": 0.19},
        {"clip_range_high": 0.21},
        {"aggregation": "token"},
        {"aggregation": "constant"},
        {"kl_coef": 0.04},
        {"kl_penalty": "reward"},
    )
    assert min(grpo) > 1e-4
    rloo = differences(configure, "rloo", {"baseline": "group_mean"}, {"kl_coef": 0.04})
    assert min(rloo) > 1e-4


def test_rloo_takes_the_mean_of_log_ratios(configure: Callable[..., TrainConfig]) -> None:
    """And TRL their sum, so that the two part where a completion has more tokens than one."""
    (difference,) = differences(configure, "rloo", {}, whole_ratio=False)
    assert difference > 0.01
