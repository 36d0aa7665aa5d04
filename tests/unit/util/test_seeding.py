"""Seeds for each purpose, and the orders that they give."""

from __future__ import annotations

from reasonrl.util.seeding import derive_seed, next_in_stream


def test_a_seed_is_63_bits_of_a_hash_of_what_it_is_for() -> None:
    # The first 8 bytes of SHA-256 of "0/ei/1/explore" and of "1", without their last bit.
    assert derive_seed(0, "ei", 1, "explore") == 5156391150868526633
    assert derive_seed(1) == 3874038210105081456


def test_other_purposes_have_other_seeds() -> None:
    purposes = [(1, "ei"), (1, "ppo"), (11,), (1, 1), (1, "1", "1"), (1, 11), (1, "e", "i")]
    assert len({derive_seed(*purpose) for purpose in purposes}) == len(purposes)
    assert len({derive_seed(0, i) % 2**24 for i in range(20_000)}) > 19_950
    assert len({derive_seed(0, i) >> 39 for i in range(20_000)}) > 19_950


def test_a_stream_goes_through_all_items_each_time_in_another_order() -> None:
    stream = next_in_stream("abcde", 0, 15, seed=0)
    rounds = ["".join(stream[i : i + 5]) for i in (0, 5, 10)]
    assert [sorted(each) for each in rounds] == [list("abcde")] * 3
    assert len({*rounds}) == 3
    # It can be entered anywhere.
    assert next_in_stream("abcde", 3, 8, seed=0) == stream[3:11] == list("abbedace")
    assert next_in_stream("abcde", 0, 5, seed=1) != stream[:5]
