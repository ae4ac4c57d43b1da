"""The content store: bytes by their id, stored once, pinned, collected, and what crashes, damage and races leave of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.content.ground import DAY, Chunks, ContentHome
from tests.descriptors import open_descriptors
from tests.formats.samples import SAMPLES, Sample, pattern
from tests.store.home import content as random_bytes
from tests.store.home import freed, keys, small_shares
from zstor_local import limits
from zstor_local.content.cas import Cas, Content, Expected, Owner
from zstor_local.content.contents import NAMESPACE, content_id
from zstor_local.content.pins import Pin
from zstor_local.errors import CorruptRecord, Incomplete, InvalidParams, NotFound, PathRefused, TooLarge
from zstor_local.formats import car, unixfs
from zstor_local.formats.cid import Cid
from zstor_local.formats.unixfs import LEAF_BYTES
from zstor_local.metastore.base import Reference, Transaction
from zstor_local.model.ids import check_namespace
from zstor_local.model.policy import Policy
from zstor_local.runtime import Buffer
from zstor_local.store.caller import Nobody
from zstor_local.store.reading import whole
from zstor_local.store.rebuild import rebuild
from zstor_local.store.sources import BytesSource, FileSource
from zstor_local.store.store import Store
from zstor_local.store.writes import Source

ALICE, BOB = Owner("alice", "her photos"), Owner("bob")
SMALL, LARGE = 10_000, 3 * LEAF_BYTES + 7


@pytest.fixture
def home(tmp_path: Path) -> Iterator[ContentHome]:
    before = open_descriptors()
    yield ContentHome(tmp_path)
    assert open_descriptors() == before


@contextmanager
def file_source(home: ContentHome, data: bytes) -> Iterator[FileSource]:
    path = home.path / "input"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        yield FileSource(home.files, fd)
    finally:
        os.close(fd)


async def upload(cas: Cas, data: bytes, owner: Owner | None = ALICE) -> Cid:
    return (await cas.upload(BytesSource(data), owner)).id


async def listed(cas: Cas, owner: str | None = None) -> set[Cid]:
    return {content.id async for content in cas.contents.list(owner, None, 1_000)}


# --- Upload and fetch ---


@pytest.mark.parametrize("way", ["value", "file", "stream"])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
async def test_content_has_the_id_that_every_tool_computes(home: ContentHome, sample: Sample, way: str) -> None:
    async with home.cas() as (_, cas):
        with file_source(home, sample.data) as file:
            source: Source = {"value": BytesSource(sample.data), "file": file, "stream": Chunks(sample.data)}[way]  # type: ignore[assignment]
            uploaded = await cas.upload(source, ALICE)
        assert (str(uploaded.id), uploaded.size, uploaded.new) == (sample.cid, len(sample.data), True)
        found = cas.contents.find(uploaded.id)
        assert await cas.read(found) == sample.data
        await cas.verify(found)


async def test_a_stretch_is_read(home: ContentHome) -> None:
    data = random_bytes(1, LARGE)
    async with home.cas() as (_, cas):
        found = cas.contents.find(await upload(cas, data))
        assert await cas.read(found, LEAF_BYTES - 3, 10) == data[LEAF_BYTES - 3 : LEAF_BYTES + 7]


async def test_the_ids_of_other_profiles_and_unknown_ones_are_not_found(home: ContentHome) -> None:
    async with home.cas() as (_, cas):
        with pytest.raises(NotFound, match="there is no content"):
            cas.contents.find(content_id(SAMPLES[1].cid))
        await upload(cas, SAMPLES[4].data)
        with pytest.raises(NotFound):
            cas.contents.find(content_id(SAMPLES[4].raw))
        with pytest.raises(InvalidParams):
            content_id("hello")


@pytest.mark.parametrize("size", [0, 1, SMALL, LARGE])
@pytest.mark.parametrize("way", ["value", "file", "stream"])
async def test_the_same_bytes_are_stored_once(home: ContentHome, way: str, size: int) -> None:
    data = random_bytes(2, size)
    async with home.cas() as (store, cas):
        first = await cas.upload(BytesSource(data), ALICE)
        await freed(store)
        before = store.committer.state, home.share_files(), small_shares(store)
        with file_source(home, data) as file:
            source: Source = {"value": BytesSource(data), "file": file, "stream": Chunks(data)}[way]  # type: ignore[assignment]
            again = await cas.upload(source, ALICE)
        assert (again.id, again.size, again.new) == (first.id, size, False)
        await freed(store)
        after = store.committer.state
        assert (after.objects, after.bytes) == (before[0].objects, before[0].bytes)
        assert (home.share_files(), small_shares(store)) == before[1:]


async def test_a_known_file_is_not_written_first(home: ContentHome) -> None:
    data = random_bytes(3, LARGE)
    async with home.cas() as (_, cas):
        await upload(cas, data)
        home.files.calls.clear()
        with file_source(home, data) as file:
            assert not (await cas.upload(file, BOB)).new
        assert home.files.calls["rename"] == 0


async def test_two_uploads_of_the_same_bytes_at_once_store_them_once(home: ContentHome) -> None:
    data = random_bytes(4, LARGE)
    new: list[bool] = []

    async with home.cas() as (store, cas):

        async def one(owner: str) -> None:
            new.append((await cas.upload(Chunks(data), Owner(owner))).new)

        async with trio.open_nursery() as nursery:
            for owner in ("a", "b", "c"):
                nursery.start_soon(one, owner)
        await freed(store)
        assert sorted(new) == [False, False, True]
        assert len(home.share_files()) == home.policy.m
        (found,) = [each async for each in cas.contents.list(None, None, 10)]
        assert {pin.owner for pin in found.pins} == {"a", "b", "c"}


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_bytes_that_cannot_be_read_any_more_are_stored_anew(home: ContentHome, size: int) -> None:
    data = random_bytes(5, size)
    async with home.cas() as (_, cas):
        cid = await upload(cas, data)
        stored = cas.contents.find(cid).stored
    if size == LARGE:
        for path in home.share_files()[:2]:
            Path(path).unlink()
    else:
        for number in (0, 1):
            for segment in Path(home.root(number)).glob("log/*"):
                segment.unlink()
        for part in Path(home.store).glob("index.sqlite*"):
            part.unlink()
    async with home.cas() as (_, cas):
        again = await cas.upload(BytesSource(data), BOB)
        assert (again.id, again.new) == (cid, True)
        found = cas.contents.find(cid)
        assert found.stored.version != stored.version
        assert [pin.owner for pin in found.pins] == ["alice", "bob"]
        assert found.created == stored.record.created
        assert await cas.read(found) == data


async def test_a_stored_copy_that_lacks_a_share_counts_and_is_repaired(home: ContentHome) -> None:
    data = random_bytes(6, LARGE)
    async with home.cas() as (_, cas):
        cid = await upload(cas, data)
        Path(home.share_files()[0]).unlink()
        assert not (await cas.upload(BytesSource(data), BOB)).new
        assert home.suspects == {cas.contents.find(cid).stored.version}


async def test_what_was_announced_is_compared(home: ContentHome) -> None:
    data = random_bytes(7, SMALL)
    async with home.cas() as (_, cas):
        for round_ in range(2):  # of new bytes, and of stored ones
            for wrong in (Expected(size=SMALL + 1), Expected(digest="blake3:" + "00" * 32), Expected(id=content_id(SAMPLES[1].cid))):
                with pytest.raises(Incomplete):
                    await cas.upload(BytesSource(data), BOB, expected=wrong)
            assert len(await listed(cas)) == round_
            right = await cas.upload(BytesSource(data), ALICE)
            record = cas.contents.find(right.id).stored.record
            await cas.upload(
                BytesSource(data), ALICE, expected=Expected(size=SMALL, digest="blake3:" + record.digest.hex(), id=right.id)
            )
        assert [pin.owner for pin in cas.contents.find(right.id).pins] == ["alice"]


async def test_a_file_that_changes_while_it_is_stored_is_refused(home: ContentHome) -> None:
    """The bytes change, the time does not: only the second look at the bytes finds it."""
    data = random_bytes(8, LARGE)

    class Changing(FileSource):
        reads = 0

        def read_at(self, buffer: memoryview, position: int) -> None:
            super().read_at(buffer, position)
            if position == 0:
                self.reads += 1
                buffer[0] = self.reads

    async with home.cas() as (store, cas):
        path = home.path / "input"
        path.write_bytes(data)
        with path.open("rb") as file, pytest.raises(PathRefused, match="the file changed"):
            await cas.upload(Changing(home.files, file.fileno()), ALICE)
        await freed(store)
        assert home.share_files() == []
        assert await listed(cas) == set()


async def test_a_file_that_becomes_shorter_is_refused(home: ContentHome) -> None:
    class Shrinking(FileSource):
        def read_at(self, buffer: memoryview, position: int) -> None:
            os.truncate(home.path / "input", 5)
            super().read_at(buffer, position)

    async with home.cas() as (_, cas):
        path = home.path / "input"
        path.write_bytes(random_bytes(8, LARGE))
        with path.open("rb") as file, pytest.raises(PathRefused, match="became shorter"):
            await cas.upload(Shrinking(home.files, file.fileno()), ALICE)


async def test_wrong_bytes_under_an_id_are_found_by_the_id(home: ContentHome) -> None:
    async with home.cas() as (_, cas):
        cid = await upload(cas, b"right")
        other = cas.contents.find(await upload(cas, b"wrong")).stored
        with pytest.raises(CorruptRecord, match="the bytes under"):
            await cas.verify(Content(cid, other))


async def test_contents_are_in_no_namespace_of_users(home: ContentHome) -> None:
    with pytest.raises(InvalidParams):
        check_namespace(NAMESPACE)
    async with home.cas() as (store, cas):
        await upload(cas, b"x")
        assert await keys(store) == []


@pytest.mark.parametrize("policy", [Policy(2, 3), Policy(1, 2), Policy(2, 3, chunk_size=4 * limits.MIB, padding="padme")])
async def test_every_policy_gives_the_same_ids(tmp_path: Path, policy: Policy) -> None:
    home = ContentHome(tmp_path, policy)
    async with home.cas() as (_, cas):
        for sample in SAMPLES:
            assert str((await cas.upload(Chunks(sample.data), ALICE)).id) == sample.cid
            await cas.verify(cas.contents.find(content_id(sample.cid)))


# --- Pins ---


async def test_pins_tell_owner_reason_and_time_and_survive(home: ContentHome) -> None:
    async with home.cas() as (_, cas):
        cid = await upload(cas, b"photo")
        start = home.clock.now()
        home.clock.skip(10)
        await cas.keeping.pin(cid, BOB)
        await cas.keeping.pin(cid, ALICE)
        expected = (Pin("alice", "her photos", start), Pin("bob", "", home.clock.now()))
        assert cas.contents.find(cid).pins == expected
    async with home.cas() as (_, cas):
        assert cas.contents.find(cid).pins == expected
        assert (await cas.keeping.pin(cid, Owner("alice", "an album"))).pins[0] == Pin("alice", "an album", home.clock.now())


async def test_owners_find_what_is_theirs(home: ContentHome) -> None:
    async with home.cas() as (_, cas):
        a, b = await upload(cas, b"a"), await upload(cas, b"b")
        await cas.keeping.pin(b, BOB)
        await cas.upload(BytesSource(b"nobody's"), None)
        assert await listed(cas, "alice") == {a, b}
        assert await listed(cas, "bob") == {b}
        await cas.keeping.unpin(b, "alice")
        assert await listed(cas, "alice") == {a}
        assert len(await listed(cas)) == 3


async def test_pages_of_a_list_follow_each_other(home: ContentHome) -> None:
    async with home.cas() as (_, cas):
        made = sorted([str(await upload(cas, bytes([number]))) for number in range(7)])
        for owner in (None, "alice"):
            found: list[str] = []
            while page := [str(each.id) async for each in cas.contents.list(owner, found[-1] if found else None, 3)]:
                found += page
            assert found == made


async def test_a_damaged_row_of_an_owner_hides_nothing_else_that_it_pins(home: ContentHome) -> None:
    async with home.cas() as (store, cas):
        pinned = await upload(cas, b"hers")
        namespace = store.namespaces.get(NAMESPACE)
        damaged = Reference(namespace.id, namespace.reference_hash(ALICE.name), "a" + str(pinned)[1:])
        store.metastore.commit(Transaction(store.committer.state, references=[damaged]))
        assert await listed(cas, ALICE.name) == {pinned}


async def test_a_pin_of_what_is_not_there_is_refused(home: ContentHome) -> None:
    cid = content_id(SAMPLES[1].cid)
    async with home.cas() as (_, cas):
        for _ in range(2):
            with pytest.raises(NotFound):
                await cas.keeping.pin(cid, ALICE)
            with pytest.raises(NotFound):
                await cas.keeping.unpin(cid, "alice")
            await upload(cas, b"another, so that the namespace is there")


async def test_the_pins_of_a_content_are_limited(home: ContentHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PINS", 2)
    async with home.cas() as (_, cas):
        cid = await upload(cas, b"x")
        await cas.keeping.pin(cid, BOB)
        with pytest.raises(TooLarge):
            await cas.keeping.pin(cid, Owner("carol"))
        await cas.keeping.pin(cid, Owner("bob", "again"))


# --- Collection ---


async def collect(store: Store, cas: Cas) -> int:
    found = (await cas.keeping.collect()).contents
    await freed(store)
    return found


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_what_nobody_pins_is_kept_for_a_week_and_then_collected(home: ContentHome, size: int) -> None:
    async with home.cas() as (store, cas):
        cid = await upload(cas, random_bytes(9, size), None)
        kept = await upload(cas, b"pinned")
        assert await collect(store, cas) == 0
        home.clock.skip(7 * DAY - 1)
        assert await collect(store, cas) == 0
        await cas.upload(BytesSource(random_bytes(9, size)), None)  # a week from now on
        home.clock.skip(7 * DAY - 1)
        assert await collect(store, cas) == 0
        home.clock.skip(1)
        dry = await cas.keeping.collect(dry_run=True)
        assert (dry.looked_at, dry.contents, dry.bytes) == (2, 1, size)
        assert await listed(cas) == {cid, kept}
        assert await collect(store, cas) == 1
        assert await listed(cas) == {kept}
        assert (home.share_files(), small_shares(store)) == ([], home.policy.m)


async def test_an_owner_that_lets_go_may_think_again_for_a_week(home: ContentHome) -> None:
    async with home.cas() as (store, cas):
        cid = await upload(cas, b"x")
        await cas.keeping.pin(cid, BOB)
        left = await cas.keeping.unpin(cid, "alice")
        assert left is not None
        assert [pin.owner for pin in left.pins] == ["bob"]
        home.clock.skip(30 * DAY)
        assert await collect(store, cas) == 0
        await cas.keeping.unpin(cid, "bob")
        home.clock.skip(DAY)
        await cas.keeping.unpin(cid, "bob")  # twice is once
        home.clock.skip(6 * DAY - 1)
        assert await collect(store, cas) == 0
        home.clock.skip(1)
        assert await collect(store, cas) == 1
        with pytest.raises(NotFound):
            cas.contents.find(cid)


async def test_forgetting_deletes_at_once_what_nobody_else_keeps(home: ContentHome) -> None:
    async with home.cas() as (store, cas):
        alone, shared, promised = await upload(cas, b"a"), await upload(cas, b"b"), await upload(cas, b"c")
        await cas.keeping.pin(shared, BOB)
        await cas.upload(BytesSource(b"c"), None)
        assert await cas.keeping.unpin(alone, "alice", forget=True) is None
        assert await cas.keeping.unpin(shared, "alice", forget=True) is not None
        assert await cas.keeping.unpin(promised, "alice", forget=True) is not None
        assert await listed(cas) == {shared, promised}
        await freed(store)
        assert small_shares(store) == 2 * home.policy.m
        home.clock.skip(7 * DAY)
        assert await cas.keeping.unpin(promised, "alice", forget=True) is None


async def test_a_collection_goes_through_any_number_of_contents(home: ContentHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.content.keeping.BATCH", 4)
    async with home.cas() as (_, cas):
        for number in range(23):
            await upload(cas, bytes([number]), None if number % 3 else ALICE)
        kept = await listed(cas, "alice")
        home.clock.skip(8 * DAY)
        result = await cas.keeping.collect()
        assert (result.looked_at, result.contents, result.bytes) == (23, 15, 15)
        assert await listed(cas) == kept


async def test_what_is_kept_again_before_its_turn_stays(home: ContentHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collection has seen both as garbage; then one is pinned and the other uploaded; then its own turn comes."""
    async with home.cas() as (store, cas):
        pinned, uploaded = await upload(cas, b"a", None), await upload(cas, b"b", None)
        home.clock.skip(8 * DAY)
        commit = store.committer.commit

        async def others_first(*args: object) -> object:
            monkeypatch.setattr(store.committer, "commit", commit)
            await cas.keeping.pin(pinned, ALICE)
            await cas.upload(BytesSource(b"b"), None)
            return await commit(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(store.committer, "commit", others_first)
        assert (await cas.keeping.collect()).contents == 0
        assert await listed(cas) == {pinned, uploaded}


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_an_upload_does_not_count_on_what_is_collected_before_its_turn(
    home: ContentHome, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    data = random_bytes(10, size)
    async with home.cas() as (store, cas):
        cid = await upload(cas, data, None)
        home.clock.skip(8 * DAY)
        commit = store.committer.commit

        async def collected_first(*args: object) -> object:
            monkeypatch.setattr(store.committer, "commit", commit)
            assert await collect(store, cas) == 1
            return await commit(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(store.committer, "commit", collected_first)
        assert (await cas.upload(BytesSource(data), ALICE)).new
        assert await cas.read(cas.contents.find(cid)) == data


async def test_a_read_that_has_begun_ends_though_its_content_is_collected(home: ContentHome) -> None:
    data = random_bytes(11, LARGE)

    class Slow:
        """Takes the first bytes, then waits until everything was collected."""

        def __init__(self, store: Store, cas: Cas) -> None:
            self.store, self.cas, self.got = store, cas, b""

        async def write(self, parts: list[Buffer]) -> None:
            if not self.got:
                assert await collect(self.store, self.cas) == 1
            self.got += b"".join(parts)

    async with home.cas() as (store, cas):
        cid = await upload(cas, data, None)
        home.clock.skip(8 * DAY)
        found, sink = cas.contents.find(cid), Slow(store, cas)
        await store.objects.read_to_stream(found.stored, sink, whole(found.stored.record), Nobody())  # type: ignore[arg-type]
        assert sink.got == data
        await freed(store)
        assert home.share_files() == []


# --- Blocks ---


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
async def test_the_blocks_of_a_content_make_the_known_archive(home: ContentHome, sample: Sample) -> None:
    async with home.cas() as (_, cas):
        found = cas.contents.find(await upload(cas, sample.data))
        made = car.header([found.id])
        async for cid, block in cas.blocks(found):
            made += car.section(cid, len(block)) + block
    assert hashlib.sha256(made).hexdigest() == sample.car_sha256


async def test_blocks_of_a_tree_with_levels(home: ContentHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unixfs, "WIDTH", 3)
    data = pattern(10 * LEAF_BYTES + 5)
    async with home.cas() as (_, cas):
        found = cas.contents.find(await upload(cas, data))
        blocks = {cid: block async for cid, block in cas.blocks(found)}

    def file(cid: Cid) -> bytes:
        return blocks[cid] if cid.codec == 0x55 else b"".join(file(link.cid) for link in unixfs.parse_node(blocks[cid]))

    assert file(found.id) == data
    assert all(cid.names(block) for cid, block in blocks.items())


# --- Rebuild ---


async def test_a_rebuild_brings_back_contents_with_their_pins(home: ContentHome) -> None:
    large = random_bytes(12, LARGE)
    async with home.cas() as (_, cas):
        a, b, c = await upload(cas, b"a"), await upload(cas, large), await upload(cas, b"c", None)
        await cas.keeping.pin(a, BOB)
        await cas.keeping.unpin(a, "alice")
        gone = await upload(cas, b"gone")
        await cas.keeping.unpin(gone, "alice", forget=True)
        expected = [(each.id, each.pins, each.kept_until) async for each in cas.contents.list(None, None, 10)]
    for path in Path(home.store).glob("metastore.sqlite*"):
        path.unlink()
    rebuild(home.runtime(), home.engines, home.config(), accept_loss=False, progress=lambda what, done: None)
    async with home.cas() as (_, cas):
        assert [(each.id, each.pins, each.kept_until) async for each in cas.contents.list(None, None, 10)] == expected
        assert await listed(cas, "bob") == {a}
        assert await listed(cas, "alice") == {b}
        assert await cas.read(cas.contents.find(b)) == large
        await cas.verify(cas.contents.find(b))
        assert not (await cas.upload(BytesSource(b"c"), ALICE)).new
        assert {a, b, c} == await listed(cas)
