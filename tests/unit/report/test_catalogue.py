"""Which runs there are, where they differ, and which of them somebody means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reasonrl.report.catalogue import (
    by_seed,
    chosen,
    differing,
    read_catalogue,
    short_keys,
    telling,
    text_of,
)
from reasonrl.util.errors import UserError
from tests.helpers.finished_runs import finished

ANSWERS = {"a": (True, ["7", "3"])}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs: Path = tmp_path_factory.mktemp("outputs")
    for overrides in (
        ["algorithm=ei", "seed=0"],
        ["algorithm=ei", "seed=1"],
        ["algorithm=ei", "algorithm.rounds=4"],
        ["algorithm=ppo", "algorithm.learning_rate=5e-5"],
        ["algorithm=sft"],
    ):
        finished(outputs, *overrides, after=ANSWERS)
    return outputs


def meant(outputs: Path, *conditions: str) -> list[tuple[str, int]]:
    entries = chosen(read_catalogue(outputs), conditions)
    return sorted((entry.config.algorithm.name, entry.config.seed) for entry in entries)


@pytest.mark.parametrize(
    ("conditions", "runs"),
    [
        ([], [("ei", 0), ("ei", 0), ("ei", 1), ("ppo", 0), ("sft", 0)]),
        (["algorithm=ei"], [("ei", 0), ("ei", 0), ("ei", 1)]),
        (["algorithm=ei", "seed=0"], [("ei", 0), ("ei", 0)]),
        (["algorithm.rounds=4"], [("ei", 0)]),
        (["rounds=4"], [("ei", 0)]),
        (["algorithm!=ei"], [("ppo", 0), ("sft", 0)]),
        (["algorithm=[ps]*"], [("ppo", 0), ("sft", 0)]),
        (["algorithm.learning_rate=5e-05"], [("ppo", 0)]),
        (["state=done", "seed=1"], [("ei", 1)]),
        (["algorithm=ppo,s*", "seed=0,1"], [("ppo", 0), ("sft", 0)]),
        (["algorithm!=ppo,sft"], [("ei", 0), ("ei", 0), ("ei", 1)]),
        (["state=failed"], []),
    ],
)
def test_conditions_choose_runs(
    conditions: list[str], runs: list[tuple[str, int]], outputs: Path
) -> None:
    assert meant(outputs, *conditions) == runs


def test_a_condition_on_nothing_is_refused(outputs: Path) -> None:
    said = r"where=round=4 must name a setting of these 5 runs. Did you mean rounds\?"
    with pytest.raises(UserError, match=said):
        meant(outputs, "round=4")
    with pytest.raises(
        UserError, match=r"where=x!=4 must .*\. They have accumulate, aggregation, a"
    ):
        meant(outputs, "x!=4")
    with pytest.raises(UserError, match=r"where=rounds must be KEY=VALUE or KEY!=VALUE"):
        meant(outputs, "rounds")


def test_no_runs_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"outputs={tmp_path} must hold runs"):
        read_catalogue(tmp_path)


def test_a_run_that_cannot_be_read_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finished(tmp_path, "algorithm=sft", after=ANSWERS)
    broken = finished(tmp_path, "algorithm=ei", after=ANSWERS)
    broken.config.write_text("algorithm: {name: ei}\n")
    (entry,) = read_catalogue(tmp_path)
    assert entry.config.algorithm.name == "sft"
    assert f"{broken.path.name} is left out" in caplog.text


def test_the_oldest_come_first_though_they_were_copied_last(tmp_path: Path) -> None:
    begun = {"seed=0": "2026-03-01T00:00:00+00:00", "seed=1": None, "seed=2": "2026-02-01T00:00:00"}
    for override, time in begun.items():
        run = finished(tmp_path, "algorithm=sft", override, after=ANSWERS)
        if time:
            run.provenance.write_text(json.dumps({"attempts": [{"started": time}, {}]}))
    assert [entry.config.seed for entry in read_catalogue(tmp_path)] == [2, 0, 1]


def test_runs_differ_in_what_those_that_have_it_do_not_share(outputs: Path) -> None:
    entries = chosen(read_catalogue(outputs), ["algorithm=[ep]*"])
    entries.sort(key=lambda e: (e.config.algorithm.name, e.config.seed, e.name))
    found = differing(entries)
    assert found["algorithm.name"] == ["ei", "ei", "ei", "ppo"]
    assert found["seed"] == ["0", "0", "1", "0"]
    assert sorted(found["algorithm.rounds"]) == ["", "2", "2", "4"]
    assert "algorithm.iterations" not in found  # PPO's alone
    assert "model.name" not in found
    assert list(found)[:2] == ["algorithm.name", "seed"]
    assert "seed" not in differing(entries, without=["seed"])
    one, *_, other = entries
    assert differing([one, other], lacking=True)["algorithm.iterations"] == ["", "20"]


def test_an_algorithm_s_settings_tell_its_own_runs_apart_alone(outputs: Path) -> None:
    entries = chosen(read_catalogue(outputs), [])
    found = telling(entries)
    assert list(found) == ["algorithm.name", "reward.name", "init.name", "seed", "algorithm.rounds"]
    assert sorted(found["algorithm.rounds"]) == ["", "", "2", "2", "4"]
    different = chosen(entries, ["algorithm=ppo,sft"])
    assert "algorithm.epochs" in differing(different)
    assert "algorithm.epochs" not in telling(different)
    alike = chosen(entries, ["algorithm=ei", "seed=0"])
    assert list(telling(alike)) == ["algorithm.rounds"]


def test_keys_are_short_where_that_is_enough() -> None:
    keys = ["algorithm.name", "init.sft.epochs", "algorithm.epochs", "algorithm.rounds", "seed"]
    assert short_keys(keys) == {
        "algorithm.name": "algorithm",
        "init.sft.epochs": "init.sft.epochs",
        "algorithm.epochs": "algorithm.epochs",
        "algorithm.rounds": "rounds",
        "seed": "seed",
    }


def test_runs_of_several_seeds_are_put_together(outputs: Path) -> None:
    groups = by_seed(read_catalogue(outputs))
    assert sorted([entry.config.seed for entry in group] for group in groups) == [
        [0],
        [0],
        [0],
        [0, 1],
    ]


def test_a_setting_s_text_is_one_line() -> None:
    assert text_of(["\n\n", "\nQ:"]) == r"[\n\n,\nQ:]"
    assert text_of("a\n") != text_of("a\\n") == r"a\\n"
    assert text_of("Q: {question}\r\tA\x1b:\u2028é") == r"Q: {question}\r\tA\x1b:\u2028é"
