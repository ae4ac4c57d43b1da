"""A new master key: committed first, then put in the old one's place, then every record is sealed anew.

1  master.key.next, fsynced with its directory
2  the record of the older keys, sealed under the next key, in the logs of all shards and the metastore   ← the rotation happens
3  master.key.next → master.key
4  the committer seals with the next key; the same record says up to which sequence the old one counts
5  every record up to that sequence is sealed anew, and with it the data key that it wraps; whoever changes one before its turn does
   the same (store/stored.py)
6  the same record says that this is done

A start finds out how far that came (store/unlocking.py) and goes on. No step is ever taken back after 2. A record that does not
open is passed over in 5, and 6 waits until it is mended. The older keys stay in the record for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Final

import trio

from zstor_local.errors import Busy, Conflict, CorruptRecord, IoError, OutcomeUnknown, ShuttingDown, Unavailable, ZstorError, errno_name
from zstor_local.metastore.base import Row
from zstor_local.model.ids import NamespaceId
from zstor_local.model.masterkey import KEY_BYTES, NEXT, MasterKey, OlderKey
from zstor_local.model.record import NO_VERSION, STORE_WIDE, Envelope, Kind
from zstor_local.model.storewide import KeysRecord
from zstor_local.store.change import Decision, NewRecord
from zstor_local.store.core import Core
from zstor_local.store.damaged_rows import Damage, DamagedRows, renewed
from zstor_local.store.jobs import Job, Jobs
from zstor_local.store.keyfile import drop_next_key, finish_key, key_exists, write_unfinished_key
from zstor_local.store.namespaces import Namespaces
from zstor_local.store.pace import unpaced
from zstor_local.store.unlocking import KEYS_ROW

BATCH: Final = 100  # records sealed anew in one change
TOLD: Final = 3  # damaged rows that an error names in its message

METHOD: Final = "key.rotate"

log = logging.getLogger("zstor.store")


class Rotation:
    """The use case, and the work that it leaves behind."""

    def __init__(self, core: Core, key_file: str, jobs: Jobs, namespaces: Namespaces, damaged_rows: DamagedRows) -> None:
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._sealer = core.sealer
        self._hasher = core.hasher
        self._key_file = key_file
        self._jobs = jobs
        self._namespaces = namespaces
        self._damaged_rows = damaged_rows
        self._changing = False  # the key, or what the record of the older ones says of them
        self._job: Job | None = None  # what seals anew, or was the last to try

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

    def trouble(self) -> ZstorError | None:
        """Why the job that seals anew has ended without coming to its end; None while it runs, and where there was none."""
        return None if self._job is None else self._job.error

    async def rotate(self) -> tuple[Job, bool]:
        """Give the store a new master key. The key file has it when this returns, and all that is written from now on needs it. The
        job seals the records anew. Shard servers let in who has the older ones too, until `retire`.

        Returns the job, and whether there is a new key: where an earlier rotation did not come to its end that is gone on with, and
        its key stays. Busy while its job runs. After an error the old key stays; after OutcomeUnknown or IoError the next start of the
        daemon tells.
        """
        if self._is_running:
            raise Busy("the records of an earlier rotation are still being sealed anew", hint="try again when `zstor status` says so")
        if self.pending:
            with self._alone():
                return self._start(), False
        with self._alone(), self._jobs.place_kept(), trio.CancelScope(shield=True):
            await self._rotate()
        return self._start(), True

    def _start(self) -> Job:
        self._job = self._jobs.start(METHOD, self._settle)
        return self._job

    @property
    def _is_running(self) -> bool:
        return self._job is not None and self._job.running

    @property
    def _in_doubt(self) -> bool:
        """Whether an earlier rotation may have been committed or not. IoError where nobody can look."""
        try:
            return key_exists(self._runtime.files, self._key_file + NEXT)
        except OSError as error:
            name = errno_name(error)
            raise IoError(f"the directory of the key file {self._key_file} cannot be looked at ({name})", errno=name) from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else changes the record of the older keys meanwhile: from its announcement on the next key seals that record, and a
        start takes whatever it sealed for the store's. Busy, or Unavailable while the store may need a key that is not the key file's.
        """
        if self._changing:
            raise Busy("the master key is being replaced or retired", hint="try again when that is done")
        if self._in_doubt:
            raise Unavailable("an earlier rotation is in doubt", hint="restart the daemon: its start finds out", retryable=False)
        self._changing = True
        try:
            yield
        finally:
            self._changing = False

    async def _rotate(self) -> None:
        ring = self._sealer.ring
        master = MasterKey(self._sealer.store_id, self._runtime.randomness.bytes(KEY_BYTES))
        try:
            await self._on_disk(lambda: write_unfinished_key(self._runtime.files, self._key_file, master, NEXT), "stays as it was")
        except IoError:
            with suppress(OSError):  # nothing was sealed with it
                drop_next_key(self._runtime.files, self._key_file)
            raise
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
        with self._alone(), trio.CancelScope(shield=True):
            record = self.record()
            if record is not None and record.retired < len(record.older):
                await self._commit(lambda before: replace(_there(before), retired=len(record.older)))

    async def _on_disk(self, work: Callable[[], None], then: str) -> None:
        try:
            await self._runtime.threads.run(work)
        except OSError as error:
            name = errno_name(error)
            raise IoError(f"the key file {self._key_file} could not be written ({name}); it {then}", errno=name) from error

    # --- Afterwards ---

    def go_on(self) -> None:
        """What an earlier life, or an earlier try, did not come to the end of; nothing while it is under way, or in doubt, or where
        that cannot be seen.
        """
        with suppress(Busy, ShuttingDown, CorruptRecord, IoError):
            if not (self._changing or self._is_running or self._in_doubt) and self.pending:
                self._start()

    async def _settle(self, job: Job) -> dict[str, int]:
        """Seal every record anew that the present key did not seal. What is done stays done, wherever this is broken off.

        CorruptRecord at the end if some do not open, and cannot be mended: they are what the older keys are still needed for.
        """
        ring = self._sealer.ring
        if not ring.older or ring.older[0].through is None:
            await self._commit(self._switched)
        through = ring.older[0].through
        if through is None:
            raise AssertionError("the key before the present one has its limit")
        done, damage = 0, Damage()
        for space in self._spaces():
            since = 0
            damaged: list[Row] = []
            while rows := [row for row in self._metastore.changes(space, since, BATCH) if row.envelope.sequence <= through]:
                since = rows[-1].envelope.sequence
                job.begin_commit()
                with trio.CancelScope(shield=True):
                    damaged += await self._renew(space, rows)
                done += len(rows)
                job.progress(done, message="records")
            await self._damaged_rows.mend(damaged, damage, unpaced)
        if damage.stay:
            raise self._stuck(damage)
        job.begin_commit()
        with trio.CancelScope(shield=True):
            await self._commit(lambda before: replace(self._kept(before), settled=True))
        return {"records": done}

    def _spaces(self) -> Iterator[NamespaceId]:
        yield STORE_WIDE
        yield from self._namespaces.ids()  # only now, as a namespace's own row may have been mended

    def _stuck(self, damage: Damage) -> CorruptRecord:
        found = [self._place(row) for row in damage.first]
        some = ", ".join(found[:TOLD]) + (", …" if damage.stay > TOLD else "")
        return CorruptRecord(
            f"records that do not open, and of which no shard that is there has a good copy: {damage.stay} ({some}); "
            "all others are sealed under the new master key, and the older ones are kept",
            hint="bring back shards that are away, or have `zstor rebuild` make a new metastore; then `zstor key rotate` goes on",
            count=damage.stay,
            rows=found,
        )

    def _place(self, row: Row) -> str:
        """Which row that is, for people."""
        if row.space == STORE_WIDE:
            return row.name
        namespace = self._namespaces.by_id(row.space)
        return f"{row.space.hex() if namespace is None else namespace.name}/{row.name}"

    def _switched(self, before: KeysRecord | None) -> KeysRecord:
        """Step 4, in the committer's thread; also where a rotation did not come to it: nothing was sealed with the old key since."""
        ring = self._sealer.ring
        ring.switch()
        ring.limit(self._committer.last_given)
        return self._kept(before)

    def _kept(self, before: KeysRecord | None) -> KeysRecord:
        return replace(_there(before), older=self._sealer.ring.older)

    async def _renew(self, space: NamespaceId, rows: Sequence[Row]) -> list[Row]:
        """Returns those that do not open."""
        damaged: list[Row] = []
        records: dict[str, tuple[Envelope, NewRecord]] = {}

        def seal() -> None:
            for row in rows:
                if not self._sealer.is_sealed_anew(row.envelope):
                    try:
                        records[row.name] = row.envelope, renewed(self._sealer, self._pool, row.envelope)
                    except CorruptRecord:
                        damaged.append(row)

        def decide(_: Envelope | None) -> Decision:
            same = {name: record for name, (was, record) in records.items() if self._committer.view.newest(space, name) == was}
            return Decision({(space, name): record for name, record in same.items()})

        await self._runtime.threads.run(seal)
        committed = not records
        while not committed:
            with suppress(Conflict):  # a change before this one failed in its group: without it it is decided anew
                await self._committer.commit(space, "", decide)
                committed = True
        return damaged

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
