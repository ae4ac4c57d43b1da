"""Health of one version: check its shares, make the bad ones anew.

What a repair makes (remaking.py) replaces a share in one step (a rename, or a newer log entry). It never touches a good one, and never
creates a record. Of a share that is made where it was no other shard hears, and the record stays as it is. One whose shard is away goes
to a shard that holds none of the version, if there is one; the row of the metastore that would free it is there before it is, so that a
crash leaves nothing behind.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from contextlib import AsyncExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from zstor_local import limits
from zstor_local.errors import DAMAGED_ROW_HINT, Conflict, CorruptRecord, NotEnoughShards, Unavailable, Unreadable, ZstorError
from zstor_local.metastore.base import Debt, Garbage, Owed, RowName
from zstor_local.model.ids import ShareId, Version
from zstor_local.model.record import Envelope, Kind, ObjectRecord
from zstor_local.shards.base import Entry
from zstor_local.store.batches import Batches
from zstor_local.store.caller import Caller
from zstor_local.store.change import Decision, NewRecord
from zstor_local.store.checking import Checked, Checker
from zstor_local.store.commit_room import CommitRoom
from zstor_local.store.core import Core
from zstor_local.store.free_space import FreeSpace
from zstor_local.store.freeing import Freeing
from zstor_local.store.lost import is_lost
from zstor_local.store.namespaces import Namespace, Namespaces
from zstor_local.store.remaking import Remaking
from zstor_local.store.shares import VersionShares
from zstor_local.store.stored import Stored, naming, open_object, owed_shares, under_present_key, with_debts
from zstor_local.store.turns import Turns

MADE_BYTES: Final = 32 * limits.MIB  # of small shares that wait for their commit; more than those of one object are

log = logging.getLogger("zstor.store")


@dataclass(frozen=True, slots=True)
class Repaired:
    """The version as it is now, how many of its shares were made anew, and how many it still lacks: no shard could take them."""

    stored: Stored
    made: int
    lacking: int


class Health:
    """The use cases."""

    def __init__(self, core: Core, namespaces: Namespaces, freeing: Freeing, free_space: FreeSpace) -> None:
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._sealer = core.sealer
        self._namespaces = namespaces
        self._freeing = freeing
        self._free_space = free_space
        self._batches = Batches(core.runtime, core.pool)
        self._checker = Checker(core.runtime, core.pool, self._batches)
        self._room = CommitRoom(MADE_BYTES)
        self.turns = Turns()

    async def check(self, stored: Stored, caller: Caller, *, fast: bool = False) -> Checked:
        """Look at every share: whether it is there and long enough (`fast`), or open each of its blocks. One that its shard is owed is
        none that is there.
        """
        with self._freeing.lease(stored.version), closing(self._shares(stored)) as shares:
            checked = await self._checker.check(stored.record, shares, caller, fast=fast)
        return checked.without(self._owed(stored), stored.record.policy)

    async def is_readable(self, stored: Stored) -> bool:
        """Whether each chunk has k good blocks, whichever shares they are in: of bad ones too."""
        with self._freeing.lease(stored.version), closing(self._shares(stored)) as shares, suppress(Unreadable):
            for chunk in range(len(await self._runtime.threads.run(shares.table))):
                await self._runtime.threads.run(shares.fetch, chunk)
            return True
        return False

    async def repair(self, stored: Stored, caller: Caller, *, leaving: int | None = None) -> Repaired:
        """Make every bad share anew, as far as shards are there.

        Nothing to do is fine. Unreadable if a chunk has fewer than k good blocks, Conflict if the key has left the version behind. Of
        a key that the metastore has lost the shares are mended where they are, and no record is made. A share that lies on the shard
        `leaving` is made on another one: NotEnoughShards if there is none.
        """
        self._namespace(stored).gate.check(stored.namespace, closing=True)
        async with self.turns.of(stored.version, small=stored.record.small), AsyncExitStack() as leases:
            async with self._freeing.lock:  # what is being freed now is freed before the lease counts
                leases.enter_context(self._freeing.lease(stored.version))
            namespace = self._namespace(stored)
            current = self._metastore.get(namespace.id, stored.record.key)
            stored = self._as_it_is(stored, current)  # under the lease: what was freed of a version that is gone is not made again
            lost = is_lost(stored, namespace, lambda *_: current, self._metastore)
            shares = leases.enter_context(closing(self._shares(stored)))
            before = await self._checker.check(stored.record, shares, caller)
            if len(_sources(before)) < stored.record.policy.k:
                raise self._lost(stored.record, before)
            owed = self._owed(stored)
            targets = self._targets(stored, before, owed, leaving)
            made: Set[int] = set()
            if lost:
                made = await self._mend_lost(stored, shares, before, targets)
            elif targets or self._metastore.debts_of(stored.version):
                async with self._room.taken(stored.record.share_bytes * len(targets) if stored.record.small else 0):
                    stored, made = await self._mend(stored, shares, before, owed, targets)
        if targets:
            self._freeing.wake()  # also of what is good where it was made before
        if leaving is not None and leaving in stored.record.placement:
            raise self._nowhere(stored.record, leaving)
        bad = {index for index, state in enumerate(before.states) if state != "ok"} | owed
        return Repaired(stored, len(made), len(bad - made))

    async def is_needless(self, row: Garbage) -> bool:
        """Whether a share whose version is still named may go: the one that was made in its place is good, or it is not itself. Else
        the record names it, from now on or still, and the row is struck out.
        """
        index = row.share.index
        try:
            stored = self._naming(row.share.version)
            if stored is None:
                return True
            elsewhere = stored.record.placement[index] != row.shard
            if elsewhere and (await self._is_good(stored, index) or not await self._is_good(_placed(stored, index, row.shard), index)):
                return True
            async with self.turns.of(row.share.version, small=row.small):
                now = self._naming(row.share.version)
                if now is not None and now.record.placement == stored.record.placement and self._pool.entry(row.shard) is not None:
                    await self._commit(now, {index: row.shard}, {}, [row], {index} if elsewhere else set())
        except ZstorError as error:
            log.warning("a share of version %s is not freed yet: %s", row.share.version.hex(), error)
        return False

    def _naming(self, version: Version) -> Stored | None:
        """An object that has this version; None if there is none. CorruptRecord where its record, or its namespace's, does not open."""
        if not self._metastore.named(version, 1):
            return None
        envelope = next(naming(self._metastore, version), None)
        if envelope is None:
            raise Conflict("what had the version was changed just now", hint="look again")  # others may have it by now
        if (namespace := self._namespaces.by_id(envelope.namespace)) is None:
            raise CorruptRecord("the record of a namespace that holds objects does not open", hint=DAMAGED_ROW_HINT)
        return Stored(namespace.name, open_object(self._sealer, envelope), envelope)

    async def _is_good(self, stored: Stored, index: int) -> bool:
        with closing(self._shares(stored)) as shares:
            return index not in self._owed(stored) and await self._checker.share_state(stored.record, shares, index) == "ok"

    def _newest(self, stored: Stored) -> Stored:
        """The version as the metastore has it now: another repair may have moved its shares."""
        return self._as_it_is(stored, self._metastore.get(self._namespace(stored).id, stored.record.key))

    def _as_it_is(self, stored: Stored, current: Envelope | None) -> Stored:
        """The same, given what its key has now."""
        if current is None or current.version != stored.version or current == stored.envelope:
            return stored
        return replace(stored, record=open_object(self._sealer, current), envelope=current)

    def _shares(self, stored: Stored) -> VersionShares:
        namespace = self._namespace(stored)
        return VersionShares(self._pool, self._sealer.store_of(namespace.id), namespace, stored.version, stored.record)

    def _namespace(self, stored: Stored) -> Namespace:
        return self._namespaces.get(stored.namespace, stored.envelope.namespace)

    # --- Repair ---

    def _owed(self, stored: Stored) -> Set[int]:
        """The shares that their shard is owed, whatever it shows: what a failed flush left there may be gone after a power loss."""
        return owed_shares(self._metastore, stored.version, stored.record)

    def _targets(self, stored: Stored, checked: Checked, owed: Set[int], leaving: int | None) -> dict[int, int]:
        """Where each bad share is made: on its own shard if that can be written, else on a usable shard that holds none. A full shard
        gets none that it has not had.
        """
        placement = stored.record.placement
        wanted = [index for index, state in enumerate(checked.states) if state != "ok" or index in owed or placement[index] == leaving]
        if not wanted:
            return {}
        full = self._free_space.full_shards()
        # Those that hold shares were looked at just now; as of a write, whoever appends to another one looks at it then.
        usable = [number for number, state in self._pool.recent_states().items() if state == "ok" and number != leaving]
        # A shard that is away may come back, these do not.
        wanted.sort(key=lambda index: placement[index] != leaving and placement[index] not in self._pool.draining)
        refused = {index for index in owed if placement[index] in full}
        homeless = [placement[index] for index in wanted if placement[index] not in usable or index in refused]
        allowed = {*self._namespaces.shards_of(self._namespace(stored).placement)} - full if homeless else set[int]()
        spare = self._pool.spares(stored.version, placement, homeless, allowed.intersection(usable)) if homeless else []
        targets: dict[int, int] = {}
        for index in wanted:
            own = placement[index]
            if own in usable and index not in refused:
                targets[index] = own
            elif spare:
                targets[index] = spare.pop(0)
            elif own == leaving:
                raise self._nowhere(stored.record, own)
        return targets

    def _nowhere(self, record: ObjectRecord, leaving: int) -> NotEnoughShards:
        return NotEnoughShards(
            f"no other shard can take what shard {self._pool.name(leaving)} holds of key {record.key!r}",
            hint="add a shard, bring back those that are away, or make room on those that are full",
        )

    async def _mend(
        self, stored: Stored, shares: VersionShares, checked: Checked, owed: Set[int], targets: Mapping[int, int]
    ) -> tuple[Stored, Set[int]]:
        """Returns the version and the indices of the shares that were made."""
        record = stored.record
        elsewhere = {index: number for index, number in targets.items() if record.placement[index] != number}
        moved = [Garbage(number, ShareId(stored.version, index), record.small) for index, number in elsewhere.items()]
        space = self._namespace(stored).id
        if moved:
            await self._committer.commit(space, "", lambda _: Decision(garbage=moved))
        remaking = Remaking(record, shares, _sources(checked))
        made: Mapping[int, bytes] = {}
        if record.small:
            made = await self._batches.run(record.placement, partial(remaking.small, targets))
        else:
            targets = await remaking.files(self._runtime, self._pool, space, targets)
        if targets and not moved:
            return await self._give_back(stored, targets, made)
        there = {index for index, state in enumerate(checked.states) if state == "ok"} - owed | {*targets}
        stored = await self._commit(stored, targets, made, moved, there)
        return stored, {*targets} - self._owed(stored)

    async def _give_back(self, stored: Stored, targets: Mapping[int, int], made: Mapping[int, bytes]) -> tuple[Stored, Set[int]]:
        """Shares that were made where they were: only their shards are written to, as the record stays as it is.

        Returns the version and the indices of the shares that were taken; Unavailable if none was.
        """
        given: set[int] = set()
        refusal: ZstorError | None = None
        for index, number in targets.items():
            try:
                await self._give(stored, index, number, made.get(index, b""))
                given.add(index)
            except Unavailable as error:
                refusal = error
        if refusal is not None and not given:
            raise refusal
        return self._with_debts(self._newest(stored)), given

    async def _give(self, stored: Stored, index: int, number: int, share: bytes) -> None:
        """Commit that a shard has this share, with the records that name the version; a small one goes there with them."""
        space, key = self._namespace(stored).id, stored.record.key

        def decide(current: Envelope | None) -> Decision:
            if current is None or current.version != stored.version:
                raise _left_behind(current)
            rows = [(space, name) for name in sorted(self._committer.view.named(space, stored.version) - {key})]
            others = [envelope for row in rows if (envelope := self._committer.view.look(*row)) is not None]
            own = Entry(current, index, share) if stored.record.small else Entry(current)
            told = {(space, key), *rows}
            debts = [debt for debt in self._metastore.debts_of(stored.version) if debt.shard == number]
            paid = [debt for debt in debts if (debt.index == index if debt.kind is Owed.SHARE else (debt.space, debt.name) in told)]
            return Decision(resend={number: [own, *map(Entry, others)]}, debts_paid=paid)

        await self._committer.commit(space, key, decide)

    async def _mend_lost(self, stored: Stored, shares: VersionShares, checked: Checked, targets: Mapping[int, int]) -> Set[int]:
        """Make the bad shares anew where they were: without a record in the metastore none can move."""
        record, namespace = stored.record, self._namespace(stored)
        own = {index: number for index, number in targets.items() if record.placement[index] == number}
        remaking = Remaking(record, shares, _sources(checked))
        if not record.small:
            return {*await remaking.files(self._runtime, self._pool, namespace.id, own)}
        made = await self._batches.run(record.placement, partial(remaking.small, own))
        entries = {own[index]: [Entry(stored.envelope, index, share)] for index, share in made.items()}

        def decide(_: Envelope | None) -> Decision:
            is_lost(stored, namespace, self._committer.view.look, self._metastore)
            return Decision(resend=entries)

        await self._committer.commit(namespace.id, record.key, decide)
        return {*made}

    async def _commit(
        self, stored: Stored, targets: Mapping[int, int], made: Mapping[int, bytes], reserved: Sequence[Garbage], there: Set[int]
    ) -> Stored:
        """The version's record with its shares' new places. The old places, where a shard may return, become garbage.

        Of `there`, the indices of good shares, nobody is owed one any more.
        """
        namespace = self._namespace(stored)
        record = stored.record
        placement = tuple(targets.get(index, number) for index, number in enumerate(record.placement))
        left = [
            Garbage(record.placement[index], ShareId(stored.version, index), record.small)
            for index in targets
            if placement[index] != record.placement[index]
        ]
        published = replace(record, placement=placement)

        def decide(current: Envelope | None) -> Decision:
            nonlocal published
            if current is None or current.version != stored.version:
                raise _left_behind(current)
            published = replace(self._as_it_is(stored, current).record, placement=placement)
            debts = self._metastore.debts_of(stored.version)
            copies = {*placement, *record.placement}
            named = self._committer.view.named(namespace.id, stored.version)
            others = [(namespace.id, name) for name in sorted(named - {record.key})]
            records = {
                row: self._record(namespace, stored, replace(self._other(row), placement=placement), copies | _untold(debts, row))
                for row in others
            }
            own = namespace.id, record.key
            shares = {targets[index]: (index, share) for index, share in made.items()}
            new = self._record(namespace, stored, published, copies | _untold(debts, own))
            records[own] = replace(new, shares=shares, quorum=min(1, len(made)))
            # A row that has left the version may still be owed its tombstone.
            paid = [debt for debt in debts if (debt.index in there if debt.kind is Owed.SHARE else (debt.space, debt.name) in records)]
            freed = [garbage for garbage in reserved if garbage.share.index in targets]
            return Decision(records, garbage=left, garbage_freed=freed, debts_paid=paid)

        committed = await self._committer.commit(namespace.id, record.key, decide)
        if committed.envelope is None:
            raise AssertionError("a committed repair has a record")
        return self._with_debts(replace(stored, record=published, envelope=committed.envelope))

    def _with_debts(self, stored: Stored) -> Stored:
        return with_debts(self._metastore, replace(stored, owed=0, shares_owed=0))

    def _other(self, row: RowName) -> ObjectRecord:
        """The record of another key that names the same version (object.copy)."""
        envelope = self._committer.view.look(*row)
        if envelope is None:
            raise AssertionError("a row that names a version is there")
        return open_object(self._sealer, envelope)

    def _record(self, namespace: Namespace, stored: Stored, record: ObjectRecord, copies: Set[int]) -> NewRecord:
        return NewRecord(
            kind=Kind.OBJECT,
            key_hash=namespace.key_hash(record.key),
            version=stored.version,
            plain=under_present_key(record, namespace.keys).encode(),
            copies=sorted(copies),
            k=record.policy.k,
        )

    def _lost(self, record: ObjectRecord, checked: Checked) -> Unreadable:
        shares = [
            {"shard": self._pool.name(number), "index": index, "state": checked.states[index]}
            for index, number in enumerate(record.placement)
        ]
        return Unreadable(
            f"only {checked.states.count('ok')} of the {record.policy.k} shares that a repair needs are good",
            hint="bring the missing shards back: `zstor status` names them",
            shares=shares,
        )


def _sources(checked: Checked) -> list[int]:
    """The shares that others can be made of, the best first: of one with bad blocks the others are as good as any."""
    return [index for wanted in ("ok", "corrupt") for index, state in enumerate(checked.states) if state == wanted]


def _left_behind(current: Envelope | None) -> Conflict:
    now = None if current is None else current.version.hex()
    return Conflict("the key has left that version behind", hint="repair what it has now", current=now)


def _placed(stored: Stored, index: int, number: int) -> Stored:
    """The same, as if a share lay on this shard."""
    placement = tuple(number if at == index else other for at, other in enumerate(stored.record.placement))
    return replace(stored, record=replace(stored.record, placement=placement))


def _untold(debts: Sequence[Debt], row: RowName) -> set[int]:
    """The shards that have not heard of a row's newest record: an older one may lie there, which only a newer one buries."""
    return {debt.shard for debt in debts if debt.is_record_of(*row)}
