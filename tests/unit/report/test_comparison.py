"""Runs against each other: by problem, by seed, and over seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reasonrl.report.catalogue import Entry, by_seed, chosen, read_catalogue
from reasonrl.report.comparison import compared, results
from reasonrl.report.scores import read_scores
from reasonrl.util.errors import UserError
from tests.helpers.finished_runs import Answers, finished, write_answers


def greedy(*right: int) -> Answers:
    """Of ten problems those numbered so are right, in every sample too."""
    return {f"q{i}": (i in right, ["7" if i in right else "3"] * 2) for i in range(10)}


def entries_of(outputs: Path, *conditions: str) -> list[Entry]:
    entries = chosen(read_catalogue(outputs), conditions)
    return sorted(entries, key=lambda e: (e.config.algorithm.name, e.config.seed))


def test_scores_are_those_of_the_evaluation(tmp_path: Path) -> None:
    write_answers(
        tmp_path / "after",
        {
            "b": (True, ["7", "3", "7", None]),  # 2 of 3 votes; 1 − (1/2) at k = 1
            "a": (False, ["3", "3", "7", "5"]),
            "c": (False, ["7", "3", None, None]),  # a tie
        },
    )
    scores = read_scores(tmp_path / "after")
    assert scores.problem_ids == ("a", "b", "c")
    assert {name: values.tolist() for name, values in scores.values.items()} == {
        "maj@1": [0, 1, 0],
        "maj@4": [0, 1, 0.5],
        "pass@1": [0.25, 0.5, 0.25],
        "pass@2": pytest.approx([1 / 2, 5 / 6, 1 / 2]),  # 1 − C(4 − c, 2) / C(4, 2)
        "pass@4": [1, 1, 1],
    }


def test_an_evaluation_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    write_answers(tmp_path / "after", greedy(1))
    (tmp_path / "after" / "samples.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"must be whole; samples\.parquet can't be read"):
        read_scores(tmp_path / "after")


def test_a_run_s_gain_is_on_the_policy_it_started_from(tmp_path: Path) -> None:
    # SFT's own evaluation is what EI started from.
    finished(tmp_path, "algorithm=sft", after=greedy(0, 1), before=greedy())
    finished(tmp_path, "algorithm=ei", after=greedy(0, 1, 2, 3, 4, 5, 6, 7))
    ei, sft = results([[entry] for entry in entries_of(tmp_path)], ["maj@1", "pass@K"])
    assert list(ei.estimates) == ["maj@1", "pass@K", "maj@1: gain", "pass@K: gain"]
    assert ei.estimates["maj@1"].value == 0.8
    assert ei.estimates["maj@1: gain"].value == pytest.approx(0.6)
    assert ei.estimates["maj@1: gain"].p_value == pytest.approx(2 / 64)
    assert sft.estimates["maj@1: gain"].value == pytest.approx(0.2)


def test_a_run_that_was_not_evaluated_has_no_numbers(tmp_path: Path) -> None:
    run = finished(tmp_path, "algorithm=sft", after=greedy(1), before=greedy())
    entries = read_catalogue(tmp_path, "test-n10-k96-t0.7")
    (row,) = results([entries], ["maj@1"])
    assert (row.estimates, row.entries) == ({}, entries)
    assert entries[0].state == "to be evaluated"
    assert run.path.name == entries[0].name
    with pytest.raises(UserError, match="must be evaluated by test-n10-k96-t0"):
        compared([entries, entries], ["maj@1"])


def test_runs_are_compared_with_the_first_with_corrected_p_values(tmp_path: Path) -> None:
    finished(tmp_path, "algorithm=sft", after=greedy())
    finished(tmp_path, "algorithm=ei", after=greedy(0, 1, 2, 3, 4, 5))
    finished(tmp_path, "algorithm=rcrl", after=greedy(0, 1, 2, 3, 4, 5, 6))
    ei, rcrl, sft = ([entry] for entry in entries_of(tmp_path))
    first, *others = compared([sft, ei, rcrl], ["maj@1"])
    assert list(first.estimates) == ["maj@1"]
    gains = [row.estimates["maj@1: against the first"] for row in others]
    assert [gain.value for gain in gains] == pytest.approx([0.6, 0.7])
    # 2/64 and 2/128 by themselves; of two the smaller counts twice.
    assert [gain.p_value for gain in gains] == pytest.approx([2 / 64, 4 / 128])
    # With a second metric, which is as far apart, of four: the smallest counts four times.
    _, *others = compared([sft, ei, rcrl], ["maj@1", "pass@2"])
    found = [gain.p_value for row in others for name, gain in row.estimates.items() if ":" in name]
    assert found == pytest.approx([8 / 128] * 4)


def test_seeds_are_averaged_and_paired(tmp_path: Path) -> None:
    for seed, (sft, ei) in enumerate([((0,), (0, 1, 2)), ((0, 1), (0, 1, 2)), ((1,), (1, 2, 3))]):
        finished(tmp_path, "algorithm=sft", f"seed={seed}", after=greedy(*sft), before=greedy())
        finished(tmp_path, "algorithm=ei", f"seed={seed}", after=greedy(*ei))
    finished(tmp_path, "algorithm=ei", "seed=7", after=greedy(*range(10)))
    groups = by_seed(entries_of(tmp_path))
    assert [[entry.config.seed for entry in group] for group in groups] == [[0, 1, 2, 7], [0, 1, 2]]
    (of_ei, of_sft) = results(groups, ["maj@1"])
    assert (of_sft.estimates["maj@1"].seeds, of_ei.estimates["maj@1"].seeds) == (3, 4)
    assert of_sft.estimates["maj@1"].value == pytest.approx(4 / 30)
    _, row = compared([groups[1], groups[0]], ["maj@1"])
    gain = row.estimates["maj@1: against the first"]
    assert (gain.seeds, gain.n) == (3, 10)  # seed 7 has no partner
    assert gain.value == pytest.approx(np.mean([0.2, 0.1, 0.2]))


def test_what_cannot_be_paired_is_refused(tmp_path: Path) -> None:
    finished(tmp_path, "algorithm=sft", after=greedy())
    finished(tmp_path, "algorithm=ei", after={"other": (True, ["7", "7"])})
    for seed in (1, 2):
        finished(tmp_path, "algorithm=rcrl", f"seed={seed}", after=greedy())
    ei, first, second, sft = entries_of(tmp_path)
    with pytest.raises(UserError, match="must have answered the same problems"):
        compared([[sft], [ei]], ["maj@1"])
    with pytest.raises(UserError, match="must have a seed in common to be paired; the seeds are 0"):
        compared([[sft], [first, second]], ["maj@1"])
    with pytest.raises(UserError, match=r"metric=maj@3 must be one of maj@1, maj@2, pass@1"):
        results([[sft]], ["maj@3"])
