"""Presence: which shards are there, looked at all the time, and what becomes of one that comes back.

A shard that was away is opened anew, in the committer's thread: refused if somebody else has written to it meanwhile, and told which
records at the end of its log never came to be, before anything is appended. Then mending gives it what it missed.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from zstor_local.errors import CorruptRecord, IoError
from zstor_local.model.ids import NamespaceId
from zstor_local.model.record import STORE_WIDE, Envelope, Kind
from zstor_local.model.storewide import ShardEntry, VoidRecord
from zstor_local.shards.base import Shard, ShardError
from zstor_local.shards.pool import Absent
from zstor_local.store.core import Core
from zstor_local.store.rownames import FIXED, row_name_of
from zstor_local.store.stored import open_void
from zstor_local.store.voided import has_readers

LOOK_EVERY: Final = 5.0  # seconds
NEW: Final = "it has not been looked at since it was listed"  # why a shard is absent until the next look

log = logging.getLogger("zstor.store")


@dataclass(slots=True)
class Untold:
    """What a shard's log has to be told: what never came to be, and newer records of rows of which it ends with older ones."""

    void: dict[int, NamespaceId] = field(default_factory=dict)  # sequences, each with the space of its record
    newest: list[Envelope] = field(default_factory=list)


class Presence:
    """One task for a store. `open_shard` opens a shard at its place, or raises ShardError."""

    def __init__(
        self,
        core: Core,
        *,
        open_shard: Callable[[ShardEntry], Shard],
        on_return: Callable[[], None],
        on_older: Callable[[], Awaitable[None]],
    ) -> None:
        """`on_older` is called when a shard has come back as an older copy of what it was."""
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._sealer = core.sealer
        self._open_shard = open_shard
        self._on_return = on_return
        self._on_older = on_older
        self._heard: dict[int, int] = {}  # what each shard was seen to know as committed, at most
        self._older = False
        self._turn = trio.Lock()
        self._latencies: dict[int, float] = {}  # of the last looks at shards that are there
        self._told_away: set[int] = set()  # the shards of which the log says that they are not well

    def latency_ms(self, number: int) -> float | None:
        """How long the last look at a shard took; None if it is not there."""
        return self._latencies.get(number)

    async def run(self) -> None:
        while True:
            await trio.sleep(LOOK_EVERY)
            await self.look()

    async def look(self) -> None:
        """Look at every shard now. When this returns, those that came back are open again; what they missed follows."""
        async with self._turn:
            returned: list[int] = []

            async def look_at(number: int) -> None:
                if await self._runtime.threads.run(self._look_at, number):
                    returned.append(number)

            async with trio.open_nursery() as nursery:
                for number in self._pool.numbers:
                    nursery.start_soon(look_at, number)
            back = [number for number in sorted(returned) if await self._runtime.threads.run_commit(self._bring_back, number)]
        if back:
            self._on_return()
        if self._older:
            self._older = False
            await self._on_older()

    def unsettled(self) -> dict[int, Untold]:
        """At a start, before anything is appended to a log (an entry says that what lies before it is settled): by shard, what of an
        earlier life never came to be. Shards that cannot tell are away.
        """
        found: dict[int, Untold] = {}
        for shard in self._pool.opened():
            try:
                found[shard.number] = self.never_committed(shard)
            except ShardError as error:
                self._pool.put(Absent(shard.entry, error.state, str(error)))
        return found

    def settle(self, unsettled: Mapping[int, Untold]) -> None:
        """Tell the shards so, in the committer's thread; one that does not take it is away."""
        for shard in self._pool.opened():
            if untold := unsettled.get(shard.number):
                try:
                    self._committer.void_on(shard, untold.void, untold.newest)
                except ShardError as error:
                    self._pool.put(Absent(shard.entry, error.state, str(error)))

    def _look_at(self, number: int) -> bool:
        """Whether the shard should be opened anew."""
        shard = self._pool.get(number)
        if shard is None:
            return True
        begin = self._runtime.clock.now()
        state = shard.check()
        if state != "ok":
            self._latencies.pop(number, None)
            if number not in self._told_away:
                self._told_away.add(number)
                log.warning("shard %s is %s: %s", shard.id, state, shard.last_error() or state)
            return shard.may_return()
        self._told_away.discard(number)
        with suppress(ShardError):
            self._pool.note_capacity(number, shard.capacity())
        self._latencies[number] = max(0, self._runtime.clock.now() - begin) / 1_000
        self._heard[number] = shard.newest_committed()
        return False

    # --- In the committer's thread ---

    def _bring_back(self, number: int) -> bool:
        """Open a shard that is not open, or not well. Returns whether it is well now."""
        entry = self._pool.entry(number)
        if entry is None:
            return False
        reason, before = self._pool.reason(number), self._pool.get(number)
        heard = self._heard.get(number, 0) if before is None else before.newest_committed()
        self._pool.put(Absent(entry, self._pool.state(number), self._pool.reason(number)))  # its lock is let go of before it is taken
        try:
            shard = self._open_shard(entry)
        except ShardError as error:
            self._pool.put(Absent(entry, error.state, str(error)))
            return False
        older = shard.newest_committed() < heard
        try:
            self.admit(shard)
        except ShardError as error:
            if error.state == "readonly":  # it is read all the same
                self._pool.put(shard)
                return False
            shard.close()
            self._pool.put(Absent(entry, error.state, str(error)))
            return False
        self._pool.put(shard)
        self._look_at(number)
        if older:
            self._older = True
            log.warning(
                "shard %s does not hold what was written there: an older copy was put back; a scrub makes anew what it lacks", entry.id
            )
        if reason != NEW:
            log.warning("shard %s is back", entry.id)
        return True

    def admit(self, shard: Shard) -> None:
        """Make an opened shard ready for this life of the store. ShardError if it may not be used."""
        if self._committer.failure is not None:
            return  # it serves reads, as one that was there at the start does
        state = self._committer.state
        if shard.newest_writer() > state.writer or shard.newest_committed() > state.sequence:
            raise ShardError("failed", f"{shard.url} was written by another daemon meanwhile, or the metastore is an older copy")
        shard.start(state.writer, self._runtime.randomness)
        if (now := shard.check()) != "ok":
            raise ShardError(now, shard.last_error() or now)
        # Only now, as what an earlier opening sent late is refused from now on.
        untold = self.never_committed(shard)
        self._committer.void_on(shard, untold.void, untold.newest)

    def never_committed(self, shard: Shard) -> Untold:
        """What to say of records at the end of its log that never came to be, or of which nothing needs to know whether they did."""
        entries = shard.unsettled()
        known = self._told(entries)
        others = (envelope for envelope in entries if envelope.kind is not Kind.VOID)
        wanted = [envelope for envelope in others if not _knows(known, envelope, has_readers(shard))]
        believed = shard.on_disk is not None
        untold = Untold()
        try:
            for envelope in wanted:
                self._judge(envelope, untold, believed=believed)
        except IoError as error:
            raise ShardError("failed", f"what {shard.url} holds cannot be compared with the metastore: {error.message}") from error
        return untold

    def _told(self, entries: Sequence[Envelope]) -> Mapping[NamespaceId, Sequence[VoidRecord]]:
        """The voids among these, by the space that they are told in."""
        told: dict[NamespaceId, list[VoidRecord]] = {}
        for envelope in entries:
            if envelope.kind is Kind.VOID and (void := open_void(self._sealer, envelope, envelope.namespace)) is not None:
                told.setdefault(envelope.namespace, []).append(void)
        return told

    def _judge(self, envelope: Envelope, untold: Untold, *, believed: bool) -> None:
        """Leave alone what the row has, or had before a newer record of the same version. One of which the row knows nothing is void.

        An older one of another version may have been committed, and then it buries others: it is not void, but the row's newest record
        comes behind it, so that it does not come back when what buries it is forgotten. The store's own rows have but one version.

        What does not open is left alone, and so is a sequence that was never given: a void of what a server makes up would hide what
        is, or will be, committed under it. A directory is `believed`: the refused record of a rotation opens with no key any more.
        """
        if envelope.sequence > self._committer.state.sequence:
            if envelope.sequence <= self._committer.last_given:
                untold.void[envelope.sequence] = envelope.namespace
            return
        fixed = FIXED.get(envelope.kind) if believed else None
        try:
            name = fixed or row_name_of(envelope.kind, self._sealer.open(envelope))
            rows = [self._metastore.get(envelope.namespace, name), self._metastore.tombstone(envelope.namespace, name)]
        except CorruptRecord:
            return
        newest = max((row for row in rows if row is not None), key=lambda row: row.sequence, default=None)
        if newest is not None and newest.version == envelope.version and newest.sequence >= envelope.sequence:
            return
        if newest is None or newest.sequence < envelope.sequence:
            untold.void[envelope.sequence] = envelope.namespace
        elif newest not in untold.newest:
            untold.newest.append(newest)


def _knows(told: Mapping[NamespaceId, Sequence[VoidRecord]], envelope: Envelope, readers: bool) -> bool:
    """Whether a record is said to be void wherever that has to be said."""
    spaces = {STORE_WIDE, envelope.namespace} if readers else {STORE_WIDE}
    return all(any(void.covers(envelope.sequence) for void in told.get(space, ())) for space in spaces)
