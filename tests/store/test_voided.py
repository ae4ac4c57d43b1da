"""What never came to be, as ranges of sequences, and the error for a write that too few shards could take."""

from __future__ import annotations

import pytest

from zstor_local.errors import NoSpace, NotEnoughShards
from zstor_local.model.ids import NamespaceId
from zstor_local.model.record import STORE_WIDE
from zstor_local.shards.base import ShardError
from zstor_local.store.quorum import not_enough_shards
from zstor_local.store.voided import both, voided

ONE, OTHER = NamespaceId(b"one namespace 16"), NamespaceId(b"another name 16b")


def test_each_sequence_is_told_in_the_stores_space_and_in_its_own() -> None:
    found = voided({7: ONE, 5: ONE, 6: OTHER, 9: STORE_WIDE})
    assert found == {STORE_WIDE: [(5, 7), (9, 9)], ONE: [(5, 5), (7, 7)], OTHER: [(6, 6)]}


@pytest.mark.parametrize(
    ("more", "together"),
    [((2, 3), [(1, 10)]), ((5, 12), [(1, 12)]), ((11, 12), [(1, 12)]), ((12, 13), [(1, 10), (12, 13)])],
    ids=["within", "across its end", "right behind", "apart"],
)
def test_of_what_two_say_nothing_is_lost(more: tuple[int, int], together: list[tuple[int, int]]) -> None:
    for one, other in (((1, 10), more), (more, (1, 10))):
        assert both({STORE_WIDE: [one], ONE: [one]}, {STORE_WIDE: [other]}) == {STORE_WIDE: together, ONE: [one]}


def test_room_is_what_a_write_lacks_only_where_every_shard_that_failed_is_full() -> None:
    full, missing = ShardError("full", "no room"), ShardError("missing", "not there")
    assert isinstance(not_enough_shards(2, 3, {"0": full, "1": full}), NoSpace)
    assert isinstance(not_enough_shards(2, 3, {"0": full, "1": missing}), NotEnoughShards)
    assert isinstance(not_enough_shards(2, 3, {"1": missing}), NotEnoughShards)
