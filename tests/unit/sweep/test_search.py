"""A search asks for what promises most, and finds its own runs again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from reasonrl.runs.folder import RunFolder
from reasonrl.sweep.options import SearchOptions
from reasonrl.sweep.search import search, split, value_of
from reasonrl.util.errors import UserError


def parsed(*overrides: str) -> list[Override]:
    return OverridesParser.create().parse_overrides([*overrides])


class Runs:
    """Makes runs that log twice, and best where the rate is 0.003."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[list[list[str]]] = []

    def make(self, points: list[list[str]]) -> list[RunFolder]:
        self.asked.append(points)
        return [self._run(dict(override.split("=") for override in one)) for one in points]

    def _run(self, values: dict[str, str]) -> RunFolder:
        run = RunFolder(self.folder / values["rate"])
        run.path.mkdir(exist_ok=True)
        accuracy = 1 - abs(float(values["rate"]) - 0.003)
        records = [{"step": 0, "eval/m": accuracy}, {"step": 1, "eval/m": 0.5, "ei/loss": 2.0}]
        run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
        return run


RATE = "rate=tag(log,interval(1e-4,1e-2))"


def test_what_is_searched_of_each_key() -> None:
    fixed, space = split(
        parsed(
            RATE, "seed=3", "a=interval(0,1)", "b=int(interval(1,8))", "c=range(1,9,2)",
            "d=x,[1],0.5", "+e=range(0,1,0.5)",
        )
    )  # fmt: skip
    assert fixed == ["seed=3"]
    assert space == {
        "rate": FloatDistribution(1e-4, 1e-2, log=True),
        "a": FloatDistribution(0, 1),
        "b": IntDistribution(1, 8),
        "c": IntDistribution(1, 7, step=2),
        "d": CategoricalDistribution(["x", "[1]", "0.5"]),
        "+e": CategoricalDistribution(["0.0", "0.5"]),
    }


def test_it_comes_close_and_the_same_command_asks_for_the_same_runs(
    tmp_path: Path,
) -> None:
    options = SearchOptions(metric="eval/m", num_runs=25, at_once=2)
    runs = Runs(tmp_path)
    study = search(options, parsed(RATE, "seed=3"), runs.make)
    assert study.best_value == pytest.approx(1, abs=3e-4)
    assert [len(points) for points in runs.asked] == [2] * 12 + [1]
    assert all(point[0] == "seed=3" for points in runs.asked for point in points)
    again = Runs(tmp_path)
    search(options, parsed(RATE, "seed=3"), again.make)
    assert again.asked == runs.asked
    other = Runs(tmp_path)
    search(SearchOptions("", "eval/m", num_runs=1, seed=1), parsed(RATE, "seed=3"), other.make)
    assert other.asked[0][0] != runs.asked[0][0]


def test_of_a_run_the_best_value_counts(tmp_path: Path) -> None:
    (run,) = Runs(tmp_path).make([["rate=0.003"]])
    assert value_of(run, SearchOptions(metric="eval/m")) == 1.0
    assert value_of(run, SearchOptions(metric="eval/m", direction="minimize")) == 0.5


def test_a_dry_run_asks_once(tmp_path: Path) -> None:
    planned: list[list[list[str]]] = []

    def plan(points: list[list[str]]) -> list[RunFolder]:
        planned.append(points)
        return [RunFolder(tmp_path / "none")]

    search(SearchOptions(), parsed(RATE), plan, dry_run=True)
    assert len(planned) == 1


@pytest.mark.parametrize(
    ("options", "overrides", "error"),
    [
        (
            SearchOptions(metric="eval/n"),
            [RATE],
            r"hydra.sweeper.metric=eval/n must be a metric that every run logs; .* doesn't. "
            r"It logs ei/loss, eval/m.",
        ),
        (SearchOptions(), ["rate=1"], "a search must have a key with several values; got none. "),
        (SearchOptions(direction="up"), [RATE], "hydra.sweeper.direction must be one of maximize"),
        (SearchOptions(num_runs=0), [RATE], "hydra.sweeper.num_runs must be 1 or more; got 0."),
    ],
)
def test_mistakes(options: SearchOptions, overrides: list[str], error: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=error):
        search(options, parsed(*overrides), Runs(tmp_path).make)
