"""What voids cover."""

from __future__ import annotations

import random
from itertools import pairwise

from zstor_local.store.voids import Voids


def test_stretches_that_touch_are_one() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        voids, covered = Voids(), set[int]()
        for _ in range(chance.randrange(12)):
            first = chance.randrange(1, 40)
            last = first + chance.randrange(6)
            voids.add(first, last)
            covered |= set(range(first, last + 1))
        assert {each for each in range(60) if voids.cover(each)} == covered
        assert len(voids) == len(covered) - sum(one + 1 == other for one, other in pairwise(sorted(covered)))
