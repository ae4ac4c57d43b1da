"""Objects: write, read, delete, stat, list. Arguments come checked; results are `Stored` versions, which `metadata` describes."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import trio

from zstor_local import limits
from zstor_local.errors import AlreadyExists, Busy, Conflict, CorruptRecord, Incomplete, NotFound, ZstorError
from zstor_local.metastore.base import Debt, Garbage, Intent, Metastore, Owed
from zstor_local.model.ids import ObjectName, ShareId, Version
from zstor_local.model.record import Envelope, Kind, ObjectRecord, Tombstone, is_small
from zstor_local.runtime import Buffer, Runtime
from zstor_local.shards.base import ShardError
from zstor_local.shards.pool import ShardPool
from zstor_local.store.caller import Caller
from zstor_local.store.coding import (
    INLINE_CODING_BYTES,
    STREAM_BUFFERS,
    Coded,
    LargeWrite,
    ScratchPool,
    code_small,
    new_version,
)
from zstor_local.store.committer import Committer, Decision, NewRecord, not_enough_shards
from zstor_local.store.namespaces import Namespace, Namespaces
from zstor_local.store.reading import INLINE_READ_BYTES, ObjectReader, Range, stretch
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.sinks import FileSink, MemorySink, OrderedSink
from zstor_local.store.sources import BytesSource, FileSource, StreamSource

STREAM_BUDGET_BYTES: Final = 64 * limits.MIB  # plain bytes that all streams together may hold
DIGEST_PREFIX: Final = "blake3:"
LIST_TURN: Final = 50  # records opened between two turns of other tasks

Source = BytesSource | FileSource | StreamSource


@dataclass(frozen=True, slots=True)
class Stored:
    """A version as the metastore knows it. `owed` counts shards still to be told or filled, `shares_owed` those without their share."""

    namespace: str
    record: ObjectRecord
    envelope: Envelope
    owed: int = 0
    shares_owed: int = 0

    @property
    def version(self) -> Version:
        return self.envelope.version


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """What a write asks for beside its bytes. `if_version` is compared when the change commits."""

    references: Sequence[str] = ()
    keep_references: bool = False
    user: Mapping[str, object] = field(default_factory=dict)
    if_version: Version | None = None
    exclusive: bool = False
    expected_size: int | None = None
    expected_digest: str | None = None


class Objects:
    """The use cases of objects."""

    def __init__(
        self,
        runtime: Runtime,
        metastore: Metastore,
        pool: ShardPool,
        committer: Committer,
        namespaces: Namespaces,
        sealer: RecordSealer,
        *,
        write_quorum: int | None,
        on_garbage: Callable[[], None],
        on_bad_shares: Callable[[Version, Mapping[int, str]], None],
    ) -> None:
        self._runtime = runtime
        self._metastore = metastore
        self._pool = pool
        self._committer = committer
        self._namespaces = namespaces
        self._sealer = sealer
        self._write_quorum = write_quorum
        self._on_garbage = on_garbage
        self._on_bad_shares = on_bad_shares
        self._scratches = ScratchPool()
        self._leases: Counter[Version] = Counter()
        self._streaming = 0

    # --- Write ---

    async def write(self, name: ObjectName, source: Source, options: WriteOptions, caller: Caller) -> Stored:
        """Store the bytes as the key's new version; durable when this returns. On any error the old version stays as it was."""
        namespace = await self._namespaces.find_or_create(name.namespace)
        self._check_conditions(self._metastore.get(namespace.id, name.key), options)
        data, rest = await self._beginning(namespace, source)
        if rest is None:
            return await self._write_small(namespace, name, data, options, caller)
        with self._stream_memory(namespace, rest):
            return await self._write_large(namespace, name, data, rest, options, caller)

    async def _beginning(self, namespace: Namespace, source: Source) -> tuple[Buffer, FileSource | StreamSource | None]:
        """The bytes of a small object and None, or what was read of a large one's stream, and where the rest comes from."""
        policy = namespace.policy
        if isinstance(source, BytesSource):
            if is_small(len(source.data), policy):
                return source.data, None
            return source.data, _Ended()
        if isinstance(source, FileSource):
            if not is_small(source.size, policy):
                return b"", source
            buffer = bytearray(source.size)

            def read() -> None:
                source.read_at(memoryview(buffer), 0)
                source.verify()

            await self._runtime.threads.run(read)
            return buffer, None
        buffer = bytearray()
        window = memoryview(bytearray(64 * limits.KIB))
        while is_small(len(buffer), policy):
            count = await source.read_into(window)
            if count == 0:
                return buffer, None
            buffer += window[:count]
        return buffer, source

    @contextmanager
    def _stream_memory(self, namespace: Namespace, source: FileSource | StreamSource) -> Iterator[None]:
        """Room for a stream's chunks in memory, or Busy. Files are read by the workers, into buffers of theirs."""
        wanted = 0 if isinstance(source, FileSource) else STREAM_BUFFERS * namespace.policy.chunk_size
        if self._streaming + wanted > STREAM_BUDGET_BYTES:
            raise Busy("too many streams are running", hint="try again when one of them has ended", limit=STREAM_BUDGET_BYTES)
        self._streaming += wanted
        try:
            yield
        finally:
            self._streaming -= wanted

    async def _write_small(self, namespace: Namespace, name: ObjectName, data: Buffer, options: WriteOptions, caller: Caller) -> Stored:
        version = new_version(self._runtime)
        placement = self._place(namespace, version)
        key = self._runtime.randomness.bytes(32)

        def code() -> Coded:
            with self._scratches.borrow() as scratch:
                return code_small(self._sealer.store_id, namespace, version, key, placement, data, scratch)

        coded = code() if len(data) <= INLINE_CODING_BYTES else await self._runtime.threads.run(code)
        _check_expected(coded, options)
        return await self._publish(namespace, name, coded, options, caller)

    async def _write_large(
        self,
        namespace: Namespace,
        name: ObjectName,
        data: Buffer,
        source: FileSource | StreamSource,
        options: WriteOptions,
        caller: Caller,
    ) -> Stored:
        version = new_version(self._runtime)
        placement = self._place(namespace, version)
        await self._committer.commit(namespace.id, name.key, lambda _: Decision(intents=[Intent(version, placement)]))
        write = LargeWrite(
            self._runtime, self._pool, self._scratches, self._sealer.store_id, namespace, version, placement, self._quorum(namespace)
        )
        total = source.size if isinstance(source, FileSource) else options.expected_size
        try:
            with self._pool.large_write():
                await self._runtime.threads.run(write.begin)
                if isinstance(source, FileSource):
                    await write.code_file(source, lambda done: caller.progress(done, total))
                else:
                    await write.code_stream(data, source, lambda done: caller.progress(done, total))
                coded = await write.finish()
            _check_expected(coded, options)
            return await self._publish(namespace, name, coded, options, caller)
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await self._undo(namespace, name, write, version, placement)
            raise _single(error) from None

    async def _undo(
        self, namespace: Namespace, name: ObjectName, write: LargeWrite, version: Version, placement: tuple[int, ...]
    ) -> None:
        """Turn the intent of a write that failed into garbage. If that cannot be committed, the next start does it.

        A version whose commit is in doubt is left alone: its record may be there.
        """
        current = self._metastore.get(namespace.id, name.key)
        if current is not None and current.version == version:
            return
        await self._runtime.threads.run(write.abort)
        garbage = [Garbage(number, ShareId(version, index), small=False) for index, number in enumerate(placement)]
        try:
            await self._committer.commit(namespace.id, name.key, lambda _: Decision(intents_done=[version], garbage=garbage))
        except ZstorError:
            return
        self._on_garbage()

    async def _publish(self, namespace: Namespace, name: ObjectName, coded: Coded, options: WriteOptions, caller: Caller) -> Stored:
        """Commit a coded object as the key's new version: the moment the write happens."""
        now = self._runtime.clock.now()
        published: ObjectRecord | None = None
        replaced = False

        def decide(current: Envelope | None) -> Decision:
            nonlocal published, replaced
            self._check_conditions(current, options)
            old = None if current is None else self._open(current)
            replaced = old is not None
            references = tuple(old.references if options.keep_references and old is not None else options.references)
            published = ObjectRecord(
                key=name.key,
                size=coded.size,
                digest=coded.digest,
                created=now if old is None else old.created,
                modified=now,
                policy=namespace.policy,
                wrapped_key=coded.wrapped_key,
                placement=coded.placement,
                share_bytes=coded.share_bytes,
                chunk_table=b"" if coded.table_in_shares else coded.chunk_table,
                table_blob=coded.table_in_shares,
                references=references,
                user=options.user,
            )
            change = self._put(namespace, name, published, coded)
            return change if old is None or current is None else self._replacing(change, current, old)

        with caller.committing():
            committed = await self._committer.commit(namespace.id, name.key, decide)
        if replaced:
            self._on_garbage()
        if published is None or committed.envelope is None:
            raise AssertionError("a committed write has a record")
        shares_owed = {*committed.shares_owed, *(coded.placement[index] for index in coded.failed)}
        owed = {*committed.owed, *shares_owed}
        return Stored(name.namespace, published, committed.envelope, len(owed), len(shares_owed))

    def _put(self, namespace: Namespace, name: ObjectName, record: ObjectRecord, coded: Coded) -> Decision:
        shares = {number: (index, coded.shares[index]) for index, number in enumerate(coded.placement)} if coded.shares else {}
        new = NewRecord(
            kind=Kind.OBJECT,
            key_hash=namespace.key_hash(name.key),
            version=coded.version,
            plain=record.encode(),
            copies=coded.placement,
            shares=shares,
            quorum=self._quorum(namespace),
            k=record.policy.k,
        )
        debts = [
            Debt(coded.placement[index], Owed.SHARE, namespace.id, name.key, coded.version, index) for index in sorted(coded.failed)
        ]
        done = [] if record.small else [coded.version]
        return Decision(new, intents_done=done, debts=debts, objects=1, bytes=record.size)

    def _replacing(self, change: Decision, current: Envelope, old: ObjectRecord) -> Decision:
        """The same change, with the old version's shares to be freed and its shards told."""
        if change.record is None:
            raise AssertionError("only a record replaces a record")
        copies = sorted({*change.record.copies, *old.placement})
        return replace(
            change,
            record=replace(change.record, copies=copies),
            garbage=[Garbage(n, ShareId(current.version, index), old.small) for index, n in enumerate(old.placement)],
            debts_paid=self._metastore.debts_of(current.version),
            objects=change.objects - 1,
            bytes=change.bytes - old.size,
        )

    # --- Delete ---

    async def delete(self, name: ObjectName, if_version: Version | None, caller: Caller) -> int:
        """Bury the key; durable when this returns. Returns how many shards still have to be told. NotFound if it is not there."""
        namespace = self._namespaces.find(name.namespace)
        if namespace is None:
            raise _no_key(name)

        def decide(current: Envelope | None) -> Decision:
            if current is None:
                raise _no_key(name)
            _check_version(current, if_version)
            old = self._open(current)
            tombstone = NewRecord(
                kind=Kind.TOMBSTONE,
                key_hash=namespace.key_hash(name.key),
                version=current.version,
                plain=Tombstone(name.key, self._runtime.clock.now()).encode(),
                copies=old.placement,
                k=old.policy.k,
            )
            return self._replacing(Decision(tombstone), current, old)

        with caller.committing():
            committed = await self._committer.commit(namespace.id, name.key, decide)
        self._on_garbage()
        return len(committed.owed)

    # --- Read ---

    def find(self, name: ObjectName) -> Stored:
        """The key's newest version, or NotFound."""
        namespace = self._namespaces.find(name.namespace)
        envelope = None if namespace is None else self._metastore.get(namespace.id, name.key)
        if envelope is None:
            raise _no_key(name)
        stored = Stored(name.namespace, self._open(envelope), envelope)
        if stored.record.key != name.key:
            raise CorruptRecord("the record under this key is another key's", hint="run `zstor rebuild`")
        return self._with_debts(stored)

    def from_seal(self, seal: bytes) -> Stored:
        """The version that a seal, as a write returned it, names; CorruptRecord if it is not authentic."""
        envelope = Envelope.parse(seal)
        namespace = self._namespaces.by_id(envelope.namespace)
        if namespace is None or envelope.kind is not Kind.OBJECT:
            raise CorruptRecord("the seal is not one of this store's objects", hint="give the metadata as a write returned it")
        return self._with_debts(Stored(namespace.name, self._open(envelope), envelope))

    def _with_debts(self, stored: Stored) -> Stored:
        debts = self._metastore.debts_of(stored.version)
        if not debts:
            return stored
        shares = {debt.shard for debt in debts if debt.kind is Owed.SHARE}
        return replace(stored, owed=len({debt.shard for debt in debts}), shares_owed=len(shares))

    @asynccontextmanager
    async def _reader(self, stored: Stored) -> AsyncIterator[ObjectReader]:
        """The version, open; its shares are not freed meanwhile. What was found bad goes on the repair list."""
        namespace = self._namespaces.find(stored.namespace)
        if namespace is None:
            raise AssertionError("an object that was found has a namespace")
        version = stored.version
        self._leases[version] += 1
        try:
            reader = ObjectReader(self._runtime, self._pool, self._scratches, self._sealer.store_id, namespace, version, stored.record)
            try:
                yield reader
            finally:
                reader.close()
                if reader.bad_shares:
                    self._on_bad_shares(version, reader.bad_shares)
        finally:
            self._leases[version] -= 1
            if not self._leases[version]:
                del self._leases[version]
                self._on_garbage()

    def leased(self, version: Version) -> bool:
        """Whether somebody reads this version now."""
        return version in self._leases

    async def read(self, stored: Stored, offset: int | None = None, length: int | None = None) -> bytes:
        """The bytes in memory; the caller has checked that they are few."""
        part = stretch(stored.record, offset, length)
        async with self._reader(stored) as reader:
            if part.length <= INLINE_READ_BYTES:
                value = reader.small_value(part)
                if value is not None:
                    return value
            sink = MemorySink()
            await _alone(reader.to_stream(sink, part, lambda done: None))
            return sink.value()

    async def read_to_file(self, stored: Stored, sink: FileSink, part: Range, caller: Caller) -> None:
        """The bytes to their places in a regular file."""
        async with self._reader(stored) as reader:
            await _alone(reader.to_file(sink, part, lambda done: caller.progress(done, part.length)))

    async def read_to_stream(self, stored: Stored, sink: OrderedSink, part: Range, caller: Caller) -> None:
        """The bytes in order to a pipe or socket."""
        wanted = STREAM_BUFFERS * stored.record.policy.chunk_size
        if self._streaming + wanted > STREAM_BUDGET_BYTES:
            raise Busy("too many streams are running", hint="try again when one of them has ended", limit=STREAM_BUDGET_BYTES)
        self._streaming += wanted
        try:
            async with self._reader(stored) as reader:
                await _alone(reader.to_stream(sink, part, lambda done: caller.progress(done, part.length)))
        finally:
            self._streaming -= wanted

    async def list(self, namespace_name: str, prefix: str, after: str | None, limit: int) -> AsyncIterator[Stored]:
        """Newest versions in the order of their keys' bytes, at most `limit`. A record that does not open ends it with its error."""
        namespace = self._namespaces.find(namespace_name)
        if namespace is None:
            return
        for position, row in enumerate(self._metastore.scan(namespace.id, prefix, after, limit)):
            if position % LIST_TURN == LIST_TURN - 1:
                await trio.lowlevel.checkpoint()
            yield self._with_debts(Stored(namespace_name, self._open(row.envelope), row.envelope))

    # --- What they share ---

    def _open(self, envelope: Envelope) -> ObjectRecord:
        return ObjectRecord.decode(self._sealer.open(envelope))

    def _place(self, namespace: Namespace, version: Version) -> tuple[int, ...]:
        """Shards for a version's shares; NotEnoughShards at once if too few are there."""
        placement = self._pool.place(version, namespace.policy.m)
        states = {number: self._pool.state(number) for number in placement}
        usable = sum(state == "ok" for state in states.values())
        quorum = self._quorum(namespace)
        if usable < quorum:
            bad = {self._pool.name(n): ShardError(state, self._pool.reason(n)) for n, state in states.items() if state != "ok"}
            raise not_enough_shards(usable, quorum, bad)
        return placement

    def _quorum(self, namespace: Namespace) -> int:
        least = namespace.policy.write_quorum
        return least if self._write_quorum is None else min(max(least, self._write_quorum), namespace.policy.m)

    def _check_conditions(self, current: Envelope | None, options: WriteOptions) -> None:
        if options.exclusive and current is not None:
            raise AlreadyExists("the key exists already", hint="leave `exclusive` out to replace it", current=current.version.hex())
        if options.if_version is not None:
            _check_version(current, options.if_version)


class _Ended:
    """The rest of a value that came whole: nothing."""

    async def read_into(self, buffer: memoryview) -> int:
        return 0


def _check_version(current: Envelope | None, wanted: Version | None) -> None:
    if wanted is None:
        return
    found = None if current is None else current.version.hex()
    if found != wanted.hex():
        raise Conflict(
            f"the key is at version {found}, not {wanted.hex()}" if found else "the key does not exist",
            hint="read it again and decide anew",
            current=found,
        )


def _check_expected(coded: Coded, options: WriteOptions) -> None:
    if options.expected_size is not None and coded.size != options.expected_size:
        raise Incomplete(
            f"{coded.size} bytes arrived, {options.expected_size} were announced; the old value stays",
            hint="send it again",
            size=coded.size,
        )
    digest = DIGEST_PREFIX + coded.digest.hex()
    if options.expected_digest is not None and digest != options.expected_digest:
        raise Incomplete("other bytes arrived than were announced; the old value stays", hint="send it again", digest=digest)


def _no_key(name: ObjectName) -> NotFound:
    return NotFound(f"there is no key {name.key!r} in namespace {name.namespace}", hint="`zstor ls` lists the keys")


async def _alone(work: Awaitable[None]) -> None:
    """Await work that has a nursery of its own, and raise its one error bare."""
    try:
        await work
    except BaseExceptionGroup as group:
        raise _single(group) from None


def _single(error: BaseException) -> BaseException:
    """The error that counts of a group: the first typed one, else the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = list(_leaves(error))
    for kind in (ZstorError, Exception, BaseException):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return error


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each
