"""What never came to be, as logs are told of it: in the store's own space, and for a namespace's readers in that namespace too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zstor_local.model.ids import NamespaceId
from zstor_local.model.record import STORE_WIDE
from zstor_local.shards.base import Shard

Range = tuple[int, int]  # first and last of sequences
Voided = dict[NamespaceId, list[Range]]  # all of it under STORE_WIDE, and what is of a namespace under its id as well


def has_readers(shard: Shard) -> bool:
    """Whether other users may read the logs of namespaces there. They can open nothing of the store's own, so they are told apart."""
    return shard.on_disk is None


def voided(sequences: Mapping[int, NamespaceId]) -> Voided:
    """These sequences, each given with the space of its record."""
    found: dict[NamespaceId, list[Range]] = {}
    for sequence, space in sequences.items():
        for told_in in dict.fromkeys((STORE_WIDE, space)):
            found.setdefault(told_in, []).append((sequence, sequence))
    return {space: _joined(ranges) for space, ranges in found.items()}


def both(one: Voided, other: Voided) -> Voided:
    """What either says, in as few ranges as that takes."""
    return {space: _joined([*one.get(space, ()), *other.get(space, ())]) for space in {**one, **other}}


def told_on(shard: Shard, found: Voided) -> Voided:
    """As much of it as is said in that shard's log."""
    return {space: ranges for space, ranges in found.items() if space == STORE_WIDE or has_readers(shard)}


def _joined(ranges: Iterable[Range]) -> list[Range]:
    found: list[Range] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(last, found[-1][1])
        else:
            found.append((first, last))
    return found
