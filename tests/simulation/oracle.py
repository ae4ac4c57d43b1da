"""What must hold of any store at rest, read off its shards by other means than the store's own.

`check_logs` reads nothing but logs: what they say together must be what the metastore says, since a rebuild will know no more.
`check_shares` reads nothing but directories: no share may lie there that no record names, none may be lacking.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass

from tests.metastore.memory import Cell
from tests.simulation.house import House
from zstor_local.metastore.base import Owed
from zstor_local.model.ids import KeyHash, NamespaceId, ShareId, Version
from zstor_local.model.record import STORE_WIDE, Envelope, Kind, ObjectRecord
from zstor_local.model.storewide import VoidRecord
from zstor_local.shards.base import Shard, ShardError, ShareMissing
from zstor_local.shards.directory import LOG
from zstor_local.shards.share_files import SHARES, TEMPORARY
from zstor_local.store import voided
from zstor_local.store.store import Store
from zstor_local.store.stored import open_object


class BadState(AssertionError):
    """The world is not as it was promised to be."""


Row = tuple[NamespaceId, KeyHash]
Told = dict[tuple[int, NamespaceId], set[tuple[int, int]]]  # by shard and space: first and last of what never came to be


@dataclass(frozen=True, slots=True)
class Copy:
    """A record as a log holds it."""

    shard: int
    envelope: Envelope


def check_logs(store: Store, cell: Cell) -> None:
    """For each key the highest sequence in the logs that is not voided is the metastore's newest record or tombstone; nobody could
    gather k shares of an older version without meeting a newer record, but for what the metastore owes.
    """
    copies, told = _read_logs(store)
    _check_readers(store, copies, told)
    everywhere = sorted({void for (_, space), voids in told.items() for void in voids if space == STORE_WIDE})
    valid = [copy for copy in copies if not _void(copy, everywhere)]
    newest: dict[Row, Envelope] = {}
    for copy in valid:
        known = newest.setdefault(_row(copy.envelope), copy.envelope)
        if known.sequence == copy.envelope.sequence and not _same(known, copy.envelope):
            raise BadState(f"sequence {known.sequence} stands for two records")
        if known.sequence < copy.envelope.sequence:
            newest[_row(copy.envelope)] = copy.envelope
    owed = {(debt.space, debt.name) for debt in cell.debts if debt.kind is Owed.RECORD}
    late = {_row(envelope) for table in (cell.records, cell.tombstones) for place, envelope in table.items() if place in owed}
    truth = {_row(envelope): envelope for envelope in [*cell.tombstones.values(), *cell.records.values()]}
    for row in truth.keys() | newest.keys():
        logs, metastore = newest.get(row), truth.get(row)
        if row in late and metastore is not None and (logs is None or logs.sequence < metastore.sequence):
            continue
        if logs is None and metastore is not None and metastore.kind is Kind.TOMBSTONE:
            continue  # compaction forgot it, as nothing older lies anywhere
        if logs is None or metastore is None or not _same(logs, metastore):
            raise BadState(f"the logs say {_describe(logs)}, the metastore {_describe(metastore)}")
    _check_buried(store, cell, valid, newest)


def _void(copy: Copy, told: Collection[tuple[int, int]]) -> bool:
    return any(first <= copy.envelope.sequence <= last for first, last in told)


def _check_readers(store: Store, copies: list[Copy], told: Told) -> None:
    """Whoever reads one log of a namespace there is told of the same voids."""
    there = {shard.number for shard in store.pool.opened() if voided.has_readers(shard)}
    for copy in copies:
        space = copy.envelope.namespace
        if copy.shard not in there or space == STORE_WIDE:
            continue
        if _void(copy, told.get((copy.shard, STORE_WIDE), ())) and not _void(copy, told.get((copy.shard, space), ())):
            raise BadState(
                f"shard {copy.shard} does not tell the readers of {space.hex()} that {copy.envelope.sequence} never came to be"
            )


def _read_logs(store: Store) -> tuple[list[Copy], Told]:
    """All copies, and what each log tells in each space of what never came to be."""
    copies: list[Copy] = []
    told: Told = {}
    opened: dict[Envelope, bytes] = {}
    for shard in store.pool.opened():
        for scanned in shard.scan():
            envelope = scanned.entry.envelope
            if envelope not in opened and envelope.kind is not Kind.KEYS:
                opened[envelope] = store.sealer.open(envelope)
            if envelope.kind is Kind.VOID:
                void = VoidRecord.decode(opened[envelope])
                told.setdefault((shard.number, envelope.namespace), set()).add((void.first, void.last))
            else:
                copies.append(Copy(shard.number, envelope))
    keys = [copy.envelope for copy in copies if copy.envelope.kind is Kind.KEYS]
    wide = {void for (_, space), voids in told.items() for void in voids if space == STORE_WIDE}
    counts = [each for each in keys if not any(first <= each.sequence <= last for first, last in wide)]
    if counts:  # a rotation that did not come to its commit took its key with it; a later one's record stands before it
        store.sealer.open(max(counts, key=lambda envelope: envelope.sequence))
    return copies, told


def _check_buried(store: Store, cell: Cell, valid: list[Copy], newest: dict[Row, Envelope]) -> None:
    highest: dict[tuple[int, Row], int] = {}
    for copy in valid:
        key = copy.shard, _row(copy.envelope)
        highest[key] = max(highest.get(key, 0), copy.envelope.sequence)
    newest_at = {**cell.tombstones, **cell.records}
    owed = {
        (debt.shard, _row(newest_at[place]))
        for debt in cell.debts
        if debt.kind is Owed.RECORD and (place := (debt.space, debt.name)) in newest_at
    }
    bearers: dict[Envelope, set[int]] = {}
    for copy in valid:
        if copy.envelope.kind is Kind.OBJECT and newest[_row(copy.envelope)].sequence != copy.envelope.sequence:
            bearers.setdefault(copy.envelope, set()).add(copy.shard)
    for envelope, shards in bearers.items():
        row = _row(envelope)
        record = ObjectRecord.decode(store.sealer.open(envelope))

        def unaware(number: int, row: Row = row, envelope: Envelope = envelope) -> bool:
            return highest.get((number, row), 0) <= envelope.sequence and (number, row) not in owed

        holders = [n for at, n in enumerate(record.placement) if unaware(n) and _has(store, n, envelope.version, at, record)]
        if len(holders) >= record.policy.k and any(map(unaware, shards)):
            raise BadState(f"the shards {holders} together would bring sequence {envelope.sequence} back")


def _has(store: Store, number: int, version: Version, index: int, record: ObjectRecord) -> bool:
    """Whether a share of a version is on its shard, whatever any record says."""
    shard = store.pool.get(number)
    if shard is None:
        return False
    try:
        shard.open_share(ShareId(version, index), small=record.small).close()
    except (ShareMissing, ShardError):
        return False
    return True


def check_shares(store: Store, cell: Cell, house: House, *, tidy: bool) -> None:
    """In shares/ and tmp/ of each shard that is there lie the shares of live versions and no others; every one of those that is not
    owed lies there, or in the log if it is small. Nothing is half done. Not `tidy`: there may be others.
    """
    if cell.intents:
        raise BadState(f"{len(cell.intents)} intents are left")
    expected, small = _live(store, cell)
    for shard in store.pool.opened():
        number = shard.number
        if store.metastore.garbage(number, 1):
            raise BadState(f"shard {number} is there, but its garbage was not freed")
        files = store.runtime.files
        root = shard.url
        found = {name for part in files.list(f"{root}/{SHARES}") for name in files.list(f"{root}/{SHARES}/{part}")}
        half = set(files.list(f"{root}/{TEMPORARY}")) - {"marker"}  # a power loss may leave both names of a file that was renamed
        wanted, owed = expected.get(number, set()), _owed(cell, number)
        if tidy and (leftover := (found | half) - wanted):
            raise BadState(f"shard {number} holds shares that nothing names: {sorted(leftover)}")
        if lacking := wanted - found - owed:
            raise BadState(f"shard {number} lacks the shares {sorted(lacking)}")
        logged = {f"{share.version.hex()}.{share.index}": share for share in store.index.shares(number)}
        # What had to be freed is forgotten with a metastore; compaction may have taken its bytes before the index heard of it.
        led = {name: share for name, share in logged.items() if tidy or name in small.get(number, set())}
        if gone := [name for name, share in led.items() if not _can_be_read(shard, share)]:
            raise BadState(f"the index of shard {number} leads to where the shares {gone} lay once")
        if lacking := small.get(number, set()) - logged.keys() - owed:
            raise BadState(f"the log of shard {number} lacks the shares {sorted(lacking)}")
        if strange := [name for name in files.list(f"{root}/{LOG}") if not name.endswith(".log")]:
            raise BadState(f"shard {number} has strange files beside its log: {strange}")


def _can_be_read(shard: Shard, share: ShareId) -> bool:
    """Whether a small share is where the index says."""
    with closing(shard.open_share(share, small=True)) as reader:
        try:
            return bool(reader.read(0, 1))
        except ShareMissing:
            return False


def check_rows(store: Store, cell: Cell) -> None:
    """What the metastore says of its objects fits together: both ends of each link, the index of references, the counts."""
    records = {at: open_object(store.sealer, each) for at, each in cell.records.items() if each.kind is Kind.OBJECT}
    for (space, key), record in records.items():
        if record.key != key:
            raise BadState(f"the row {key!r} holds the record of {record.key!r}")
        following = None if record.next_key is None else records.get((space, record.next_key))
        if record.next_key is not None and (following is None or following.previous_key != key or following.created <= record.created):
            raise BadState(f"the link from {key!r} to {record.next_key!r} has no other end")
        before = None if record.previous_key is None else records.get((space, record.previous_key))
        if record.previous_key is not None and (before is None or before.next_key != key):
            raise BadState(f"the link from {key!r} back to {record.previous_key!r} has no other end")
    found = {(reference.space, reference.name, reference.hash) for reference in cell.references}
    wanted = set()
    for (space, key), record in records.items():
        namespace = store.namespaces.by_id(space)
        assert namespace is not None
        wanted |= {(space, key, namespace.reference_hash(reference)) for reference in record.references}
    if found != wanted:
        raise BadState(f"the index has {len(found - wanted)} references that no object has, and lacks {len(wanted - found)}")
    if (cell.state.objects, cell.state.bytes) != (len(records), sum(record.size for record in records.values())):
        raise BadState(f"{len(records)} objects are counted as {cell.state.objects}")


def live_records(store: Store, cell: Cell) -> Iterator[tuple[Version, ObjectRecord]]:
    for envelope in cell.records.values():
        if envelope.kind is Kind.OBJECT:
            yield envelope.version, ObjectRecord.decode(store.sealer.open(envelope))


def _live(store: Store, cell: Cell) -> tuple[dict[int, set[str]], dict[int, set[str]]]:
    """The names of the shares that each shard should hold in files, and in its log."""
    large: dict[int, set[str]] = {}
    small: dict[int, set[str]] = {}
    for version, record in live_records(store, cell):
        for index, number in enumerate(record.placement):
            (small if record.small else large).setdefault(number, set()).add(f"{version.hex()}.{index}")
    return large, small


def _owed(cell: Cell, shard: int) -> set[str]:
    return {f"{debt.version.hex()}.{debt.index}" for debt in cell.debts if debt.kind is Owed.SHARE and debt.shard == shard}


def _row(envelope: Envelope) -> Row:
    return envelope.namespace, envelope.key_hash


def _same(one: Envelope, other: Envelope) -> bool:
    """Whether two copies are of one record. An init that was taken up again seals the store's first two records anew."""
    if one.sequence == other.sequence <= 2:
        return one.kind is other.kind
    return one == other


def _describe(envelope: Envelope | None) -> str:
    return "nothing" if envelope is None else f"{envelope.kind.name} {envelope.sequence}"
