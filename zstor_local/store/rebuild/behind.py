"""Which shards have yet to hear of a key's newest record: what was owed to them went with the metastore, and is owed anew.

A log that holds an older record of a key and not the newest brings the older one back once what buries it was forgotten elsewhere. A
shard that holds a share and never heard of its key, renamed or copied while it was away, may be one of the last that hold any. One that
was not seen may hold anything: it is owed every deletion. Every shard is owed what it lacks of the store's own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from zstor_local.metastore.base import Debt, Owed
from zstor_local.model.ids import NamespaceId, Version
from zstor_local.model.record import STORE_WIDE, Kind
from zstor_local.store.rebuild.scratch import FoundRow, version_of


class Behind:
    """`seen` are the numbers of the shards whose logs were read, in the order of the holders' bits; `listed` those of all shards;
    `void` tells which sequences were never committed.
    """

    def __init__(self, seen: Sequence[int], listed: frozenset[int], void: Callable[[int], bool]) -> None:
        self._bits = [(1 << bit, number) for bit, number in enumerate(seen) if number in listed]
        self._void = void
        self._unseen = sorted(listed.difference(seen))
        self._passed = b"", 0, 0  # the last key of which every row has passed, who holds the newest and who something older

    def watch(self, found: Iterable[FoundRow]) -> Iterator[FoundRow]:
        """The same rows, which come key by key, the newest first. Once all of a key's have passed it is known who is behind."""
        for key, rows in groupby(found, itemgetter(0)):
            newest, heard, older = b"", 0, 0
            for row in rows:
                _, sequence, holders, _ = row
                if not self._void(int.from_bytes(sequence, "big")):
                    newest = newest or sequence
                    if sequence == newest:
                        heard |= int.from_bytes(holders, "little")
                    else:
                        older |= int.from_bytes(holders, "little")
                yield row
            self._passed = key, heard, older

    def debts(self, record: bytes, name: str, holders: Sequence[int] = ()) -> list[Debt]:
        """What is owed of the key that has just passed, whose record, that of the row of this name, counts. The `holders` of its shares
        ought to have it.
        """
        key, heard, older = self._passed
        if key != record[1:33]:
            raise AssertionError("the key's rows have not all passed")
        everybody = record[1:17] == STORE_WIDE
        owed = [number for bit, number in self._bits if not heard & bit and (everybody or older & bit or number in holders)]
        if everybody or record[0] == Kind.TOMBSTONE:
            owed += self._unseen
        return [Debt(number, Owed.RECORD, NamespaceId(record[1:17]), name, Version(version_of(record))) for number in owed]
