"""Namespaces: a name to its random id, its keys and its policy. Created by name, or by the first write to a new one.

A namespace is a record among the store's own, copied to all shards; when it is deleted a tombstone takes its place, so that a rebuild
does not bring it back. The same name again is another namespace, with another id and other keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import merge
from operator import itemgetter
from typing import Final

from zstor_local import limits
from zstor_local.coding.keys import KeyHasher, NamespaceKeys
from zstor_local.counted import counted
from zstor_local.errors import AlreadyExists, Conflict, CorruptRecord, InvalidParams, NoSpace, NotEmpty, NotFound, PermissionDenied
from zstor_local.metastore.base import RowName, Usage
from zstor_local.model.ids import ID_BYTES, KeyHash, NamespaceId, ReferenceHash
from zstor_local.model.policy import Policy
from zstor_local.model.record import NO_VERSION, STORE_WIDE, Envelope, Kind, Tombstone
from zstor_local.model.storewide import NamespaceRecord
from zstor_local.store.change import Decision, NewRecord
from zstor_local.store.core import Core
from zstor_local.store.retiring import TABLE as RETIRE_TABLE
from zstor_local.store.retiring import still_there
from zstor_local.store.rewriterow import MOVED, RewriteRow
from zstor_local.store.rewriterow import TABLE as REWRITE_TABLE
from zstor_local.store.storewide import StoreWide

PERMISSIONS_TABLE: Final = "permission"  # of store-wide rows: who may do what in a namespace, kept by the built-in authority
INVITED_TABLE: Final = "invited"  # of store-wide rows: the keys of users who were invited, by a namespace's id and the user
JOINED_TABLE: Final = "joined"  # of store-wide rows: passes for other users' namespaces, by the names that these have here


@dataclass(slots=True, eq=False)
class Gate:
    """What every change of a namespace's objects passes in the committer's thread, also one that began with an older policy."""

    quota: int | None = None
    closed: bool = False
    read_only: bool = False  # another user's, who let us read it

    def check(self, name: str, *, closing: bool = False) -> None:
        """Conflict if it is being deleted, unless this is a part of that (`closing`); PermissionDenied if it is another user's."""
        if self.read_only:
            raise PermissionDenied(f"the namespace {name} is another user's: it can be read here", hint="ask its owner to do it")
        if self.closed and not closing:
            raise Conflict(
                f"the namespace {name} is being deleted", hint="write to another one, or wait until it is gone", current=None
            )

    def check_room(self, name: str, usage: Callable[[], Usage], growth: int) -> None:
        """NoSpace if the namespace would hold more than its quota. `growth` in plain bytes."""
        if growth > 0 and self.quota is not None and (used := usage().bytes) + growth > self.quota:
            raise NoSpace(
                f"the namespace {name} is full: {used} of {self.quota} bytes are used, {growth} more are wanted",
                hint="delete something, or raise its quota with `zstor namespace set`",
                namespace=name,
                quota_bytes=self.quota,
                used_bytes=used,
                wanted_bytes=growth,
            )


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace, ready for use."""

    name: str
    id: NamespaceId
    policy: Policy
    keys: NamespaceKeys
    hasher: KeyHasher
    created: int = 0
    placement: tuple[str, ...] = ()
    gate: Gate = field(default_factory=Gate)

    def key_hash(self, key: str) -> KeyHash:
        return self.hasher.key_hash(self.id, key)

    def reference_hash(self, reference: str) -> ReferenceHash:
        return self.hasher.reference_hash(self.id, reference)


class Namespaces:
    """All namespaces of a store; each is read once and kept. What looks for one is for the event loop alone: a thread might make a
    second gate of the same namespace.
    """

    def __init__(self, core: Core, rows: StoreWide, policy: Policy, on_servers: Callable[[], Sequence[int]]) -> None:
        """`on_servers` tells which shards lie with shard servers."""
        self._runtime = core.runtime
        self._metastore = core.reading
        self._committer = core.committer
        self._pool = core.pool
        self._sealer = core.sealer
        self._suspects = core.suspects
        self.hasher = core.hasher
        self._rows = rows
        self._policy = policy
        self._on_servers = on_servers
        self._known: dict[str, Namespace] = {}
        self.joined: dict[str, Namespace] = {}  # other users', by the names that they have here

    # --- Look ---

    def find(self, name: str) -> Namespace | None:
        """The namespace, or None if nothing was ever written to it, or if it is being deleted."""
        known = self._look_up(name)
        return None if known is None or known.gate.closed else known

    def _look_up(self, name: str) -> Namespace | None:
        known = self._known.get(name) or self.joined.get(name)
        if known is not None:
            return known
        try:
            record = self.record(name)
        except CorruptRecord:
            self._suspects.add(STORE_WIDE, row_name(name))
            raise
        return None if record is None else self._remember(record)

    def find_to_change(self, name: str) -> Namespace | None:
        """As `find`; PermissionDenied for another user's, which can only be read."""
        found = self.find(name)
        if found is not None:
            found.gate.check(name)
        return found

    def own(self, name: str) -> Namespace:
        """The namespace, or NotFound; PermissionDenied for another user's."""
        found = self.find_to_change(name)
        if found is None:
            raise no_namespace(name)
        return found

    def get(self, name: str, identity: NamespaceId | None = None) -> Namespace:
        """The namespace, or NotFound; that with this id if one is given: it may have been removed, and made anew under its name."""
        found = self.find(name)
        if found is None or identity not in (None, found.id):
            raise no_namespace(name)
        return found

    def by_id(self, namespace: NamespaceId) -> Namespace | None:
        """The namespace with this id, also one that is being deleted."""
        for known in (*self._known.values(), *self.joined.values()):
            if known.id == namespace:
                return known
        return next((found for found in self._every() if found.id == namespace), None)

    def all(self) -> list[Namespace]:
        """Every namespace, by name, those included that are being deleted."""
        return list(self._every())

    def in_order(self, after: str | None) -> Iterator[Namespace]:
        """Namespaces behind `after`, by name, without those that are being deleted and those of the store's own. CorruptRecord at one
        whose record does not open, with its name as `key` in its data.
        """
        others = sorted(name for name in self.joined if after is None or name > after)
        for name, found in merge(self._listed(after), ((name, self.joined[name]) for name in others), key=itemgetter(0)):
            if isinstance(found, CorruptRecord):
                found.data["key"] = name
                self._suspects.add(STORE_WIDE, row_name(name))
                raise found
            if not found.gate.closed and not name.startswith("_"):
                yield found

    def _listed(self, after: str | None) -> Iterator[tuple[str, Namespace | CorruptRecord]]:
        behind = None if after is None else row_name(after)
        while rows := self._metastore.scan(STORE_WIDE, row_name(""), behind, limits.LIST_ITEMS):
            behind = rows[-1].name
            for row in rows:
                name = row.name.removeprefix(row_name(""))
                try:
                    yield name, self._remember(self._open(row.envelope))
                except CorruptRecord as error:
                    yield name, error

    def usage(self, namespace: Namespace) -> Usage:
        """How many objects it holds, of how many plain bytes."""
        return self._metastore.usage(namespace.id)

    def record(self, name: str) -> NamespaceRecord | None:
        """The record as last committed, also of one that is being deleted."""
        envelope = self._metastore.get(STORE_WIDE, row_name(name))
        return None if envelope is None else self._open(envelope)

    def smallest_k(self) -> int:
        """Of all policies: so many shards that did not hear of a void could bring back what was never committed."""
        return min((namespace.policy.k for namespace in self._every()), default=self._policy.k)

    def ids(self) -> list[NamespaceId]:
        """Of all namespaces, those included that are being deleted, and those that hold objects though their own row does not open."""
        known = dict.fromkeys(namespace.id for namespace in self._every())
        others = (space for space in self._metastore.usages() if space not in known)
        return [*known, *(space for space in others if self._metastore.scan(space, "", None, 1))]

    def half_deleted(self) -> list[Namespace]:
        """Those whose deletion has begun, of those that were read: a start reads them all (`ids`), and so does who brings rows back."""
        return [namespace for namespace in self._known.values() if namespace.gate.closed]

    def _every(self) -> Iterable[Namespace]:
        after: str | None = None
        while rows := self._metastore.scan(STORE_WIDE, row_name(""), after, limits.LIST_ITEMS):
            after = rows[-1].name
            for row in rows:
                with suppress(CorruptRecord):  # whoever asks for it by name is told
                    yield self._remember(self._open(row.envelope))

    # --- Change ---

    async def find_or_create(self, name: str, policy: Policy | None = None) -> Namespace:
        """The namespace, created with this policy (or the store's) if it is new; durable when this returns. Conflict if it is being
        deleted.
        """
        known = self._look_up(name)
        if known is None:
            known = await self._create(name, self._new(name, policy or self._policy), exclusive=False)
        known.gate.check(name)
        return known

    async def create(
        self, name: str, *, policy: Policy | None = None, quota: int | None = None, placement: tuple[str, ...] = ()
    ) -> Namespace:
        """A new namespace; AlreadyExists if there is one of that name, InvalidParams for a policy that this store cannot keep."""
        record = self._new(name, policy or self._policy, quota, placement)
        self._must_fit(record)
        return await self._create(name, record, exclusive=True)

    def _new(self, name: str, policy: Policy, quota: int | None = None, placement: tuple[str, ...] = ()) -> NamespaceRecord:
        identity = NamespaceId(self._runtime.randomness.bytes(ID_BYTES))
        return NamespaceRecord(name, identity, self._runtime.clock.now(), policy, quota, placement)

    def must_not_be_joined(self, name: str) -> None:
        """AlreadyExists where another user's namespace has that name here."""
        if name in self.joined:
            raise _joined(name)

    def must_be_free(self, name: str) -> None:
        """AlreadyExists where the store has a namespace of its own of that name. In the committer's thread, while it decides."""
        if self._committer.view.look(STORE_WIDE, row_name(name)) is not None:
            raise AlreadyExists(f"there is a namespace {name} here", hint="give it another name with `namespace`")

    async def _create(self, name: str, record: NamespaceRecord, *, exclusive: bool) -> Namespace:
        self.must_not_be_joined(name)

        def decide(current: Envelope | None) -> Decision:
            if current is None:
                if self._rows.is_there(JOINED_TABLE, name):  # somebody joins it just now
                    raise _joined(name)
                return Decision(self._written(record, None))
            if exclusive:
                raise AlreadyExists(f"there is a namespace {name} already", hint="`zstor namespace get` shows it")
            return Decision()  # another call was faster

        await self._committer.commit(STORE_WIDE, row_name(name), decide)
        return self.look_again(name)

    async def change(self, name: str, change: Callable[[NamespaceRecord], NamespaceRecord]) -> Namespace:
        """Set the namespace to what `change` makes of its record, which is the newest; NotFound if it is not there, PermissionDenied
        for another user's.
        """
        if name in self.joined:
            self.joined[name].gate.check(name)

        def decide(current: Envelope | None) -> Decision:
            if current is None:
                raise no_namespace(name)
            record = self._open(current)
            changed = change(record)
            if changed == record:
                return Decision()
            records = dict(self._written(changed, current))
            if (changed.policy, changed.placement) != (record.policy, record.placement):
                self._must_fit(changed)
                records.update(self._rewritten_once_more(record.id))
            return Decision(records)

        await self._committer.commit(STORE_WIDE, row_name(name), decide)
        return self.look_again(name)

    def _rewritten_once_more(self, namespace: NamespaceId) -> Mapping[RowName, NewRecord]:
        """In the committer's thread: what was written again by a rewrite that is not at its end has the policy of before."""
        row = RewriteRow()
        if not self._rows.is_there(REWRITE_TABLE, namespace.hex()):
            return {}
        with suppress(CorruptRecord):  # then from the beginning
            if (stored := self._rows.look(REWRITE_TABLE, namespace.hex())) is not None:
                row = RewriteRow.decode(stored.value)
        return self._rows.written(REWRITE_TABLE, namespace.hex(), row.asked_again().encode())

    async def remove(self, namespace: Namespace) -> None:
        """Delete a namespace that has no objects, and everybody's rights in it. NotEmpty if it has some; NotFound if it is gone."""
        closes = False

        def decide(current: Envelope | None) -> Decision:
            nonlocal closes
            if current is None or self._open(current).id != namespace.id:
                raise no_namespace(namespace.name)
            if self._metastore.scan(namespace.id, "", None, 1) or self._committer.view.usage(namespace.id).objects > 0:
                raise NotEmpty(f"the namespace {namespace.name} has objects", hint="delete them, or say force")
            closes, namespace.gate.closed = not namespace.gate.closed, True  # for whatever is decided from here on
            row = row_name(namespace.name)
            tombstone = Tombstone(row, self._runtime.clock.now())
            buried = self._record(row, Kind.TOMBSTONE, tombstone.encode(), current)
            records = dict(buried)
            for table, name in ((PERMISSIONS_TABLE, namespace.name), (REWRITE_TABLE, namespace.id.hex())):
                if self._rows.is_there(table, name):
                    records.update(self._rows.removed(table, name))
            for table in (INVITED_TABLE, MOVED):
                for name in self._rows.every_name(table, f"{namespace.id.hex()}/"):
                    records.update(self._rows.removed(table, name))
            if servers := self._on_servers():
                records.update(self._rows.written(RETIRE_TABLE, namespace.id.hex(), still_there(servers)))
            return Decision(records)

        try:
            await self._committer.commit(STORE_WIDE, row_name(namespace.name), decide)
        except BaseException:
            if closes:  # and not by another's deletion, which may have come to its end
                namespace.gate.closed = False
            raise
        if (known := self._known.get(namespace.name)) is not None and known.id == namespace.id:  # remembered anew meanwhile, perhaps
            del self._known[namespace.name]

    def _written(self, record: NamespaceRecord, current: Envelope | None) -> Mapping[RowName, NewRecord]:
        return self._record(row_name(record.name), Kind.NAMESPACE, record.encode(), current)

    def _record(self, row: str, kind: Kind, plain: bytes, current: Envelope | None) -> Mapping[RowName, NewRecord]:
        # Records of before 0.2 have the hash of the bare name: whatever follows one must lie under the same hash, for a rebuild.
        hashed = self.hasher.key_hash(STORE_WIDE, row) if current is None else current.key_hash
        new = NewRecord(kind, hashed, NO_VERSION, plain, self._pool.numbers, quorum=self._pool.majority)  # k is 1, as of any row
        return {(STORE_WIDE, row): new}

    def _must_fit(self, record: NamespaceRecord) -> None:
        for name in record.placement:
            if not self._named(name):
                raise InvalidParams(
                    f"there is neither a shard nor a group {name!r}", hint="`zstor status` lists them", parameter="placement"
                )
        places = len(self.shards_of(record.placement))
        if record.policy.m > places:
            raise InvalidParams(
                f"the policy has m = {record.policy.m} shares, and {counted(places, 'shard is', 'shards are')} there for them",
                hint="add shards, or lower m",
            )

    def shards_of(self, placement: tuple[str, ...]) -> list[int]:
        """The numbers of the shards that shares may go to. Those that it names may have been removed since."""
        if not placement:
            return [*self._pool.numbers]
        return sorted({number for name in placement for number in self._named(name)})

    def _named(self, name: str) -> list[int]:
        """The numbers of the shards that have this name, or are of the group that has it."""
        return [number for number in self._pool.numbers if name in (self._pool.name(number), self._pool.group(number))]

    def look_again(self, name: str) -> Namespace:
        """The namespace as last committed, for whoever asks for it from now on; NotFound if it is gone."""
        record = self.record(name)
        if record is None:
            raise NotFound(f"the namespace {name} was deleted meanwhile", hint="`zstor namespace ls` lists them")
        return self._remember(record, anew=True)

    def _open(self, envelope: Envelope) -> NamespaceRecord:
        return NamespaceRecord.decode(self._sealer.open(envelope))

    def _remember(self, record: NamespaceRecord, *, anew: bool = False) -> Namespace:
        known = self._known.get(record.name)
        if known is not None and known.id == record.id and not anew:
            return known
        gate = known.gate if known is not None and known.id == record.id else Gate()
        gate.quota, gate.closed = record.quota, gate.closed or record.deleting
        keys = self._sealer.keys(record.id)
        made = Namespace(record.name, record.id, record.policy, keys, self.hasher, record.created, record.placement, gate)
        self._known[record.name] = made
        return made


def row_name(namespace: str) -> str:
    """The metastore's row of a namespace."""
    return f"namespace/{namespace}"


def _joined(name: str) -> AlreadyExists:
    return AlreadyExists(f"there is a namespace {name} already, another user's", hint="`zstor namespace rm` leaves it")


def no_namespace(name: str) -> NotFound:
    return NotFound(f"there is no namespace {name}", hint="`zstor namespace ls` lists them", namespace=name)
