"""What tells the runs of a sweep apart, for people."""

from __future__ import annotations

from reasonrl.sweep.manifest import Member
from reasonrl.sweep.overrides import readable_names, settings, with_setting


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


def test_runs_that_differ_by_their_hash_are_named_by_what_differs() -> None:
    rate = "algorithm.learning_rate"
    members = [
        Member("sft-tiny-s0-11111111", None),
        Member("ei-tiny-s0-22222222", ["algorithm=ei", f"{rate}=1e-3"], ["sft-tiny-s0-11111111"]),
        Member("ei-tiny-s0-33333333", ["algorithm=ei", f"{rate}=1e-4"], ["sft-tiny-s0-11111111"]),
    ]
    assert [*readable_names(members).values()] == [
        "sft-tiny-s0",
        "ei-tiny-s0 learning_rate=1e-3",
        "ei-tiny-s0 learning_rate=1e-4",
    ]
    nameless = [Member(f"sft-tiny-s0-{hash}", None) for hash in ("1111", "2222")]
    assert [*readable_names(nameless).values()] == ["sft-tiny-s0-1111", "sft-tiny-s0-2222"]
    for text in (f"{rate}=1e-3", "learning_rate=1e-3"):
        assert with_setting(members, text) == ["ei-tiny-s0-22222222"]
    assert with_setting(members, "rate=1e-3") == []
