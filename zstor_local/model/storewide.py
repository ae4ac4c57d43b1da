"""Records of the store itself, one class per schema version: namespaces, the list of shards, voids, rows, older master keys."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from zstor_local.errors import CorruptRecord
from zstor_local.model.fields import decode, encode, expect_schema, policy_fields, take, take_list, take_policy, take_sized
from zstor_local.model.ids import ID_BYTES, NamespaceId
from zstor_local.model.masterkey import KEY_BYTES, OlderKey
from zstor_local.model.policy import Policy
from zstor_local.model.record import ObjectRecord, Tombstone

HASH_KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class NamespaceRecord:
    """A namespace, schema 1 or 2: its random id (what shards see of it) and how its objects are stored.

    The members behind `policy` are those of schema 2, written only where there are such. `quota` in plain bytes, None without one;
    `placement` names the shards or groups that shares go to, empty for all; `deleting` once its deletion has begun.
    """

    name: str
    id: NamespaceId
    created: int
    policy: Policy
    quota: int | None = None
    placement: tuple[str, ...] = ()
    deleting: bool = False

    def encode(self) -> bytes:
        plain: dict[int, object] = {0: 1, 1: self.name, 2: self.id, 4: self.created, 6: policy_fields(self.policy)}
        later = {7: self.quota, 8: [*self.placement] or None, 9: self.deleting or None}
        later = {number: value for number, value in later.items() if value is not None}
        return encode(plain | {0: 2} | later if later else plain)

    @classmethod
    def decode(cls, data: bytes) -> NamespaceRecord:
        plain = decode(data)
        if plain.get(0) != 1:
            expect_schema(plain, 2)
        return cls(
            name=take(plain, 1, str),
            id=NamespaceId(take_sized(plain, 2, ID_BYTES)),
            created=take(plain, 4, int),
            policy=take_policy(plain),
            quota=take(plain, 7, int) if 7 in plain else None,
            placement=tuple(take_list(plain, 8, str, [])),
            deleting=take(plain, 9, bool, False),
        )


@dataclass(frozen=True, slots=True)
class StoreRecord:
    """What the store keeps of itself, schema 1: the key of the keyed hashes, made by init and never rotated."""

    hash_key: bytes
    created: int

    def encode(self) -> bytes:
        return encode({0: 1, 1: self.hash_key, 4: self.created})

    @classmethod
    def decode(cls, data: bytes) -> StoreRecord:
        plain = decode(data)
        expect_schema(plain, 1)
        return cls(take_sized(plain, 1, HASH_KEY_BYTES), take(plain, 4, int))


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard of the store: `number` stands in placements, `uid` in the shard's marker, `id` is its name for people.

    `url` may be relative to the store's directory. A `draining` shard gets no new shares. One that was `added` while the store was
    in use is where this says; of the others the configuration may say something else.
    """

    number: int
    uid: bytes
    id: str
    url: str
    group: str
    draining: bool = False
    added: bool = False


@dataclass(frozen=True, slots=True)
class ShardsRecord:
    """The list of shards, schema 1. `numbers_used`: how many numbers were ever given, from 0; none is given twice.

    `home` is the store's directory when a shard was added last: in a copy of the store it tells that it is one.
    """

    shards: tuple[ShardEntry, ...]
    numbers_used: int = 0
    home: str = ""

    @property
    def next_number(self) -> int:
        """The number of the next new shard."""
        return max(self.numbers_used, 1 + max((shard.number for shard in self.shards), default=-1))

    def encode(self) -> bytes:
        plain: dict[int, object] = {0: 1, 1: [[s.number, s.uid, s.id, s.url, s.group] for s in self.shards]}
        draining, added = [s.number for s in self.shards if s.draining], [s.number for s in self.shards if s.added]
        plain.update((number, value) for number, value in enumerate((self.numbers_used, draining, added, self.home), 2) if value)
        return encode(plain)

    @classmethod
    def decode(cls, data: bytes) -> ShardsRecord:
        plain = decode(data)
        expect_schema(plain, 1)
        entries = take_list(plain, 1, list)
        if any([type(field) for field in entry] != [int, bytes, str, str, str] for entry in entries):
            raise CorruptRecord("the list of shards is malformed")
        draining, added = take_list(plain, 3, int, []), take_list(plain, 4, int, [])
        shards = tuple(replace(ShardEntry(*entry), draining=entry[0] in draining, added=entry[0] in added) for entry in entries)
        return cls(shards, take(plain, 2, int, 0), take(plain, 5, str, ""))


@dataclass(frozen=True, slots=True)
class VoidRecord:
    """Sequences `first` to `last` that reached a log but never the metastore: whoever reads the logs ignores their entries."""

    first: int
    last: int

    def covers(self, sequence: int) -> bool:
        return self.first <= sequence <= self.last

    def encode(self) -> bytes:
        return encode({0: 1, 1: self.first, 2: self.last})

    @classmethod
    def decode(cls, data: bytes) -> VoidRecord:
        plain = decode(data)
        expect_schema(plain, 1)
        return cls(take(plain, 1, int), take(plain, 2, int))


@dataclass(frozen=True, slots=True)
class RowRecord:
    """A store-wide row, schema 1: bytes under a name, whose meaning is its table's (`store.storewide`)."""

    name: str  # of the row in the metastore
    value: bytes
    changed: int  # microseconds since 1970 UTC

    def encode(self) -> bytes:
        return encode({0: 1, 1: self.name, 2: self.value, 4: self.changed})

    @classmethod
    def decode(cls, data: bytes) -> RowRecord:
        plain = decode(data)
        expect_schema(plain, 1)
        return cls(take(plain, 1, str), take(plain, 2, bytes), take(plain, 4, int))


@dataclass(frozen=True, slots=True)
class KeysRecord:
    """The master keys before the present one, the newest first, schema 1. Sealed under the present one: who has that has all.

    `settled` once every record was sealed anew after the last rotation. The `retired` oldest of them let nobody in on shard servers.
    """

    older: tuple[OlderKey, ...]
    rotated: int  # microseconds since 1970 UTC
    settled: bool = False
    retired: int = 0

    def encode(self) -> bytes:
        plain: dict[int, object] = {0: 1, 1: [[key.key, key.through] for key in self.older], 4: self.rotated}
        if self.settled:
            plain[5] = True
        if self.retired:
            plain[6] = self.retired
        return encode(plain)

    @classmethod
    def decode(cls, data: bytes) -> KeysRecord:
        plain = decode(data)
        expect_schema(plain, 1)
        entries = take_list(plain, 1, list)
        older = [OlderKey(*entry) for entry in entries if len(entry) == 2]
        if len(older) != len(entries) or not all(
            type(each.key) is bytes and len(each.key) == KEY_BYTES and (each.through is None or type(each.through) is int)
            for each in older
        ):
            raise CorruptRecord("the record of the older master keys is malformed")
        return cls(tuple(older), take(plain, 4, int), take(plain, 5, bool, False), take(plain, 6, int, 0))


Record = ObjectRecord | Tombstone | NamespaceRecord | StoreRecord | ShardsRecord | VoidRecord | RowRecord | KeysRecord
