"""Writing a namespace's objects again: with its policy as it is now, and with new data keys.

Key, times, references, user members and links stay; only the version is another one. Keys that share a version share the new one. How
far it has come is a row of the store, so that a rewrite which a stop or crash broke off goes on behind the last key that it noted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from zstor_local.errors import Busy, Conflict, CorruptRecord, NotFound, Unreadable
from zstor_local.model.fields import decode, encode
from zstor_local.model.ids import NamespaceId, ObjectName, Version
from zstor_local.model.record import Envelope, ObjectRecord
from zstor_local.runtime import Buffer
from zstor_local.store.caller import Caller, Nobody
from zstor_local.store.change import Decision
from zstor_local.store.coding import Coded
from zstor_local.store.core import Core
from zstor_local.store.edits import Edits
from zstor_local.store.errorgroups import single
from zstor_local.store.freeing import Freeing
from zstor_local.store.namespaces import REWRITE_TABLE, Namespace, Namespaces
from zstor_local.store.reading import stretch
from zstor_local.store.reads import Objects
from zstor_local.store.sources import BytesSource, ChannelSource
from zstor_local.store.stored import Stored
from zstor_local.store.storewide import StoreWide
from zstor_local.store.writes import ObjectWriter

BATCH: Final = 100  # keys between two notes of how far it is
LOOKS: Final = 5  # at a key that others keep changing
BUSY_SECONDS: Final = 1.0  # until a look whether clients have left memory for a stream
TOLD: Final = 100  # keys of unreadable objects that the result names
REMEMBERED: Final = 100_000  # new versions that further keys share, some 10 MB: of those beyond, each key has them written once more


@dataclass(slots=True)
class Rewritten:
    """What came of it: how many objects were written again, and the first keys of those that cannot be read and stay as they are."""

    objects: int = 0
    unreadable: list[str] = field(default_factory=list)


class Rewriting:
    """The use case. What others write meanwhile has the new policy and a key of its own already."""

    def __init__(
        self, core: Core, namespaces: Namespaces, rows: StoreWide, objects: Objects, writer: ObjectWriter, freeing: Freeing
    ) -> None:
        self._core = core
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._committer = core.committer
        self._namespaces = namespaces
        self._rows = rows
        self._objects = objects
        self._writer = writer
        self._freeing = freeing

    async def rewrite(self, name: str, caller: Caller) -> Rewritten:
        """Write every object of the namespace again, durable each for itself; goes on where an earlier one was broken off."""
        namespace = self._namespaces.own(name)
        started = self._rows.get(REWRITE_TABLE, namespace.id.hex())
        after, done = _position(b"" if started is None else started.value)
        result = Rewritten(done)
        shared: set[Version] = set()  # written by this rewrite, for several keys
        await self._note(namespace, after, done)
        while rows := self._metastore.scan(namespace.id, "", after, BATCH):
            for row in rows:
                try:
                    result.objects += await self._renew(ObjectName(name, row.name), namespace, shared)
                except (CorruptRecord, Unreadable):
                    result.unreadable += [row.name][: TOLD - len(result.unreadable)]
                caller.progress(result.objects, max(result.objects, self._metastore.usage(namespace.id).objects))
            after = rows[-1].name
            await self._note(namespace, after, result.objects)
        await self._rows.remove(REWRITE_TABLE, namespace.id.hex())
        return result

    def broken_off(self) -> list[str]:
        """The namespaces whose rewrite has begun and not ended."""
        found = (self._namespaces.by_id(NamespaceId(bytes.fromhex(row.name))) for row in self._rows.each(REWRITE_TABLE))
        return [namespace.name for namespace in found if namespace is not None and not namespace.gate.closed]

    async def _note(self, namespace: Namespace, after: str | None, done: int) -> None:
        await self._rows.put(REWRITE_TABLE, namespace.id.hex(), encode({0: 1, 1: after, 2: done}))

    async def _renew(self, name: ObjectName, begun_in: Namespace, shared: set[Version]) -> bool:
        looks = 0
        while looks < LOOKS:
            namespace = self._namespaces.get(name.namespace)
            if namespace.id != begun_in.id:
                raise NotFound(f"the namespace {name.namespace} was deleted meanwhile")
            try:
                stored = self._objects.find(name)
                if stored.version not in shared:
                    await self._again(stored, namespace, shared)
            except NotFound:
                return False
            except Conflict:
                looks += 1
                continue
            except Busy:  # for as long as it takes: what is passed over would keep its old data key
                await trio.sleep(BUSY_SECONDS)
                continue
            return True
        return False  # written again and again: what is there is new

    async def _again(self, stored: Stored, namespace: Namespace, shared: set[Version]) -> None:
        """One version's bytes as a new version of all its keys; Conflict if the key has moved on."""

        async def publish(coded: Coded) -> None:
            if coded.size != stored.record.size or coded.digest != stored.record.digest:
                raise CorruptRecord(f"{stored.record.key!r} reads other bytes than were written", hint="run `zstor check`")
            await self._committer.commit(
                namespace.id, stored.record.key, lambda current: self._decide(current, stored, namespace, coded, shared)
            )
            self._freeing.wake()

        if stored.record.small:
            await self._writer.store(namespace, BytesSource(await self._objects.read(stored)), publish, Nobody())
            return
        source = ChannelSource()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pour, stored, source)
                await self._writer.store(namespace, source, publish, Nobody())
                source.abandon()
        except BaseExceptionGroup as error:
            raise single(error) from None

    async def _pour(self, stored: Stored, source: ChannelSource) -> None:
        await self._objects.read_to_stream(stored, _Poured(source), stretch(stored.record, None, None), Nobody())
        source.end()

    def _decide(self, current: Envelope | None, stored: Stored, namespace: Namespace, coded: Coded, shared: set[Version]) -> Decision:
        if current is None or current.version != stored.version:
            raise Conflict("the key has left that version behind", current=None if current is None else current.version.hex())
        edits = Edits(self._core, namespace)
        keys = sorted(self._committer.view.named(namespace.id, stored.version))
        if len(keys) > 1 and len(shared) < REMEMBERED:
            shared.add(coded.version)
        for key in keys:
            found = edits.find(key)
            if found is not None and found.version == stored.version:
                edits.put(key, coded.version, _recoded(found.record, coded, namespace))
        own = edits.find(stored.record.key)
        if own is None:
            raise AssertionError("a key that is at this version has a record")
        return self._writer.put(namespace, edits, coded, own.record, self._runtime.clock.now())


class _Poured:
    """A sink that hands on what is read, as fast as it is written."""

    def __init__(self, source: ChannelSource) -> None:
        self._source = source

    async def write(self, parts: Sequence[Buffer]) -> None:
        for part in parts:
            await self._source.give(bytes(part)).let_go.wait()


def _recoded(record: ObjectRecord, coded: Coded, namespace: Namespace) -> ObjectRecord:
    """The record with all that follows from how the bytes are coded now."""
    fresh = coded.record(record.key, namespace.policy, record.created, record.modified)
    return replace(fresh, references=record.references, user=record.user, previous_key=record.previous_key, next_key=record.next_key)


def _position(value: bytes) -> tuple[str | None, int]:
    if not value:
        return None, 0
    plain = decode(value)
    after, done = plain.get(1), plain.get(2)
    return (after if isinstance(after, str) else None), (done if isinstance(done, int) else 0)
