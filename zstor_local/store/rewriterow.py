"""What a rewrite of a namespace remembers over restarts: how far it is, and whether it goes over everything once more.

A store-wide row, CBOR, by the namespace's id. It goes by the keys in their order: an object that gets a key which it may have come
past, from one that it has not, is noted in a row of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from zstor_local.errors import CorruptRecord
from zstor_local.metastore.base import RowName
from zstor_local.model.fields import decode, encode
from zstor_local.model.ids import NamespaceId
from zstor_local.store.change import NewRecord
from zstor_local.store.storewide import StoreWide

TABLE: Final = "rewrite"
MOVED: Final = "moved"  # of store-wide rows: keys that objects got meanwhile, by the namespace's id and the key


@dataclass(frozen=True, slots=True)
class RewriteRow:
    """The last key of which was noted that it is done, None at the beginning; how many objects were; whether it was asked for again;
    whether it has come past all keys.
    """

    after: str | None = None
    done: int = 0
    again: bool = False
    past_all: bool = False

    def encode(self) -> bytes:
        plain: dict[int, object] = {0: 1, 1: self.after, 2: self.done}
        plain.update((number, True) for number, said in ((3, self.again), (4, self.past_all)) if said)
        return encode(plain)

    @classmethod
    def decode(cls, value: bytes) -> RewriteRow:
        """The reverse of `encode`; what is no position is the beginning."""
        plain = decode(value)
        after, done = plain.get(1), plain.get(2)
        done = done if isinstance(done, int) else 0
        return cls(after if isinstance(after, str) else None, done, again=plain.get(3) is True, past_all=plain.get(4) is True)

    def asked_again(self) -> RewriteRow:
        return replace(self, again=True)


def moved(rows: StoreWide, space: NamespaceId, key: str, new_key: str) -> Mapping[RowName, NewRecord]:
    """What a decision writes that gives an object another key, so that no rewrite passes it over. In the committer's thread."""
    if not rows.is_there(TABLE, space.hex()):
        return {}
    past_all = False
    with suppress(CorruptRecord):
        past_all = (row := rows.look(TABLE, space.hex())) is not None and RewriteRow.decode(row.value).past_all
    if (new_key < key and not past_all) or rows.is_there(MOVED, f"{space.hex()}/{key}"):
        return rows.written(MOVED, f"{space.hex()}/{new_key}", encode({0: 1}))
    return {}
