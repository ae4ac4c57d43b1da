"""Where shares go: groups first, then room; and how many groups may be lost."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zstor_local.model.ids import Version
from zstor_local.shards.placement import Candidate, groups_to_lose, spread

VERSIONS = [Version(number.to_bytes(16, "big")) for number in range(400)]


def shards(*groups: int) -> list[Candidate]:
    """So many shards in each group."""
    numbers = iter(range(sum(groups)))
    return [Candidate(next(numbers), f"disk {group}", 100) for group, count in enumerate(groups) for _ in range(count)]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 12), st.binary(min_size=16, max_size=16))
def test_no_group_gets_two_shares_more_than_another_that_has_room(groups: list[int], m: int, lot: bytes) -> None:
    candidates = shards(*groups)
    placement = spread(Version(lot), candidates, m)
    assert len(placement) == len(set(placement)) == min(m, len(candidates))
    held = Counter(candidates[number].group for number in placement)
    for group, size in enumerate(groups):
        if held[f"disk {group}"] < size:
            assert max(held.values()) <= held[f"disk {group}"] + 1


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(1, 6), st.integers(0, 4))
def test_whichever_groups_are_lost_k_shares_are_left_and_with_one_more_they_may_not_be(groups: list[int], k: int, spare: int) -> None:
    candidates = shards(*groups)
    may_be_lost = groups_to_lose({f"disk {group}": count for group, count in enumerate(groups)}, k, k + spare)
    held = Counter(candidates[number].group for number in spread(VERSIONS[7], candidates, k + spare))
    total = sum(held.values())
    if total < k:
        assert may_be_lost == 0
        return
    assert all(total - sum(held[each] for each in lost) >= k for lost in combinations(held, may_be_lost))
    if may_be_lost < len(held):
        assert any(total - sum(held[each] for each in lost) < k for lost in combinations(held, may_be_lost + 1))


@pytest.mark.parametrize(("groups", "lost"), [((1,) * 6, 2), ((6,), 0), ((3, 3), 0), ((2, 2, 2), 1), ((2,) * 6, 2), ((1,) * 9, 2)])
def test_four_of_six_shares_over_some_disks(groups: tuple[int, ...], lost: int) -> None:
    assert groups_to_lose({str(number): count for number, count in enumerate(groups)}, 4, 6) == lost


def test_a_shard_with_twice_the_room_gets_about_twice_the_shares() -> None:
    candidates = [Candidate(number, str(number), 200 if number == 2 else 100) for number in range(4)]
    held = Counter(number for version in VERSIONS for number in spread(version, candidates, 1))
    assert 1.5 < 3 * held[2] / (held[0] + held[1] + held[3]) < 2.5


def test_groups_that_hold_shares_already_come_last() -> None:
    for version in VERSIONS[:20]:
        assert spread(version, shards(1, 1, 1), 3, ["disk 1"])[-1] == 1
        assert spread(version, shards(1, 1, 1), 3, ["disk 0", "disk 2"])[0] == 1


def test_versions_are_placed_in_many_ways_and_each_always_the_same() -> None:
    assert len({spread(version, shards(2, 2, 2, 2), 6) for version in VERSIONS}) > 100
    assert spread(VERSIONS[1], shards(2, 2), 3) == spread(VERSIONS[1], shards(2, 2), 3)
