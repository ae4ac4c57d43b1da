"""Rows of the metastore that do not open: each hurts only itself, and comes back from the copies in the shards' logs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio

from tests.store.home import Home, content, get, name, put
from tests.store.test_rotation import check, fill, newest_entries, rotate
from tests.store.test_scrub import scrubbed
from zstor_local.errors import Busy, CorruptRecord
from zstor_local.metastore.base import Row
from zstor_local.model.ids import NamespaceId
from zstor_local.model.record import STORE_WIDE, Kind
from zstor_local.model.storewide import VoidRecord
from zstor_local.shards.base import Entry, ScannedEntry
from zstor_local.store.changes import Changes
from zstor_local.store.damaged_rows import Damage
from zstor_local.store.jobs import Job
from zstor_local.store.namespaces import PERMISSIONS_TABLE
from zstor_local.store.pace import unpaced
from zstor_local.store.references import References
from zstor_local.store.store import Store
from zstor_local.store.stored import open_object
from zstor_local.store.walk import Route, Walk

NEEDED = ("store", "shards", "keys")  # rows without which no store opens


def spoil(store: Store, row: Row, change: str = "sealed = zeroblob(200)") -> None:
    """Damage what a row holds; the copies in the logs stay as they are."""
    for table in ("record", "tombstone"):
        query = f"update {table} set {change} where space=? and name=?"  # noqa: S608 (constants)
        store.metastore._writer.execute(query, (row.space, row.name.encode()))  # type: ignore[attr-defined]


def forget_copies(store: Store, row: Row) -> Callable[[], None]:
    """No log has anything of the row any more, as far as anybody can read them, until what this returns is called."""
    key_hash = row.envelope.key_hash
    shards = store.pool.opened()
    scans = [shard.scan for shard in shards]
    for shard in shards:
        scan = shard.scan
        shard.scan = lambda scan=scan: (each for each in scan() if each.entry.envelope.key_hash != key_hash)  # type: ignore[method-assign, misc]

    def remember() -> None:
        for shard, scan in zip(shards, scans, strict=True):
            shard.scan = scan  # type: ignore[method-assign]

    return remember


def rows_of(store: Store) -> list[Row]:
    spaces = [STORE_WIDE, *store.namespaces.ids()]
    return [row for space in spaces for row in store.metastore.changes(space, 0, 1_000) if row.name not in NEEDED]


def row(store: Store, key: str, namespace: str = "default") -> Row:
    found = store.namespaces.get(namespace)
    envelope = store.metastore.get(found.id, key)
    assert envelope is not None
    return Row(found.id, key, envelope)


def does_not_open(store: Store, rows: Sequence[Row]) -> list[str]:
    found = [each for at in rows for each in store.metastore.changes(at.space, 0, 1_000) if each.name == at.name]
    return [each.name for each in found if store.damaged_rows._closed([each])]


async def ended(job: Job) -> Job:
    while job.running:
        await job.news().wait()
    return job


async def test_a_scrub_brings_every_row_back(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        rows = rows_of(store)
        assert {each.envelope.kind for each in rows} == {Kind.OBJECT, Kind.TOMBSTONE, Kind.NAMESPACE, Kind.ROW}
        for each in rows:
            spoil(store, each)
    async with home.open() as store:
        with pytest.raises(CorruptRecord):
            await get(store, "small")
        found = await scrubbed(store)
        assert (found.records_mended, found.records_damaged, found.unreadable) == (len(rows), 0, 0)
        assert does_not_open(store, rows) == []
        await check(store)
        assert (await scrubbed(store)).records_mended == 0
    async with home.open() as store:
        await check(store)


async def test_a_row_whose_copy_is_an_older_one_stays_damaged(home: Home) -> None:
    """What the row says it is was committed once, and undoing what came after it would be worse than a row that is lost."""
    async with home.open() as store:
        await put(store, "a", content(1, 100))
        was = row(store, "a")
        await put(store, "a", content(2, 100))
        spoil(store, row(store, "a"), f"sequence = {was.envelope.sequence}")
        assert (await scrubbed(store)).records_damaged == 1
        with pytest.raises(CorruptRecord):
            await get(store, "a")


@pytest.mark.parametrize("table", ["objects", "store-wide rows"])
async def test_a_scrub_tells_of_a_row_that_is_not_called_what_its_record_says(home: Home, table: str) -> None:
    """Whoever asks for the key is told that there is none, until a rebuild."""
    async with home.open() as store:
        await put(store, "a", content(1, 100))
        await store.rows.put("table", "a", b"value")
        wide = store.metastore.get(STORE_WIDE, "row/table/a")
        assert wide is not None
        moved = row(store, "a") if table == "objects" else Row(STORE_WIDE, "row/table/a", wide)
        spoil(store, moved, f"name = x'{moved.name[:-1].encode().hex()}62'")
        found = await scrubbed(store)
        assert (found.records_mended, found.records_damaged, found.damage) == (0, 1, True)
    home.rebuild()
    async with home.open() as store:
        assert await get(store, "a") == content(1, 100)
        assert store.rows.names("table") == ["a"]
        assert not (await scrubbed(store)).damage


async def test_what_was_voided_is_no_later_record(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 100))
        was = row(store, "a").envelope
        later = store.committer.last_given + 1
        spoil(store, row(store, "a"))
        copies = await store.damaged_rows._hear([row(store, "a")], unpaced)
        assert copies.of(row(store, "a")) == was
        copies.take(row(store, "a"), replace(was, sequence=later))
        assert copies.of(row(store, "a")) is None
        copies.voids = {VoidRecord(later, later)}
        assert copies.of(row(store, "a")) == was
        copies.voids = {VoidRecord(was.sequence, later)}
        assert copies.of(row(store, "a")) is None


async def test_a_copy_that_does_not_open_is_passed_over(home: Home) -> None:
    """Another log has a good one."""
    async with home.open() as store:
        await put(store, "a", content(1, 100))
        bad = row(store, "a")
        spoil(store, bad)
        *_, last = store.pool.opened()
        envelope = replace(bad.envelope, sealed=bytes(200))
        last.scan = lambda: iter([ScannedEntry(Entry(envelope), 0)])  # type: ignore[method-assign]
        await store.damaged_rows.mend_object(name("a"))
        assert does_not_open(store, [bad]) == []


async def test_a_copy_that_wraps_no_data_key_keeps_no_other_row_from_being_brought_back(home: Home) -> None:
    """Sealed by somebody who may write records and has no keys to data."""
    async with home.open() as store:
        for key in "ab":
            await put(store, key, content(1, 100))
        bad, good = row(store, "a"), row(store, "b")
        plain = replace(open_object(store.sealer, bad.envelope), wrapped_key=bytes(40)).encode()
        for each in (bad, good):
            spoil(store, each)
        damaged = [row(store, key) for key in "ab"]
        copies = await store.damaged_rows._hear(damaged, unpaced)
        about = bad.envelope
        copies.take(damaged[0], store.sealer.seal(about.kind, about.namespace, about.key_hash, about.version, about.sequence, plain))
        await store.damaged_rows._bring_back(damaged, copies)
        assert does_not_open(store, [bad, good]) == ["a"]


async def test_a_row_that_cannot_be_read_keeps_no_other_from_being_brought_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that part of the metastore's file is damaged."""
    async with home.open() as store:
        await put(store, "a", content(1, 100))
        bad = row(store, "a")
        spoil(store, bad)
        scan = store.metastore.scan

        def damaged(space: NamespaceId, name: str, *rest: Any) -> Sequence[Row]:
            if name == "0":
                raise CorruptRecord("a page of it cannot be read", key=name)
            return scan(space, name, *rest)

        monkeypatch.setattr(store.metastore, "scan", damaged)
        await store.damaged_rows.mend_rows([(bad.space, "0"), (bad.space, "a")])
        assert does_not_open(store, [bad]) == []


async def test_what_is_written_again_meanwhile_is_left_alone(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 100))
        old = row(store, "a")
        spoil(store, old)
        damaged = row(store, "a")
        hear = store.damaged_rows._hear

        async def overtaken(rows: Sequence[Row], spend: object) -> object:
            heard = await hear(rows, unpaced)
            store.metastore._writer.execute("delete from record where name=x'61'")  # type: ignore[attr-defined]
            await put(store, "a", b"new")
            return heard

        monkeypatch.setattr(store.damaged_rows, "_hear", overtaken)
        damage = Damage()
        await store.damaged_rows.mend([damaged], damage, unpaced)
        assert damage.stay == 0
        assert await get(store, "a") == b"new"


async def test_a_rotation_brings_back_what_does_not_open(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        rows = rows_of(store)
        for each in rows:
            spoil(store, each)
        await rotate(store)
        assert not store.rotation.pending
        await check(store)
        assert all(store.sealer.is_sealed_anew(envelope) for envelope in newest_entries(store))


async def test_a_rotation_goes_past_what_cannot_be_mended_and_on_with_it_later(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        bad = row(store, "small")
        spoil(store, bad)
        remember = forget_copies(store, bad)
        key = home.key_file.read_text()
        job, new = await store.rotation.rotate()
        with pytest.raises(Busy):
            await store.rotation.rotate()
        await ended(job)
        assert new
        assert isinstance(job.error, CorruptRecord)
        assert "default/small" in job.error.message
        assert job.error.data == {"count": 1, "rows": ["default/small"]}
        assert any("default/small" in warning and "rebuild" in warning for warning in store.warnings())
        after = home.key_file.read_text()
        assert after != key
        assert await get(store, "large") == content(2, 700_000)
        others = [each.envelope for each in rows_of(store) if each.name != "small"]
        assert all(store.sealer.is_sealed_anew(each) for each in others)

        again, new = await store.rotation.rotate()
        await ended(again)
        assert not new
        assert isinstance(again.error, CorruptRecord)
        assert home.key_file.read_text() == after
        assert store.rotation.pending
        assert len(store.sealer.ring.older) == 1

        remember()
        await scrubbed(store)  # its copy is there again: and so the rotation goes on by itself
        while store.rotation.pending:
            await store.committer.news().wait()
        await check(store)
        job, new = await store.rotation.rotate()
        await ended(job)
        assert new
        assert job.state == "done"
    async with home.open() as store:
        await check(store)


async def test_the_objects_of_a_namespace_whose_row_does_not_open_are_sealed_anew(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        envelope = store.metastore.get(STORE_WIDE, "namespace/photos")
        assert envelope is not None
        bad = Row(STORE_WIDE, "namespace/photos", envelope)
        (other,) = [each for each in rows_of(store) if each.name == "other"]
        spoil(store, bad)
        forget_copies(store, bad)
        store.namespaces._known.clear()
        job, _ = await store.rotation.rotate()
        await ended(job)
        assert isinstance(job.error, CorruptRecord)
        assert job.error.data["rows"] == ["namespace/photos"]
        now = store.metastore.get(other.space, "other")
        assert now is not None
        assert store.sealer.is_sealed_anew(now)


async def test_every_row_alone_hurts_nothing_else(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        count = len(rows_of(store))
    for number in range(count):
        async with home.open() as store:
            bad = rows_of(store)[number]
            spoil(store, bad)
        async with home.open() as store:
            stored = await put(store, "new", content(number, 1_000), namespace="third")
            assert await store.objects.read(stored) == content(number, 1_000)
            assert store.health == "ok", bad.name
            await scrubbed(store)
            assert does_not_open(store, [bad]) == []
            await check(store)


async def test_a_scrub_whose_position_does_not_open_begins_anew(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        await scrubbed(store)
        (position,) = [each for each in rows_of(store) if each.name == "row/scrub/position"]
        spoil(store, position)
    async with home.open() as store:
        assert (await scrubbed(store)).records_mended == 0  # it was written over
        await check(store)


@pytest.mark.parametrize("change", ["kind = 99", "sealed = 7", "version = 'text'", "key_hash = x'00'"])
async def test_a_row_that_holds_what_was_never_written_comes_back_too(home: Home, change: str) -> None:
    async with home.open() as store:
        await fill(store)
        rows = [each for each in rows_of(store) if each.name in ("small", "namespace/photos", "gone", "row/table/row")]
        for each in rows:
            spoil(store, each, change)
    async with home.open() as store:
        assert await get(store, "large") == content(2, 700_000)
        assert (await scrubbed(store)).records_mended == len(rows) == 4
        await check(store)
        await rotate(store)
        await check(store)


async def test_a_row_without_a_sequence_holds_up_nothing(home: Home) -> None:
    async with home.open() as store:
        await fill(store)
        spoil(store, row(store, "small"), "sequence = 'text'")
        assert (await scrubbed(store)).unreadable == 1
        await rotate(store)
        assert await get(store, "large") == content(2, 700_000)
        with pytest.raises(CorruptRecord) as failed:
            await get(store, "small")
        assert "`zstor rebuild`" in str(failed.value.hint)


# --- By itself, once somebody has met it ---


READS: dict[str, tuple[str, Callable[[Store], Awaitable[object]]]] = {
    "read": ("small", lambda store: get(store, "small")),
    "list": ("small", lambda store: listed(store.objects.list("default", "", None, 100))),
    "changes": ("small", lambda store: listed(Changes(store.core, store.namespaces).since("default", 0, 100))),
    "reference": ("small", lambda store: listed(References(store.core, store.namespaces).find("default", "r", None, 100))),
    "walk": ("small", lambda store: listed(Walk(store.core, store.namespaces).along(name("small"), Route()))),
    "overwrite": ("small", lambda store: put(store, "small", content(1, 5_000))),
    "namespace": ("namespace/photos", lambda store: get(store, "other", namespace="photos")),
    "namespaces": ("namespace/photos", lambda store: at_once(lambda: [*store.namespaces.in_order(None)])),
    "row": ("row/table/row", lambda store: at_once(lambda: store.rows.get("table", "row"))),
    "rows": ("row/table/row", lambda store: at_once(lambda: [*store.rows.scan("table")])),
}


async def listed(found: AsyncIterator[object]) -> list[object]:
    return [each async for each in found]


async def at_once(work: Callable[[], object]) -> object:
    return work()


async def mended(store: Store, rows: Sequence[Row]) -> None:
    """Wait until they open again."""
    while does_not_open(store, rows):
        await store.committer.news().wait()


@pytest.mark.parametrize("change", ["sealed = zeroblob(200)", "kind = 99"])
@pytest.mark.parametrize("reading", READS)
async def test_what_meets_a_damaged_row_has_it_brought_back(home: Home, reading: str, change: str) -> None:
    where, read = READS[reading]
    home.brings_back = True
    async with home.open() as store:
        await fill(store)
        (bad,) = [each for each in rows_of(store) if each.name == where]
        store.namespaces._known.clear()
        spoil(store, bad, change)
        with pytest.raises(CorruptRecord) as failed:
            await read(store)
        assert "looked for" in str(failed.value.hint)
        await mended(store, [bad])
        await read(store)
        assert store.mending.waiting == 0
        await check(store)


async def test_a_scrub_goes_past_a_row_that_no_log_knows(home: Home) -> None:
    """Nothing tells then which shards ought to."""
    async with home.open() as store:
        for key in "ab":
            await put(store, key, content(1, 100))
        bad = row(store, "a")
        spoil(store, bad)
        forget_copies(store, bad)
        found = await scrubbed(store)
        assert (found.records_damaged, found.lacking_records) == (1, 0)


async def test_what_stays_damaged_is_looked_for_again_when_a_shard_is_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not each time that it is read: all logs are read for it."""
    home.brings_back = True
    async with home.open() as store:
        await fill(store)
        bad = row(store, "small")
        spoil(store, bad)
        remember = forget_copies(store, bad)
        looked = trio.Event()
        times = 0
        mend = store.damaged_rows.mend

        async def counting(*args: Any) -> None:
            nonlocal times
            await mend(*args)
            times += 1
            looked.set()

        monkeypatch.setattr(store.damaged_rows, "mend", counting)
        for _ in range(3):
            with pytest.raises(CorruptRecord):
                await get(store, "small")
            await looked.wait()
        assert store.mending.waiting == 0
        assert times == 1
        remember()
        store.mending.wake()
        with pytest.raises(CorruptRecord):
            await get(store, "small")
        await mended(store, [bad])
        await check(store)


async def test_rights_that_do_not_open_keep_no_namespace_from_going(home: Home) -> None:
    async with home.open() as store:
        namespace = await store.namespaces.create("photos")
        await store.rows.put(PERMISSIONS_TABLE, "photos", b"rights")
        spoil(store, next(each for each in rows_of(store) if each.name.endswith(f"{PERMISSIONS_TABLE}/photos")))
        await store.namespaces.remove(namespace)
        assert store.rows.names(PERMISSIONS_TABLE) == []
