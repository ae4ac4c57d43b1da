"""Which shards a version's shares go to: spread over groups first (disks, hosts: what fails together), then by free room and by lot."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import blake3

from zstor_local.model.ids import Version


@dataclass(frozen=True, slots=True)
class Candidate:
    """A shard that could take a share. `free`: its free bytes, or anything in proportion to them."""

    number: int
    group: str
    free: int


def spread(version: Version, candidates: Sequence[Candidate], count: int, taken: Iterable[str] = ()) -> tuple[int, ...]:
    """`count` different shards (fewer if there are no more), of as many groups as possible, those of `taken` last.

    Among equals a shard is drawn by lot with its room as the weight (an exponential race); the version is the lot, so that the same
    version is placed the same way again.
    """
    width = 8 * len(candidates)
    lots = struct.unpack(f"<{len(candidates)}Q", blake3.blake3(version).digest(length=width))
    waiting = sorted(
        (-math.log((lot + 1) / 2**64) / max(1, candidate.free), candidate.number, candidate.group)
        for lot, candidate in zip(lots, candidates, strict=True)
    )
    shares = Counter(taken)
    chosen: list[int] = []
    while waiting and len(chosen) < count:
        best = min(range(len(waiting)), key=lambda at: (shares[waiting[at][2]], at))
        _, number, group = waiting.pop(best)
        chosen.append(number)
        shares[group] += 1
    return tuple(chosen)


def groups_to_lose(shards_by_group: Mapping[str, int], k: int, m: int) -> int:
    """How many whole groups may be lost, whichever they are, when the m shares of each version are spread over all of them."""
    shares: Counter[str] = Counter()
    for _ in range(m):
        free = [group for group, shards in shards_by_group.items() if shares[group] < shards]
        if not free:
            break
        shares[min(free, key=lambda group: shares[group])] += 1
    lost, left = 0, sum(shares.values())
    for count in sorted(shares.values(), reverse=True):
        left -= count
        if left < k:
            break
        lost += 1
    return lost
