"""The ids of versions: never the same, beside each other in tables where they were written one after the other."""

from __future__ import annotations

import random
from itertools import pairwise

from tests.store.home import Home, content, put
from zstor_local.store.coding import new_version
from zstor_local.system import real_runtime


def test_versions_of_one_group_differ_and_stand_side_by_side() -> None:
    group = {new_version(real_runtime(), 7_000) for _ in range(100)}
    earlier, later = new_version(real_runtime(), 6_999), new_version(real_runtime(), 7_001)
    assert len(group) == 100
    assert earlier < min(group)
    assert max(group) < later


def test_the_first_byte_goes_through_all_its_values() -> None:
    sequences = [4_096 * turn + random.Random(turn).randrange(4_096) for turn in range(3 * 256)]
    assert [new_version(real_runtime(), each)[0] for each in sequences] == [*range(256)] * 3


async def test_what_is_written_later_has_a_later_version_after_a_restart_too(home: Home) -> None:
    versions = []
    for life in range(2):
        async with home.open() as store:
            for size in (10_000, 700_000, 1):
                versions.append((await put(store, f"{life}.{size}", content(size, size))).version)
    assert all(earlier < later for earlier, later in pairwise(versions))
