"""Objects: what is written is read, whatever its size, and changes happen wholly or not at all."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest
import trio

from tests.store.home import CHUNK, SMALL_AND_LARGE, Home, content, delete, get, keys, name, opened_blocks, put
from zstor_local import limits
from zstor_local.errors import AlreadyExists, Conflict, CorruptRecord, Incomplete, NotFound
from zstor_local.model.policy import Policy
from zstor_local.store.caller import Nobody
from zstor_local.store.changes import Changes
from zstor_local.store.pace import RECORDS_A_TURN
from zstor_local.store.reading import whole
from zstor_local.store.sinks import FileSink, PipeSink
from zstor_local.store.sources import BytesSource, FileSource, PipeSource
from zstor_local.store.store import Store
from zstor_local.store.writes import WriteOptions
from zstor_local.system import RealFiles

LARGEST_SMALL = 131_008  # bytes whose shares still are log entries with 2 of 3
SIZES = (0, 1, 2, 63, 10_000, LARGEST_SMALL, LARGEST_SMALL + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 1_000_003)


# --- Bytes in, bytes out ---


@pytest.mark.parametrize("padding", ["none", "padme"])
@pytest.mark.parametrize("compression", ["none", "zstd"])
async def test_objects_of_every_size_come_back_also_after_a_restart(home: Home, compression: str, padding: str) -> None:
    home.policy = Policy(2, 3, chunk_size=CHUNK, compression=compression, padding=padding)  # type: ignore[arg-type]
    values = {f"random {size}": content(size, size) for size in SIZES}
    values |= {f"text {size}": (b"much the same again and again " * (size // 30 + 1))[:size] for size in SIZES}
    async with home.open() as store:
        for key, value in values.items():
            stored = await put(store, key, value)
            assert (stored.record.size, stored.owed) == (len(value), 0)
        for key, value in values.items():
            assert await get(store, key) == value
    async with home.open() as store:
        for key, value in values.items():
            assert await get(store, key) == value


@pytest.mark.parametrize(("k", "m"), [(1, 1), (1, 3), (3, 3), (4, 6), (10, 12)])
async def test_every_kind_of_policy_gives_the_bytes_back(home: Home, k: int, m: int) -> None:
    home.policy = Policy(k, m, chunk_size=CHUNK)
    async with home.open() as store:
        for size in (0, 1, 5_000, CHUNK, 700_001):
            await put(store, str(size), content(size, size))
            assert await get(store, str(size)) == content(size, size)


async def test_a_share_is_a_kth_of_the_object(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 4 * CHUNK))
        assert stored.record.share_bytes == 4 * (CHUNK // 2 + 32)
        assert len(home.share_files()) == 3


async def test_text_is_compressed_and_random_bytes_are_not(home: Home) -> None:
    async with home.open() as store:
        text = await put(store, "text", b"much the same " * 50_000)
        noise = await put(store, "noise", content(1, 700_000))
        assert text.record.share_bytes < 10_000
        assert noise.record.share_bytes > 350_000


async def test_no_plain_byte_lies_on_a_shard_or_in_the_metastore(home: Home) -> None:
    plain = b"a sentence that must not be found on any disk"
    async with home.open() as store:
        await put(store, "the key is secret too", plain, WriteOptions(user={"note": "so are metadata"}))
        await put(store, "large", plain + content(1, 700_000))
    for file in home.path.rglob("*"):
        if file.is_file():
            found = file.read_bytes()
            assert plain not in found
            assert b"so are metadata" not in found
            assert b"the key is secret too" not in found or file.name.startswith("metastore")


# --- Streams and files ---


@asynccontextmanager
async def fed_pipe(value: bytes) -> AsyncIterator[int]:
    """The reading end of a real pipe through which the bytes come."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)

    async def feed() -> None:
        todo = memoryview(value)
        while todo:
            await trio.lowlevel.wait_writable(writing)
            todo = todo[os.write(writing, todo[:50_000]) :]
        os.close(writing)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        yield reading
    os.close(reading)


@pytest.mark.parametrize("size", SIZES)
async def test_a_stream_of_unknown_size_is_stored_through_a_pipe(home: Home, size: int) -> None:
    value = content(size, size)
    async with home.open() as store, fed_pipe(value) as fd:
        stored = await put(store, "a", PipeSource(store.runtime, fd))
        assert stored.record.size == size
        assert await get(store, "a") == value


@pytest.mark.parametrize("size", SIZES)
async def test_a_file_is_stored_and_read_to_a_file(home: Home, size: int) -> None:
    value = content(size, size)
    given, taken = home.path / "given", home.path / "taken"
    given.write_bytes(b"not this" + value)
    taken.write_bytes(b"keep" + bytes(size))
    async with home.open() as store:
        with given.open("rb") as file:
            await put(store, "a", FileSource(RealFiles(), file.fileno(), offset=8))
        stored = store.objects.find(name("a"))
        with taken.open("r+b") as file:
            await store.objects.read_to_file(stored, FileSink(RealFiles(), file.fileno(), 4), whole(stored.record), Nobody())
    assert taken.read_bytes() == b"keep" + value


@pytest.mark.parametrize("size", [0, 1, CHUNK, 1_000_003])
async def test_an_object_is_read_to_a_pipe(home: Home, size: int) -> None:
    value = content(size, size)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.set_blocking(reading, False)
    async with home.open() as store:
        await put(store, "a", value)
        stored = store.objects.find(name("a"))
        received = b""

        async def send() -> None:
            sink = PipeSink(store.runtime, writing, RealFiles().writev)
            await store.objects.read_to_stream(stored, sink, whole(stored.record), Nobody())
            os.close(writing)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while True:
                await trio.lowlevel.wait_readable(reading)
                part = os.read(reading, 65_536)
                if not part:
                    break
                received += part
    os.close(reading)
    assert received == value


class Listener(Nobody):
    """A caller that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int | None]] = []

    def progress(self, done: int, total: int | None) -> None:
        self.told.append((done, total))


async def test_progress_goes_up_to_the_whole(home: Home) -> None:
    given = home.path / "given"
    given.write_bytes(content(1, 20 * CHUNK))
    listener = Listener()
    async with home.open() as store:
        with given.open("rb") as file:
            await put(store, "a", FileSource(RealFiles(), file.fileno()), caller=listener)
    assert listener.told == sorted(listener.told)
    assert listener.told[-1] == (20 * CHUNK, 20 * CHUNK)


class HurryingClock:
    """A second passes with every look."""

    def __init__(self) -> None:
        self.now_us = 1_700_000_000_000_000

    def now(self) -> int:
        self.now_us += 1_000_000
        return self.now_us


async def test_a_slow_read_gives_its_thread_back_after_each_chunk(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = replace(home.runtime(), clock=HurryingClock())
    monkeypatch.setattr(home, "runtime", lambda: slow)
    listener = Listener()
    taken = home.path / "taken"
    async with home.open() as store:
        await put(store, "a", content(1, 6 * CHUNK))
        stored = store.objects.find(name("a"))
        with taken.open("w+b") as file:
            await store.objects.read_to_file(stored, FileSink(RealFiles(), file.fileno()), whole(stored.record), listener)
    assert [done for done, _ in listener.told] == [CHUNK * each for each in range(1, 7)]
    assert taken.read_bytes() == content(1, 6 * CHUNK)


# --- Conditions ---


async def test_writing_again_makes_a_new_version_and_keeps_the_time_of_creation(home: Home) -> None:
    async with home.open() as store:
        first = await put(store, "a", b"first")
        second = await put(store, "a", b"second")
        assert await get(store, "a") == b"second"
        assert second.version != first.version
        assert second.record.created == first.record.created
        assert second.record.modified > second.record.created
        assert second.envelope.sequence > first.envelope.sequence


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_an_exclusive_write_never_replaces(home: Home, size: int) -> None:
    async with home.open() as store:
        first = await put(store, "a", content(1, size), WriteOptions(exclusive=True))
        with pytest.raises(AlreadyExists) as caught:
            await put(store, "a", content(2, size), WriteOptions(exclusive=True))
        assert caught.value.data["current"] == first.version.hex()
        assert await get(store, "a") == content(1, size)
        await delete(store, "a")
        await put(store, "a", content(2, size), WriteOptions(exclusive=True))


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_write_for_another_version_is_a_conflict_that_names_the_present_one(home: Home, size: int) -> None:
    async with home.open() as store:
        first = await put(store, "a", content(1, size))
        second = await put(store, "a", content(2, size), WriteOptions(if_version=first.version))
        with pytest.raises(Conflict) as caught:
            await put(store, "a", content(3, size), WriteOptions(if_version=first.version))
        assert caught.value.data["current"] == second.version.hex()
        assert await get(store, "a") == content(2, size)
        with pytest.raises(Conflict) as caught:
            await put(store, "b", b"", WriteOptions(if_version=first.version))
        assert caught.value.data["current"] is None


async def test_a_delete_for_another_version_is_a_conflict(home: Home) -> None:
    async with home.open() as store:
        first = await put(store, "a", b"1")
        second = await put(store, "a", b"2")
        with pytest.raises(Conflict):
            await store.writer.delete(name("a"), first.version, Nobody())
        await store.writer.delete(name("a"), second.version, Nobody())


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_other_bytes_than_announced_leave_the_old_value(home: Home, size: int) -> None:
    async with home.open() as store:
        right = await put(store, "a", content(1, size))
        digest = f"blake3:{right.record.digest.hex()}"
        await put(store, "a", content(1, size), WriteOptions(expected_size=size, expected_digest=digest))
        with pytest.raises(Incomplete) as caught:
            await put(store, "a", content(2, size), WriteOptions(expected_size=size + 1))
        assert caught.value.data["size"] == size
        with pytest.raises(Incomplete):
            await put(store, "a", content(2, size), WriteOptions(expected_digest=digest))
        assert await get(store, "a") == content(1, size)


async def test_references_are_replaced_or_kept(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"1", WriteOptions(references=["x", "y"]))
        kept = await put(store, "a", b"2", WriteOptions(keep_references=True))
        assert kept.record.references == ("x", "y")
        assert (await put(store, "a", b"3", WriteOptions(references=["z"]))).record.references == ("z",)
        assert (await put(store, "a", b"4")).record.references == ()
        assert (await put(store, "new", b"5", WriteOptions(keep_references=True))).record.references == ()


async def test_user_metadata_come_back_as_they_were(home: Home) -> None:
    user = {"text": "ü", "number": 7, "real": 0.5, "list": [1, "two", None, True], "map": {"a": {"b": []}}}
    async with home.open() as store:
        await put(store, "a", b"", WriteOptions(user=user))
    async with home.open() as store:
        assert store.objects.find(name("a")).record.user == user


# --- Finding ---


async def test_what_is_not_there_is_not_found(home: Home) -> None:
    async with home.open() as store:
        with pytest.raises(NotFound):
            await get(store, "a")
        with pytest.raises(NotFound):
            await delete(store, "a")
        await put(store, "a", b"1")
        with pytest.raises(NotFound):
            await get(store, "a", namespace="other")
        await delete(store, "a")
        with pytest.raises(NotFound):
            await get(store, "a")
        with pytest.raises(NotFound):
            await delete(store, "a")


async def test_namespaces_do_not_see_each_other(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"here")
        await put(store, "a", b"there", namespace="other")
        await delete(store, "a")
        assert await get(store, "a", namespace="other") == b"there"
        assert await keys(store) == []
        assert await keys(store, namespace="never written") == []


async def test_two_first_writes_to_a_namespace_make_it_once(home: Home) -> None:
    async with home.open() as store:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(partial(put, store, str(number), b"%d" % number, namespace="new"))
        assert sorted(await keys(store, namespace="new")) == sorted(str(number) for number in range(10))


async def test_a_seal_leads_to_its_version_and_a_forged_one_to_nothing(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", b"value")
        seal = stored.envelope.pack()
        assert store.objects.from_seal(seal).record == stored.record
        for at in range(len(seal)):
            forged = bytearray(seal)
            forged[at] ^= 1
            with pytest.raises(CorruptRecord):
                store.objects.from_seal(bytes(forged))
        with pytest.raises(CorruptRecord):
            store.objects.from_seal(seal[:20])


async def test_the_store_counts_objects_and_their_bytes(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        await put(store, "b", b"12345")
        await put(store, "a", b"123")
        assert (store.committer.state.objects, store.committer.state.bytes) == (2, 8)
        await delete(store, "b")
    async with home.open() as store:
        assert (store.committer.state.objects, store.committer.state.bytes) == (1, 3)


# --- Lists ---


async def test_a_list_goes_in_the_order_of_the_keys_bytes(home: Home) -> None:
    wanted = ["A", "a", "a/b", "a/c", "ab", "z", "é", "ﬀ", "😀"]
    async with home.open() as store:
        for key in reversed(wanted):
            await put(store, key, key.encode())
        assert await keys(store) == wanted
        assert await keys(store, "a") == ["a", "a/b", "a/c", "ab"]
        assert await keys(store, "a/") == ["a/b", "a/c"]
        assert await keys(store, "a", after="a/b") == ["a/c", "ab"]
        assert await keys(store, limit=2) == wanted[:2]
        assert await keys(store, limit=3, after="a/c") == wanted[4:7]


async def test_a_list_longer_than_a_turn_is_whole(home: Home) -> None:
    wanted = [f"{number:03}" for number in range(2 * RECORDS_A_TURN + 5)]
    async with home.open() as store:
        async with trio.open_nursery() as nursery:
            for key in wanted:
                nursery.start_soon(put, store, key, b"")
        assert await keys(store) == wanted


async def test_large_records_are_read_a_few_at_a_time_and_all_are_listed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        for number in range(20):
            await put(store, f"k/{number:02}", b"", WriteOptions(user={"a": "x" * 3_000}))
        monkeypatch.setattr(limits, "ROWS_BYTES", 10_000)
        assert await keys(store) == [f"k/{number:02}" for number in range(20)]
        assert [each.record.key async for each in store.objects.list("default", "k/", "k/03", 6)] == [f"k/{n:02}" for n in range(4, 10)]
        changes = Changes(store.core, store.namespaces)
        found = [each async for each in changes.since("default", 0, 100)]
        assert [each.key for each in found] == await keys(store)
        assert [each async for each in changes.since("default", found[4].sequence, 6)] == found[5:11]


async def test_a_record_under_another_keys_row_is_corrupt(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"1")
        await put(store, "b", b"2")
        namespace = store.namespaces.find("default")
        assert namespace is not None
        row = store.metastore.scan(namespace.id, "a", None, 1)[0]
        store.metastore._writer.execute(  # type: ignore[attr-defined]
            "update record set key_hash=?, version=?, sequence=?, sealed=? where name=x'62'",
            (row.envelope.key_hash, row.envelope.version, row.envelope.sequence, row.envelope.sealed),
        )
        with pytest.raises(CorruptRecord):
            await get(store, "b")
        with pytest.raises(CorruptRecord):
            await keys(store)
        assert await get(store, "a") == b"1"


# --- Ranges ---


@pytest.mark.parametrize(
    ("offset", "length", "chunks"),
    [
        (0, None, 4),
        (None, None, 4),
        (0, 0, 0),
        (0, 1, 1),
        (CHUNK - 1, 1, 1),
        (CHUNK - 1, 2, 2),
        (CHUNK, CHUNK, 1),
        (CHUNK, CHUNK + 1, 2),
        (3 * CHUNK, None, 1),
        (3 * CHUNK + 10, 10**9, 1),
        (4 * CHUNK, None, 0),
        (10**12, 5, 0),
    ],
)
async def test_a_range_reads_the_chunks_it_touches_and_no_others(
    home: Home, monkeypatch: pytest.MonkeyPatch, offset: int | None, length: int | None, chunks: int
) -> None:
    value = content(1, 3 * CHUNK + 1_000)
    async with home.open() as store:
        await put(store, "a", value)
        opened = opened_blocks(monkeypatch)
        begin = offset or 0
        wanted = value[begin:] if length is None else value[begin : begin + length]
        assert await get(store, "a", offset=offset, length=length) == wanted
        assert len(opened) == 2 * chunks


@pytest.mark.parametrize(("offset", "length"), [(0, 1), (4_999, 2), (9_999, 5), (100, 300)])
async def test_a_range_of_a_small_object(home: Home, offset: int, length: int) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        assert await get(store, "a", offset=offset, length=length) == content(1, 10_000)[offset : offset + length]


async def test_a_range_to_a_file_begins_at_the_sinks_place(home: Home) -> None:
    value = content(1, 3 * CHUNK)
    taken = home.path / "taken"
    async with home.open() as store:
        await put(store, "a", value)
        stored = store.objects.find(name("a"))
        part = replace(whole(stored.record), offset=CHUNK - 5, length=CHUNK + 10)
        with taken.open("w+b") as file:
            await store.objects.read_to_file(stored, FileSink(RealFiles(), file.fileno()), part, Nobody())
    assert taken.read_bytes() == value[CHUNK - 5 : 2 * CHUNK + 5]


# --- At the same time ---


async def test_many_writers_of_different_keys_all_succeed(home: Home) -> None:
    async with home.open() as store:
        await write_many(store, 60)
        for number in range(60):
            assert await get(store, str(number)) == content(number, number * 5_000)


async def write_many(store: Store, count: int) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(put, store, str(number), content(number, number * 5_000))


async def test_of_writers_of_one_key_one_wins_wholly(home: Home) -> None:
    async with home.open() as store:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(put, store, "a", content(number, SMALL_AND_LARGE[number % 2]))
        assert await get(store, "a") in [content(number, SMALL_AND_LARGE[number % 2]) for number in range(10)]


async def test_of_exclusive_writers_exactly_one_wins(home: Home) -> None:
    won: list[int] = []

    async def attempt(store: Store, number: int) -> None:
        try:
            await store.writer.write(name("a"), BytesSource(b"%d" % number), WriteOptions(exclusive=True), Nobody())
            won.append(number)
        except AlreadyExists:
            pass

    async with home.open() as store:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(attempt, store, number)
        assert len(won) == 1
        assert await get(store, "a") == b"%d" % won[0]
