"""Writing and deleting objects: bytes to shares, shares to a committed version, the old one to the garbage."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from typing import Final, TypeVar

import trio

from zstor_local import limits
from zstor_local.coding.keys import KEY_BYTES
from zstor_local.counted import counted
from zstor_local.errors import AlreadyExists, Conflict, Incomplete, ZstorError
from zstor_local.metastore.base import Debt, Garbage, Intent, Owed
from zstor_local.model.ids import ObjectName, ShareId, Version
from zstor_local.model.record import Envelope, ObjectRecord, is_small
from zstor_local.runtime import Buffer
from zstor_local.store.caller import Caller
from zstor_local.store.change import Committed, Decision
from zstor_local.store.coding import (
    INLINE_CODING_BYTES,
    Coded,
    LargeWrite,
    Planned,
    ScratchPool,
    Watch,
    code_small,
    new_version,
    watch_nothing,
)
from zstor_local.store.commit_room import CommitRoom, coded_bytes
from zstor_local.store.core import Core
from zstor_local.store.edits import Edits, Look, NewShares
from zstor_local.store.errorgroups import single
from zstor_local.store.freeing import Freeing
from zstor_local.store.later import Later
from zstor_local.store.links import Previous, follow, unlink
from zstor_local.store.lost import bury
from zstor_local.store.namespaces import Namespace, Namespaces
from zstor_local.store.placing import Placing
from zstor_local.store.sources import BytesSource, CountedSource, FileSource, StreamSource, announced
from zstor_local.store.stored import Stored, no_key
from zstor_local.store.stream_budget import StreamBudget, Turn
from zstor_local.value import value

DIGEST_PREFIX: Final = "blake3:"

Source = BytesSource | FileSource | StreamSource

T = TypeVar("T")
Publish = Callable[[Coded], Awaitable[T]]  # what is to be done with coded shares


@value()
class WriteOptions:
    """What a write asks for beside its bytes. `if_version` is compared when the change commits."""

    references: Sequence[str] = ()
    keep_references: bool = False
    user: Mapping[str, object] = field(default_factory=dict)
    previous: Previous | None = None
    if_version: Version | None = None
    exclusive: bool = False
    expected_size: int | None = None
    expected_digest: str | None = None


class ObjectWriter:
    """The use cases that change objects. Arguments come checked."""

    def __init__(
        self, core: Core, namespaces: Namespaces, freeing: Freeing, scratches: ScratchPool, streams: StreamBudget, placing: Placing
    ) -> None:
        self._core = core
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._namespaces = namespaces
        self._freeing = freeing
        self._scratches = scratches
        self._streams = streams
        self._room = CommitRoom()
        self._placing = placing

    async def write(self, name: ObjectName, source: Source, options: WriteOptions, caller: Caller) -> Stored:
        """Store the bytes as the key's new version; durable when this returns. On any error the old version stays as it was."""
        namespace = await self._namespaces.find_or_create(name.namespace)
        self._look_ahead(namespace, name, options)
        if namespace.gate.quota is not None:
            source = self._within_quota(namespace, name, source, options.expected_size or 0)

        async def publish(coded: Coded) -> Stored:
            _check_expected(coded, options)
            return await self._publish(namespace, name, coded, options, caller)

        kept = sum(map(len, options.references))
        return await self.store(namespace, source, publish, caller, expected_size=options.expected_size, kept_bytes=kept)

    def write_value(self, name: ObjectName, data: Buffer, options: WriteOptions, caller: Caller) -> Later[Stored] | None:
        """As `write`, of a small value that is in memory: it is coded at once, and its outcome comes with the commit.

        None, and nothing done, where there is more to it, or too much waits for its commit already.
        """
        namespace = self._namespaces.find_to_change(name.namespace)
        if namespace is None or len(data) > INLINE_CODING_BYTES or not is_small(len(data), namespace.policy):
            return None
        size = coded_bytes(len(data), namespace.policy)
        if not self._room.take(size):
            return None
        try:
            self._look_ahead(namespace, name, options)
            coded = self._small_coding(namespace, data, watch_nothing)()
            _check_expected(coded, options)
            later = self._publish(namespace, name, coded, options, caller)
        except BaseException:
            self._room.give(size)
            raise
        later.then(partial(self._room.give, size))
        return later

    def _look_ahead(self, namespace: Namespace, name: ObjectName, options: WriteOptions) -> None:
        """Refuse what will be refused, before bytes are moved in vain; what counts is the look at the commit."""
        if options.exclusive or options.if_version is not None:
            self._check_conditions(self._metastore.get(namespace.id, name.key), options)
        if options.previous is not None:
            follow(self._edits(namespace, self._metastore.get), name.key, options.previous)

    def _within_quota(self, namespace: Namespace, name: ObjectName, source: Source, expected_size: int) -> Source:
        """Refuse what is too large as soon as that is known; others are in want of the room that a stream without an end would take."""
        found = self._edits(namespace, self._metastore.get).find(name.key)
        replaced = 0 if found is None else found.record.size

        def check(size: int) -> None:
            namespace.gate.check_room(namespace.name, lambda: self._metastore.usage(namespace.id), size - replaced)

        if isinstance(source, BytesSource | FileSource):
            check(source.size)
            return source
        check(expected_size)
        return CountedSource(source, check)

    async def store(
        self,
        namespace: Namespace,
        source: Source,
        publish: Publish[T],
        caller: Caller,
        *,
        expected_size: int | None = None,
        watch: Watch = watch_nothing,
        kept_bytes: int = 0,
    ) -> T:
        """Code the bytes into shares and have them published; if that raises and no record has them, the shares are freed.

        `publish` has to commit what `put` or `discard` make of the shares, and looks whether it is what was expected. A stream that
        brings more than `expected_size` is not read any further: it may have no end. `kept_bytes`: what the caller holds meanwhile.
        """
        if expected_size is not None and not isinstance(source, (BytesSource, FileSource)):
            source = announced(source, expected_size)
        if isinstance(source, BytesSource | FileSource) and is_small(source.size, namespace.policy):
            return await self._store_small(namespace, source, publish, watch)
        if isinstance(source, FileSource):
            return await self._write_large(
                namespace, publish, watch, lambda write: write.code_file(source, lambda done: caller.progress(done, source.size))
            )
        value = source.data if isinstance(source, BytesSource) else None
        with self._streams.take(namespace.policy, caller, beginning=value is None, kept_bytes=kept_bytes) as turn:
            rest = _Ended() if isinstance(source, BytesSource) else source
            beginning, ended = await self._beginning(namespace, rest, turn) if value is None else (value, False)
            if ended:
                return await self._store_small(namespace, BytesSource(beginning), publish, watch)
            turn.grow()
            return await self._write_large(
                namespace,
                publish,
                watch,
                lambda write: write.code_stream(beginning, rest, turn, lambda done: caller.progress(done, expected_size)),
            )

    async def _store_small(self, namespace: Namespace, source: BytesSource | FileSource, publish: Publish[T], watch: Watch) -> T:
        """Code and publish a small object when there is room for it beside what else waits for its commit."""
        async with self._room.taken(coded_bytes(source.size, namespace.policy)):
            data = source.data if isinstance(source, BytesSource) else await self._runtime.threads.run(source.read_whole)
            code = self._small_coding(namespace, data, watch)
            return await publish(code() if len(data) <= INLINE_CODING_BYTES else await self._runtime.threads.run(code))

    async def _beginning(self, namespace: Namespace, source: StreamSource, turn: Turn) -> tuple[bytes, bool]:
        """What of a stream tells whether the object is small, and whether it has ended."""
        buffer = bytearray()
        window = memoryview(bytearray(64 * limits.KIB))
        with turn.waiting():
            while is_small(len(buffer), namespace.policy):
                count = await source.read_into(window)
                if count == 0:
                    return bytes(buffer), True
                buffer += window[:count]
        return bytes(buffer), False

    def _small_coding(self, namespace: Namespace, data: Buffer, watch: Watch) -> Callable[[], Coded]:
        """The work of coding a small object, for the loop or for a thread."""
        planned, data_key = self._plan(namespace), self._runtime.randomness.bytes(KEY_BYTES)

        def code() -> Coded:
            with self._scratches.borrow() as scratch:
                return code_small(planned, data_key, data, scratch, watch)

        return code

    def _plan(self, namespace: Namespace) -> Planned:
        """NotEnoughShards or NoSpace if too few shards can take a new version."""
        version = new_version(self._runtime, self._core.committer.last_given)
        placement, refused = self._placing.place(namespace, version)
        return Planned(self._core.sealer.store_id, namespace, version, placement, refused, self._placing.quorum(namespace))

    async def _write_large(
        self,
        namespace: Namespace,
        publish: Publish[T],
        watch: Watch,
        code: Callable[[LargeWrite], Awaitable[None]],
    ) -> T:
        planned = self._plan(namespace)
        await self._committer.commit(namespace.id, "", lambda _: Decision(intents=[Intent(planned.version, planned.placement)]))
        write = LargeWrite(self._runtime, self._pool, self._scratches, planned, watch)
        try:
            with self._pool.large_write():
                await self._runtime.threads.run(write.begin)
                await code(write)
                coded = await write.finish()
            return await publish(coded)
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await self._undo(planned, write)
            raise single(error) from None

    async def _undo(self, planned: Planned, write: LargeWrite) -> None:
        """Turn the intent of a write that failed into garbage. If that cannot be committed, it is tried again; at last the next start
        does it: also where nobody knows whether the metastore has the write's record, as it takes no changes then.
        """
        await self._runtime.threads.run(write.abort)

        def decide(_: Envelope | None) -> Decision:
            begun = any(intent.version == planned.version for intent in self._metastore.intents())
            return _garbage(planned.version, planned.placement) if begun else Decision()  # a record that was committed ended the intent

        try:
            await self._committer.commit(planned.namespace.id, "", decide)
        except ZstorError:
            self._freeing.later(planned.namespace.id, decide)
        else:
            self._freeing.wake()

    def _publish(self, namespace: Namespace, name: ObjectName, coded: Coded, options: WriteOptions, caller: Caller) -> Later[Stored]:
        """Commit a coded object as the key's new version: the moment the write happens."""
        now = self._runtime.clock.now()
        published: ObjectRecord | None = None
        replaced = False

        def decide(current: Envelope | None) -> Decision:
            nonlocal published, replaced
            self._check_conditions(current, options)
            edits = self._edits(namespace)
            earliest = 0 if options.previous is None else follow(edits, name.key, options.previous)
            found = edits.find(name.key)
            old = None if found is None else found.record
            replaced = old is not None
            references = old.references if options.keep_references and old is not None else options.references
            previous = options.previous.key if options.previous is not None else old.previous_key if old is not None else None
            published = coded.record(
                name.key,
                namespace.policy,
                max(earliest, now if old is None else old.created),
                now,
                references=tuple(references),
                user=options.user,
                previous_key=previous,
                next_key=None if old is None else old.next_key,
            )
            return self.put(namespace, edits, coded, published, now)

        def stored(committed: Committed) -> Stored:
            if replaced:
                self._freeing.wake()
            if published is None or committed.envelope is None:
                raise AssertionError("a committed write has a record")
            shares_owed = {*committed.shares_owed, *self._owed(coded).values()}
            owed = {*committed.owed, *shares_owed}
            return Stored(name.namespace, published, committed.envelope, len(owed), len(shares_owed))

        caller.begin_commit()
        return self._committer.commit(namespace.id, name.key, decide).map(stored)

    # --- What a change comes to that publishes coded shares: in the committer's thread ---

    def put(self, namespace: Namespace, edits: Edits, coded: Coded, record: ObjectRecord, now: int) -> Decision:
        """The edits, and the record's key has the coded version. NotEnoughShards if too many of its shards were removed."""
        if not coded.shares:
            self._placing.must_be_there(namespace, coded.placement, coded.failed)
        edits.put(record.key, coded.version, record)
        shares = {}
        if coded.shares:
            shares = {number: (index, coded.shares[index]) for index, number in enumerate(coded.placement) if index not in coded.failed}
        debts = [
            Debt(number, Owed.SHARE, namespace.id, record.key, coded.version, index) for index, number in self._owed(coded).items()
        ]
        return edits.decision(
            now,
            new=NewShares(record.key, shares, self._placing.quorum(namespace)),
            intents_done=() if coded.shares else (coded.version,),
            debts=debts,
        )

    def _owed(self, coded: Coded) -> dict[int, int]:
        """The shares, by index, that shards of the store did not take or get, with those shards' numbers."""
        return {index: number for index in sorted(coded.failed) if self._pool.entry(number := coded.placement[index]) is not None}

    def discard(self, edits: Edits, coded: Coded, now: int) -> Decision:
        """The edits, and nobody needs the coded shares."""
        change = edits.decision(now)
        if coded.shares:  # they were never written
            return change
        unwanted = _garbage(coded.version, coded.placement)
        return replace(change, intents_done=unwanted.intents_done, garbage=[*change.garbage, *unwanted.garbage])

    def _edits(self, namespace: Namespace, look: Look | None = None) -> Edits:
        return Edits(self._core, namespace, look)

    async def delete(self, name: ObjectName, if_version: Version | None, caller: Caller, sealed: Stored | None = None) -> int:
        """Bury the key and join its neighbours; durable when this returns. Returns how many shards still have to be told.

        NotFound if it is not there; but if the metastore has lost it, whoever has kept its metadata (`sealed`) can have it buried.
        """
        namespace = self._namespaces.find_to_change(name.namespace)
        if namespace is None:
            raise no_key(name)

        def decide(current: Envelope | None) -> Decision:
            if current is None:
                if sealed is None or self._metastore.tombstone(namespace.id, name.key) is not None:
                    raise no_key(name)
                return bury(sealed, namespace, self._edits(namespace), self._committer, self._pool.numbers, self._runtime.clock.now())
            check_version(current, if_version)
            edits = self._edits(namespace)
            unlink(edits, name.key)
            edits.remove(name.key)
            return edits.decision(self._runtime.clock.now(), insist=False)

        caller.begin_commit()
        committed = await self._committer.commit(namespace.id, name.key, decide)
        self._freeing.wake()
        return len(committed.owed)

    def _check_conditions(self, current: Envelope | None, options: WriteOptions) -> None:
        if options.exclusive and current is not None:
            raise AlreadyExists("the key exists already", hint="leave `exclusive` out to replace it", current=current.version.hex())
        if options.if_version is not None:
            check_version(current, options.if_version)


def _garbage(version: Version, placement: tuple[int, ...]) -> Decision:
    """A large write whose shares nothing will name."""
    garbage = [Garbage(number, ShareId(version, index), small=False) for index, number in enumerate(placement)]
    return Decision(intents_done=[version], garbage=garbage)


class _Ended:
    """The rest of a value that came whole: nothing."""

    async def read_into(self, buffer: memoryview) -> int:
        return 0


def check_version(current: Envelope | None, wanted: Version | None) -> None:
    """Conflict unless the key is at the wanted version; None wants none."""
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
            f"{counted(coded.size, 'byte')} arrived, {options.expected_size:,} were announced; the old value stays",
            hint="send it again",
            size=coded.size,
        )
    digest = DIGEST_PREFIX + coded.digest.hex()
    if options.expected_digest is not None and digest != options.expected_digest:
        raise Incomplete("other bytes arrived than were announced; the old value stays", hint="send it again", digest=digest)
