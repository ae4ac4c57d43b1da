"""Which shards have yet to hear of a key's newest record: what was owed to them went with the metastore, and is owed anew.

A log that holds an older record of a key and not the newest brings the older one back once what buries it was forgotten elsewhere. A
shard that was not seen may hold anything: it is owed every deletion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from zstor_local.metastore.base import Debt, Owed
from zstor_local.model.ids import NamespaceId, Version
from zstor_local.model.record import Kind
from zstor_local.store.rebuild.scratch import FoundRow, version_of


class Behind:
    """`seen` are the numbers of the shards whose logs were read, in the order of the holders' bits; `listed` those of all shards;
    `void` tells which sequences were never committed.
    """

    def __init__(self, seen: Sequence[int], listed: frozenset[int], void: Callable[[bytes], bool]) -> None:
        self._bits = [(1 << bit, number) for bit, number in enumerate(seen) if number in listed]
        self._void = void
        self._unseen = sorted(listed.difference(seen))
        self._behind: dict[bytes, int] = {}  # by key, those who hold something older only

    def watch(self, found: Iterable[FoundRow]) -> Iterator[FoundRow]:
        """The same rows, which come key by key, the newest first; of a key that is handed on it is known who is behind."""
        for key, rows in groupby(found, itemgetter(0)):
            all_of_it = list(rows)
            if len(all_of_it) > 1 and (behind := self._who(all_of_it)):
                self._behind[key] = behind
            yield from all_of_it

    def _who(self, rows: Iterable[FoundRow]) -> int:
        newest, heard, older = b"", 0, 0
        for _, sequence, holders, _ in rows:
            if self._void(sequence):
                continue
            newest = newest or sequence
            if sequence == newest:
                heard |= int.from_bytes(holders, "little")
            else:
                older |= int.from_bytes(holders, "little")
        return older & ~heard

    def debts(self, record: bytes, name: str) -> list[Debt]:
        """What is owed of a key whose record, that of the row of this name, counts."""
        behind = self._behind.pop(record[1:33], 0)
        owed = [number for bit, number in self._bits if behind & bit]
        if record[0] == Kind.TOMBSTONE:
            owed += self._unseen
        return [Debt(number, Owed.RECORD, NamespaceId(record[1:17]), name, Version(version_of(record))) for number in owed]
