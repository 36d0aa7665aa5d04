"""What tells the runs of a sweep apart, for people."""

from __future__ import annotations

from reasonrl.sweep.manifest import Member
from reasonrl.sweep.overrides import settings


def test_settings_are_what_has_no_place_of_its_own() -> None:
    members = [
        Member("a", ["algorithm=ei", "+seed=0", "algorithm.kl_coef=1", "algorithm.clip_range=2"]),
        Member("b", ["algorithm=ei", "+seed=1", "algorithm.kl_coef=1", "algorithm.clip_range=3"]),
        Member("c", ["algorithm=rcrl", "+seed=0", "algorithm.kl_coef=1"]),
    ]
    assert settings(members) == {"a": ["clip_range=2"], "b": ["clip_range=3"], "c": []}


def test_a_run_that_only_others_need_has_what_all_of_them_have() -> None:
    slow, fast, kl = "init.sft.learning_rate=1", "init.sft.learning_rate=9", "algorithm.kl_coef"
    members = [
        Member("sft-slow", None),
        Member("sft-fast", None),
        Member("ei-slow", None, ["sft-slow"]),  # for the reward model of the first
        Member("a", [slow, f"{kl}=0"], ["ei-slow"]),
        Member("b", [slow, f"{kl}=1"], ["sft-slow"]),
        Member("c", [fast, f"{kl}=0"], ["sft-fast"]),
        Member("d", [fast, f"{kl}=1"], ["sft-fast"]),
    ]
    found = settings(members)
    assert found["sft-slow"] == ["learning_rate=1"]
    assert found["sft-fast"] == ["learning_rate=9"]
    assert found["ei-slow"] == ["learning_rate=1", "kl_coef=0"]
    assert found["a"] == ["learning_rate=1", "kl_coef=0"]
