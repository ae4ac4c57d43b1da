"""What is read at once, in the event loop: small objects that are well, whose bytes are at hand. All else is left to a reader."""

from __future__ import annotations

import errno

import pytest

from tests.store.home import CHUNK, Home, content, freed, get, name, put, share_place
from zstor_local.model.policy import Policy
from zstor_local.shards.directory import DirectoryShard
from zstor_local.store.reading import stretch
from zstor_local.store.store import Store


@pytest.fixture
def four_of_six(home: Home) -> Home:
    home.policy = Policy(4, 6, chunk_size=CHUNK)
    return home


def peek(store: Store, key: str, offset: int | None = None, length: int | None = None) -> bytes | None:
    stored = store.objects.find(name(key))
    return store.objects.read_value(stored, stretch(stored.record, offset, length))


@pytest.mark.parametrize("padding", ["none", "padme"])
@pytest.mark.parametrize(("k", "m"), [(1, 2), (2, 3), (4, 6)])
async def test_small_objects_are_read_at_once_whole_and_in_part(home: Home, k: int, m: int, padding: str) -> None:
    home.policy = Policy(k, m, chunk_size=CHUNK, padding=padding)  # type: ignore[arg-type]
    values = {f"{size}": content(size, size) for size in (0, 1, 63, 4_096, 60_000)} | {"text": b"again and again " * 300}
    async with home.open() as store:
        for key, value in values.items():
            await put(store, key, value)
        for key in values:
            await get(store, key)  # opens the segments
        for key, value in values.items():
            assert peek(store, key) == value
            assert peek(store, key, 10, 20) == value[10:30]
            assert peek(store, key, 10) == value[10:]


async def test_several_chunks_are_read_at_once(home: Home) -> None:
    home.policy = Policy(12, 13, chunk_size=CHUNK)
    value = content(1, 2 * CHUNK + 5)
    async with home.open() as store:
        stored = await put(store, "a", value)
        assert stored.record.small
        await get(store, "a")
        assert peek(store, "a") == value
        assert peek(store, "a", CHUNK - 3, CHUNK + 6) == value[CHUNK - 3 : 2 * CHUNK + 3]


async def test_large_objects_are_left_to_a_reader(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        await get(store, "a")
        assert peek(store, "a", 0, 10) is None


async def test_a_segment_that_nobody_has_read_from_yet_is_left_to_a_reader(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", b"abc")
        assert peek(store, "a") is None
        assert await get(store, "a") == b"abc"
        assert peek(store, "a") == b"abc"


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EIO])
async def test_a_disk_that_would_be_waited_for_or_that_fails_is_left_to_a_reader(home: Home, code: int) -> None:
    async with home.open() as store:
        await put(store, "a", b"abc")
        await get(store, "a")
        home.files.fail("preadv_nowait", lambda path: True, code)
        assert peek(store, "a") is None
        assert peek(store, "a") == b"abc"


@pytest.mark.parametrize("late", [(0,), (1,), (0, 1)])
async def test_where_one_disk_would_be_waited_for_the_others_begin_to_read_too(four_of_six: Home, late: tuple[int, ...]) -> None:
    """An attempt begins the read: the reader that comes next waits for all disks at once."""
    home, asked = four_of_six, []
    async with home.open() as store:
        stored = await put(store, "a", content(1, 10_000))
        await get(store, "a")
        late_logs = [f"/shards/{stored.record.placement[index]}/" for index in late]

        def waited_for(path: str) -> bool:
            asked.append(path)
            return any(log in path for log in late_logs)

        home.files.fail("preadv_nowait", waited_for, errno.EAGAIN, times=None)
        assert peek(store, "a") is None
    assert [number for number in stored.record.placement if any(f"/shards/{number}/" in path for path in asked)] == [
        *stored.record.placement[:4]
    ]


async def test_nobody_is_waited_for_who_opens_another_segment(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", b"abc")
        await get(store, "a")
        shard = store.pool.get(stored.record.placement[0])
        assert isinstance(shard, DirectoryShard)
        with shard.log._readers._lock:  # as while a disk answers an open
            assert peek(store, "a") is None
        assert peek(store, "a") == b"abc"


async def test_a_shard_that_is_away_is_passed_over(home: Home) -> None:
    home.policy = Policy(2, 4, chunk_size=CHUNK)
    async with home.open() as store:
        stored = await put(store, "a", content(1, 9_000))
    home.take_away(stored.record.placement[0])
    async with home.open() as store:
        await get(store, "a")
        assert peek(store, "a") == content(1, 9_000)


async def test_a_damaged_block_is_left_to_a_reader_which_notes_it(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 9_000))
        await get(store, "a")
        for at in (3, 40):  # the block's header, and what is sealed
            share_place(store, stored, 0).flip(at)
            assert peek(store, "a") is None
            assert not home.suspects
            assert await get(store, "a") == content(1, 9_000)
            assert home.suspects == {stored.version}
            home.suspects.clear()
            share_place(store, stored, 0).flip(at)
        assert peek(store, "a") == content(1, 9_000)


async def test_a_version_that_was_freed_since_it_was_found_is_left_to_a_reader(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 9_000))
        await get(store, "a")
        await put(store, "a", content(2, 9_000))
        await freed(store)
        assert store.objects.read_value(stored, stretch(stored.record, None, None)) is None
