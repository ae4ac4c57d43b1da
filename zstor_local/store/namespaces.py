"""Namespaces: a name to its random id, its keys and its policy. The first write to a new name creates it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zstor_local.coding.keys import KeyHasher, NamespaceKeys
from zstor_local.metastore.base import Metastore
from zstor_local.model.ids import ID_BYTES, KeyHash, NamespaceId, ReferenceHash
from zstor_local.model.policy import Policy
from zstor_local.model.record import NO_VERSION, STORE_WIDE, Envelope, Kind, NamespaceRecord
from zstor_local.runtime import Runtime
from zstor_local.shards.pool import ShardPool
from zstor_local.store.change import Decision, NewRecord
from zstor_local.store.committer import Committer
from zstor_local.store.sealing import RecordSealer

_ALL: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace, ready for use."""

    name: str
    id: NamespaceId
    policy: Policy
    keys: NamespaceKeys
    hasher: KeyHasher

    def key_hash(self, key: str) -> KeyHash:
        return self.hasher.key_hash(self.id, key)

    def reference_hash(self, reference: str) -> ReferenceHash:
        return self.hasher.reference_hash(self.id, reference)


class Namespaces:
    """All namespaces of a store; each is read once and kept."""

    def __init__(
        self,
        runtime: Runtime,
        metastore: Metastore,
        committer: Committer,
        pool: ShardPool,
        sealer: RecordSealer,
        hasher: KeyHasher,
        policy: Policy,
    ) -> None:
        self._runtime = runtime
        self._metastore = metastore
        self._committer = committer
        self._pool = pool
        self._sealer = sealer
        self._hasher = hasher
        self._policy = policy
        self._known: dict[str, Namespace] = {}

    def find(self, name: str) -> Namespace | None:
        """The namespace, or None if nothing was ever written to it."""
        known = self._known.get(name)
        if known is None:
            envelope = self._metastore.get(STORE_WIDE, row_name(name))
            if envelope is None:
                return None
            known = self._remember(envelope)
        return known

    def by_id(self, namespace: NamespaceId) -> Namespace | None:
        """The namespace with this id."""
        for known in self._known.values():
            if known.id == namespace:
                return known
        for row in self._metastore.scan(STORE_WIDE, row_name(""), None, _ALL):
            if (found := self._remember(row.envelope)).id == namespace:
                return found
        return None

    def all(self) -> list[Namespace]:
        """Every namespace, by name."""
        rows = self._metastore.scan(STORE_WIDE, row_name(""), None, _ALL)
        return sorted((self._remember(row.envelope) for row in rows), key=lambda each: each.name)

    async def find_or_create(self, name: str, policy: Policy | None = None) -> Namespace:
        """The namespace, created with this policy (or the store's) if it is new; durable when this returns."""
        known = self.find(name)
        if known is not None:
            return known
        identity = NamespaceId(self._runtime.randomness.bytes(ID_BYTES))
        record = NamespaceRecord(name, identity, self._runtime.clock.now(), policy or self._policy)

        def decide(current: Envelope | None) -> Decision:
            if current is not None:  # another call was faster
                return Decision()
            shards = self._pool.numbers
            copies = NewRecord(
                Kind.NAMESPACE,
                self._hasher.key_hash(STORE_WIDE, name),
                NO_VERSION,
                record.encode(),
                shards,
                quorum=len(shards) // 2 + 1,
                k=len(shards) // 2 + 1,
            )
            return Decision({(STORE_WIDE, row_name(name)): copies})

        await self._committer.commit(STORE_WIDE, row_name(name), decide)
        envelope = self._metastore.get(STORE_WIDE, row_name(name))
        if envelope is None:
            raise AssertionError("a committed namespace is in the metastore")
        return self._remember(envelope)

    def _remember(self, envelope: Envelope) -> Namespace:
        record = NamespaceRecord.decode(self._sealer.open(envelope))
        namespace = Namespace(record.name, record.id, record.policy, self._sealer.keys(record.id), self._hasher)
        return self._known.setdefault(record.name, namespace)


PERMISSIONS_TABLE: Final = "permission"  # of store-wide rows: who may do what in a namespace, kept by the built-in authority


def row_name(namespace: str) -> str:
    """The metastore's row of a namespace."""
    return f"namespace/{namespace}"
