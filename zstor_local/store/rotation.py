"""A new master key: committed first, then put in the old one's place, then every record is sealed anew.

1  master.key.next, fsynced with its directory
2  the record of the older keys, sealed under the next key, in the logs of all shards and the metastore   ← the rotation happens
3  master.key.next → master.key
4  the committer seals with the next key; the same record says up to which sequence the old one counts
5  every record up to that sequence is sealed anew, and with it the data key that it wraps
6  the same record says that this is done

A start finds out how far that came (store/unlocking.py) and goes on. No step is ever taken back after 2.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import trio

from zstor_local.coding.keys import KeyHasher
from zstor_local.errors import Busy, IoError, OutcomeUnknown, Unavailable, ZstorError, errno_name
from zstor_local.metastore.base import Metastore, Row
from zstor_local.model.ids import NamespaceId
from zstor_local.model.masterkey import KEY_BYTES, NEXT, MasterKey, OlderKey
from zstor_local.model.record import NO_VERSION, STORE_WIDE, Envelope, Kind, ObjectRecord
from zstor_local.model.storewide import KeysRecord, NamespaceRecord
from zstor_local.runtime import Runtime
from zstor_local.shards.pool import ShardPool
from zstor_local.store.change import Decision, NewRecord
from zstor_local.store.committer import Committer
from zstor_local.store.jobs import Job, Jobs
from zstor_local.store.keyfile import drop_next_key, finish_key, key_exists, write_unfinished_key
from zstor_local.store.namespaces import row_name
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.unlocking import KEYS_ROW

BATCH: Final = 100  # records sealed anew in one change

METHOD: Final = "key.rotate"

log = logging.getLogger("zstor.store")


class Rotation:
    """The use case, and the work that it leaves behind."""

    def __init__(
        self, runtime: Runtime, key_file: str, metastore: Metastore, pool: ShardPool, committer: Committer, sealer: RecordSealer,
        hasher: KeyHasher, jobs: Jobs,
    ) -> None:  # fmt: skip
        self._runtime = runtime
        self._key_file = key_file
        self._metastore = metastore
        self._pool = pool
        self._committer = committer
        self._sealer = sealer
        self._hasher = hasher
        self._jobs = jobs
        self._rotating = False

    def record(self) -> KeysRecord | None:
        """What the store keeps of its older keys; None if it was never given another one."""
        return self.dated()[0]

    def dated(self) -> tuple[KeysRecord | None, int]:
        """That, and the sequence of its last change; 0 if there was none."""
        envelope = self._metastore.get(STORE_WIDE, KEYS_ROW)
        return self._decoded(envelope), 0 if envelope is None else envelope.sequence

    @property
    def pending(self) -> bool:
        """Whether there may be records that are still to be sealed anew."""
        record = self.record()
        return record is not None and not record.settled

    async def rotate(self) -> Job:
        """Give the store a new master key. The key file has it when this returns, and all that is written from now on needs it. The
        job seals the records anew. Shard servers let in who has the older ones too, until `retire`.

        Busy while the records of an earlier rotation are being sealed anew. After an error the old key stays; after OutcomeUnknown or
        IoError the next start of the daemon tells.
        """
        if self._rotating or self.pending:
            raise Busy("the records of an earlier rotation are still being sealed anew", hint="try again when `zstor status` says so")
        self._rotating = True
        try:
            with trio.CancelScope(shield=True):
                await self._rotate()
        finally:
            self._rotating = False
        return self._jobs.start(METHOD, self._settle)

    async def _rotate(self) -> None:
        ring = self._sealer.ring
        if key_exists(self._runtime.files, self._key_file + NEXT):  # the store may need that key: it must not be lost
            raise Unavailable("an earlier rotation is in doubt", hint="restart the daemon: its start finds out", retryable=False)
        master = MasterKey(self._sealer.store_id, self._runtime.randomness.bytes(KEY_BYTES))
        await self._on_disk(lambda: write_unfinished_key(self._runtime.files, self._key_file, master, NEXT), "stays as it was")
        older = (OlderKey(ring.master), *ring.older)
        now = self._runtime.clock.now()
        ring.announce(master.key)
        try:
            await self._commit(lambda before: KeysRecord(older, now, retired=0 if before is None else before.retired))
        except OutcomeUnknown:
            raise  # the next start of the daemon sees what came of it
        except ZstorError:
            ring.withdraw()
            drop_next_key(self._runtime.files, self._key_file)
            raise
        await self._on_disk(lambda: finish_key(self._runtime.files, self._key_file, NEXT), "is replaced at the daemon's next start")
        try:
            await self._commit(self._switched)
        except ZstorError as error:
            log.warning("the end of the old master key is not recorded yet: %s", error)

    async def retire(self) -> None:
        """From now on the older keys are for no shard server any more: each is told when it is there. They still open what is old.

        Durable when this returns; nothing to do is fine. Busy while there is a rotation.
        """
        if self._rotating:
            raise Busy("the master key is being replaced", hint="try again when that is done")
        record = self.record()
        if record is None or record.retired == len(record.older):
            return
        count = len(record.older)  # and no key that is replaced meanwhile
        with trio.CancelScope(shield=True):
            await self._commit(lambda before: replace(_there(before), retired=count))

    async def _on_disk(self, work: Callable[[], None], then: str) -> None:
        try:
            await self._runtime.threads.run(work)
        except OSError as error:
            name = errno_name(error)
            raise IoError(f"the key file {self._key_file} could not be written ({name}); it {then}", errno=name) from error

    # --- Afterwards ---

    def go_on(self) -> None:
        """At a start: what an earlier life did not come to."""
        if self.pending:
            self._jobs.start(METHOD, self._settle)

    async def _settle(self, job: Job) -> dict[str, int]:
        """Seal every record anew that the present key did not seal. What is done stays done, wherever this is broken off."""
        ring = self._sealer.ring
        if not ring.older or ring.older[0].through is None:
            await self._commit(self._switched)
        through = ring.older[0].through
        if through is None:
            raise AssertionError("the key before the present one has its limit")
        done = 0
        for space in [STORE_WIDE, *self._namespaces()]:
            since = 0
            while rows := [row for row in self._metastore.changes(space, since, BATCH) if row.envelope.sequence <= through]:
                since = rows[-1].envelope.sequence
                job.begin_commit()
                with trio.CancelScope(shield=True):
                    await self._renew(space, rows)
                done += len(rows)
                job.progress(done, message="records")
        job.begin_commit()
        with trio.CancelScope(shield=True):
            await self._commit(lambda before: replace(self._kept(before), settled=True))
        return {"records": done}

    def _switched(self, before: KeysRecord | None) -> KeysRecord:
        """Step 4, in the committer's thread; also where a rotation did not come to it: nothing was sealed with the old key since."""
        ring = self._sealer.ring
        ring.switch()
        ring.limit(self._committer.last_given)
        return self._kept(before)

    def _kept(self, before: KeysRecord | None) -> KeysRecord:
        return replace(_there(before), older=self._sealer.ring.older)

    async def _renew(self, space: NamespaceId, rows: Sequence[Row]) -> None:
        stale = await self._runtime.threads.run(lambda: [row for row in rows if not self._sealer.is_sealed_anew(row.envelope)])
        if not stale:
            return

        def decide(_: Envelope | None) -> Decision:
            same = [row for row in stale if self._committer.view.newest(space, row.name) == row.envelope]
            return Decision({(space, row.name): self._renewed(row.envelope) for row in same})

        await self._committer.commit(space, "", decide)

    def _renewed(self, envelope: Envelope) -> NewRecord:
        """The same record, to be sealed again; its copies go where a rebuild looks for them."""
        plain = self._sealer.open(envelope)
        copies, k = self._pool.numbers, self._pool.majority
        if envelope.kind is Kind.OBJECT:
            keys, record = self._sealer.keys(envelope.namespace), ObjectRecord.decode(plain)
            plain = replace(record, wrapped_key=keys.wrap(keys.unwrap(record.wrapped_key))).encode()
            copies, k = sorted({*record.placement}), record.policy.k
        return NewRecord(envelope.kind, envelope.key_hash, envelope.version, plain, copies, k=k)

    def _namespaces(self) -> Iterator[NamespaceId]:
        after: str | None = None
        while rows := self._metastore.scan(STORE_WIDE, row_name(""), after, BATCH):
            for row in rows:
                yield NamespaceRecord.decode(self._sealer.open(row.envelope)).id
            after = rows[-1].name

    async def _commit(self, make: Callable[[KeysRecord | None], KeysRecord]) -> None:
        """The record of the older keys, made of the one before in the committer's thread, on a majority of the shards."""

        def decide(before: Envelope | None) -> Decision:
            hashed, plain = self._hasher.key_hash(STORE_WIDE, KEYS_ROW), make(self._decoded(before)).encode()
            shards, majority = self._pool.numbers, self._pool.majority
            record = NewRecord(Kind.KEYS, hashed, NO_VERSION, plain, shards, quorum=majority, k=majority)
            return Decision({(STORE_WIDE, KEYS_ROW): record})

        await self._committer.commit(STORE_WIDE, KEYS_ROW, decide)

    def _decoded(self, envelope: Envelope | None) -> KeysRecord | None:
        return None if envelope is None else KeysRecord.decode(self._sealer.open(envelope))


def _there(record: KeysRecord | None) -> KeysRecord:
    """Of a store that had a rotation."""
    if record is None:
        raise AssertionError("the rotation has written it")
    return record
