"""What tells the runs of one command apart, for people."""

from __future__ import annotations

import pytest

from reasonrl.pipeline.overrides import differing


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        (
            [("algorithm=ei", "seed=0"), ("algorithm=ppo", "seed=0")],
            [["algorithm=ei"], ["algorithm=ppo"]],
        ),
        (
            [("algorithm.kl_coef=0.05", "init=sft"), ("algorithm.kl_coef=0.1", "init=sft")],
            [["kl_coef=0.05"], ["kl_coef=0.1"]],
        ),
        (
            [("algorithm=ei", "seed=0"), ("algorithm=rcrl", "seed=1")],
            [["algorithm=ei", "seed=0"], ["algorithm=rcrl", "seed=1"]],
        ),
        (
            [("dataset.prompt='a=b'",), ("dataset.prompt='a.c=b'",)],
            [["prompt='a=b'"], ["prompt='a.c=b'"]],
        ),
        ([("algorithm=ei",)], [[]]),
        ([], []),
    ],
)
def test_runs_are_named_by_what_they_do_not_share(
    runs: list[tuple[str, ...]], names: list[list[str]]
) -> None:
    assert differing(runs) == names
