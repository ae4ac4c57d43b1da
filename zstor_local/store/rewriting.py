"""Writing a namespace's objects again: with its policy as it is now, and with new data keys.

Key, times, references, user members and links stay; only the version is another one. Keys that share a version share the new one. How
far it has come is a row of the store, so that a rewrite which a stop or crash broke off goes on behind the last key that it noted. Who
asks for one that is under way, or gives the namespace another policy, has the row say that it goes over everything once more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import trio

from zstor_local.errors import Busy, Conflict, CorruptRecord, IoError, NotFound, ShuttingDown, Unreadable, ZstorError
from zstor_local.model.ids import NamespaceId, ObjectName, Version
from zstor_local.model.record import Envelope, ObjectRecord
from zstor_local.runtime import Buffer
from zstor_local.store.caller import Nobody
from zstor_local.store.change import Decision
from zstor_local.store.coding import Coded
from zstor_local.store.core import Core
from zstor_local.store.edits import Edits
from zstor_local.store.errorgroups import single
from zstor_local.store.freeing import Freeing
from zstor_local.store.jobs import Job, Jobs
from zstor_local.store.namespaces import Namespace, Namespaces, no_namespace
from zstor_local.store.reading import stretch
from zstor_local.store.reads import Objects
from zstor_local.store.rewriterow import MOVED, TABLE, RewriteRow
from zstor_local.store.sources import BytesSource, ChannelSource
from zstor_local.store.stored import Stored
from zstor_local.store.storewide import StoredRow, StoreWide
from zstor_local.store.writes import ObjectWriter

METHOD: Final = "namespace.rewrite"
BATCH: Final = 100  # keys between two notes of how far it is
LOOKS: Final = 5  # at a key that others keep changing
BUSY_SECONDS: Final = 1.0  # until a look whether clients have left memory for a stream
TOLD: Final = 100  # keys of unreadable objects that the result names
REMEMBERED: Final = 100_000  # new versions that further keys share, some 10 MB: of those beyond, each key has them written once more

log = logging.getLogger("zstor.store")


@dataclass(slots=True)
class Rewritten:
    """What came of it: how many objects were written again, and the first keys of those that cannot be read and stay as they are."""

    objects: int = 0
    unreadable: list[str] = field(default_factory=list)


class Rewriting:
    """The use case, and the jobs that do it. What others write meanwhile has the new policy and a key of its own already."""

    def __init__(
        self,
        core: Core,
        namespaces: Namespaces,
        rows: StoreWide,
        objects: Objects,
        writer: ObjectWriter,
        freeing: Freeing,
        jobs: Jobs,
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
        self._jobs = jobs
        self._jobs_of: dict[NamespaceId, Job] = {}

    async def start(self, name: str) -> Job:
        """Have every object of the namespace written again, durable each for itself: the job that does. Once this returns it goes on
        over restarts, and by itself where shards were away. One that is not at its end goes over everything once more: what it has done
        was written with the policy as it was, and whoever could read it then may have its key.

        NotFound, PermissionDenied for another user's, Busy if too many jobs run; CorruptRecord if how far it was does not open.
        """
        namespace = self._namespaces.own(name)

        def asked(before: StoredRow | None) -> bytes:
            if namespace.gate.closed:
                raise no_namespace(name)
            return (RewriteRow() if before is None else RewriteRow.decode(before.value).asked_again()).encode()

        with self._jobs.place_kept(self._jobs_of.get(namespace.id)):
            await self._rows.change(TABLE, namespace.id.hex(), asked)
        return self._job(namespace)

    def go_on(self) -> None:
        """With what an earlier life, or an earlier try, did not come to the end of, as far as there is room for their jobs, and as that
        can be seen. The others are gone on with when this is called again, or by whoever asks.
        """
        with suppress(ShuttingDown, IoError):
            for namespace in self.broken_off():
                try:
                    self._job(namespace)
                except Busy:
                    log.warning("the rewrite of namespace %s is not gone on with yet: too many jobs run", namespace.name)

    def broken_off(self) -> list[Namespace]:
        """Those whose rewrite has begun and not ended."""
        found = (self._namespaces.by_id(NamespaceId(bytes.fromhex(row.name))) for row in self._rows.each(TABLE))
        return [namespace for namespace in found if namespace is not None and not namespace.gate.closed]

    def _is_running(self, namespace: Namespace) -> bool:
        job = self._jobs_of.get(namespace.id)
        return job is not None and job.running

    def _job(self, namespace: Namespace) -> Job:
        """The one that runs, or a new one."""
        if not self._is_running(namespace):
            job = self._jobs_of[namespace.id] = self._jobs.start(METHOD, lambda job: self._work(namespace, job))
            job.message = namespace.name
        return self._jobs_of[namespace.id]

    async def _work(self, namespace: Namespace, job: Job) -> dict[str, object]:
        result = Rewritten()
        # Looked at with nothing awaited behind it: who asks from here on finds a job that has ended, and begins another.
        while (row := self._rows.get(TABLE, namespace.id.hex())) is not None:
            result = await self._once(namespace, RewriteRow.decode(row.value), job)
        return {"objects": result.objects, "unreadable": result.unreadable}

    async def _once(self, namespace: Namespace, row: RewriteRow, job: Job) -> Rewritten:
        """Everything behind a position."""
        self._namespaces.look_again(namespace.name)  # whoever asked for another policy may not have come to do so
        result, after = Rewritten(row.done), row.after
        shared: set[Version] = set()  # written now, for several keys
        seen = 0
        # One at a time: of several that were read at once, one might get a key among the others, which none of them has.
        while rows := self._metastore.scan(namespace.id, "", after, 1):
            after = rows[0].name
            await self._one(after, namespace, shared, result, job)
            seen += 1
            if seen % BATCH == 0:
                await self._note(namespace, partial(replace, after=after, done=result.objects))
        await self._note(namespace, partial(replace, after=after, done=result.objects, past_all=True))
        prefix = f"{namespace.id.hex()}/"
        while moved := self._rows.names(MOVED, prefix):
            for name in moved:
                await self._one(name.removeprefix(prefix), namespace, shared, result, job)
                await self._rows.remove(MOVED, name)
        await self._note(namespace, lambda row: RewriteRow() if row.again else None)
        return result

    async def _one(self, key: str, namespace: Namespace, shared: set[Version], result: Rewritten, job: Job) -> None:
        try:
            result.objects += await self._renew(ObjectName(namespace.name, key), namespace, shared)
        except (CorruptRecord, Unreadable) as error:
            if _may_be_read_again(error):
                raise
            result.unreadable += [key][: TOLD - len(result.unreadable)]
        job.progress(result.objects, max(result.objects, self._metastore.usage(namespace.id).objects))

    async def _note(self, namespace: Namespace, change: Callable[[RewriteRow], RewriteRow | None]) -> None:
        """Make the row what `change` says, None to remove it. NotFound if the namespace went, and it with it."""

        def noted(before: StoredRow | None) -> bytes | None:
            if before is None:
                raise no_namespace(namespace.name)
            row = change(RewriteRow.decode(before.value))
            return None if row is None else row.encode()

        await self._rows.change(TABLE, namespace.id.hex(), noted)

    async def _renew(self, name: ObjectName, begun_in: Namespace, shared: set[Version]) -> bool:
        seen: set[Version] = set()  # a conflict may also be with a change of somebody else's that failed
        while len(seen) < LOOKS:
            namespace = self._namespaces.get(name.namespace)
            if namespace.id != begun_in.id:
                raise NotFound(f"the namespace {name.namespace} was deleted meanwhile")
            try:
                stored = self._objects.find(name)
                seen.add(stored.version)
                if stored.version not in shared:
                    await self._again(stored, namespace, shared)
            except NotFound:
                return False
            except Conflict:
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


def _may_be_read_again(error: ZstorError) -> bool:
    """Whether shards are away that may have what is lacking."""
    shares = error.data.get("shares")
    return isinstance(shares, list) and any(share["state"] == "unreachable" for share in shares)
