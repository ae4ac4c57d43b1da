"""Damaged shares: found before they are decoded, another share is used, and the bytes are exact; or Unreadable, never other bytes."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path

import pytest

from tests.store.home import CHUNK, SMALL_AND_LARGE, Home, SharePlace, content, delete, get, put, share_place, share_places
from zstor_local.coding.block import Buffer, ChunkShape
from zstor_local.coding.chunk import ChunkCoder, Scratch
from zstor_local.errors import Unreadable
from zstor_local.model.ids import ShareId
from zstor_local.model.policy import Policy
from zstor_local.store.caller import Nobody
from zstor_local.store.reading import whole
from zstor_local.store.sinks import FileSink
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.writes import WriteOptions


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[int]]:
    """The share indices of the blocks from which each chunk was decoded."""
    seen: dict[int, set[int]] = {}
    original = ChunkCoder.decode

    def record(self: ChunkCoder, scratch: Scratch, chunk: int, shape: ChunkShape, blocks: Mapping[int, Buffer]) -> list[Buffer]:
        seen[chunk] = set(blocks)
        return original(self, scratch, chunk, shape, blocks)

    monkeypatch.setattr(ChunkCoder, "decode", record)
    return seen


def flip_first(place: SharePlace) -> None:
    place.flip(0)


def flip_header(place: SharePlace) -> None:
    place.flip(9)


def flip_body(place: SharePlace) -> None:
    place.flip(20)


def flip_last(place: SharePlace) -> None:
    place.flip(place.length - 1)


def zero(place: SharePlace) -> None:
    place.overwrite(bytes(place.length))


def shift(place: SharePlace) -> None:
    place.overwrite(place.read()[:-1], at=1)


DAMAGES: list[Callable[[SharePlace], None]] = [flip_first, flip_header, flip_body, flip_last, zero, shift]


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_damaged_share_is_passed_over(
    home: Home, decoded: dict[int, set[int]], damage: Callable[[SharePlace], None], size: int
) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        for index in range(3):
            place = share_place(store, stored, index)
            before = place.read()
            damage(place)
            decoded.clear()
            assert await get(store, "a") == content(1, size)
            damaged_chunk = max(decoded) if damage is flip_last else 0
            assert index not in decoded[damaged_chunk]  # the damaged block never came to the decoder
            if index < 2:
                assert stored.version in home.suspects
            home.suspects.clear()
            place.overwrite(before)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_good_shares_are_not_suspected(home: Home, size: int) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, size))
        await get(store, "a")
        assert not home.suspects


async def test_every_byte_of_a_small_share_counts(home: Home) -> None:
    value = content(1, 200)
    async with home.open() as store:
        stored = await put(store, "a", value)
        place = share_place(store, stored, 0)
        for at in range(place.length):
            place.flip(at)
            home.suspects.clear()
            assert await get(store, "a") == value
            assert stored.version in home.suspects
            place.flip(at)


async def test_different_chunks_may_be_damaged_on_different_shares(home: Home) -> None:
    value = content(1, 3 * CHUNK)
    async with home.open() as store:
        stored = await put(store, "a", value)
        block = stored.record.share_bytes // 3
        for index in range(3):
            share_place(store, stored, index).flip(index * block + 50)
        assert await get(store, "a") == value


@pytest.mark.parametrize("end", ["index", "footer", "cut", "longer"])
async def test_the_end_of_a_share_file_is_not_needed_where_the_record_has_the_table(home: Home, end: str) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        for index in range(3):
            path = share_place(store, stored, index).path
            data = path.read_bytes()
            changed = {"index": data[:-41] + b"?" + data[-40:], "footer": data[:-1] + b"?", "cut": data[:-40], "longer": data + b"more"}
            path.write_bytes(changed[end])
        assert await get(store, "a") == content(1, 700_000)


@pytest.mark.parametrize("left", [0, 1, 63, 64, 100, 200_000])
async def test_a_truncated_share_is_passed_over(home: Home, left: int) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        path = share_place(store, stored, 0).path
        path.write_bytes(path.read_bytes()[:left])
        assert await get(store, "a") == content(1, 700_000)
        assert stored.version in home.suspects


# --- Shares in the wrong place ---


async def test_a_share_file_of_zeros_is_corrupt_and_made_anew(home: Home) -> None:
    """Nothing of it tells what it was, its header neither."""
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))
        path = share_place(store, stored, 0).path
        before = path.read_bytes()
        path.write_bytes(bytes(len(before)))
        assert (await store.shares_health.check(stored, Nobody())).states == ["corrupt", "ok", "ok"]
        await store.shares_health.repair(stored, Nobody())
        assert path.read_bytes() == before


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_shares_of_one_object_that_changed_places_are_both_passed_over(home: Home, size: int) -> None:
    home.policy = Policy(2, 4, chunk_size=CHUNK)
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        for one, other in combinations(range(4), 2):
            swap(share_place(store, stored, one), share_place(store, stored, other))
            assert await get(store, "a") == content(1, size)
            swap(share_place(store, stored, one), share_place(store, stored, other))


def swap(one: SharePlace, other: SharePlace) -> None:
    first, second = one.read(), other.read()
    one.overwrite(second)
    other.overwrite(first)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
@pytest.mark.parametrize("source", ["another object", "an older version", "another namespace", "another chunk"])
async def test_a_share_of_something_else_is_passed_over(home: Home, source: str, size: int, decoded: dict[int, set[int]]) -> None:
    async with home.open() as store:
        other = await put(
            store, "b" if source == "another object" else "a", content(2, size),
            namespace="other" if source == "another namespace" else "default",
        )  # fmt: skip
        foreign = [place.read() for place in share_places(store, other)]
        stored = await put(store, "a", content(1, size))
        for index in range(3):
            place = share_place(store, stored, index)
            before = place.read()
            if source == "another chunk":
                half = len(before) // 2
                place.overwrite(before[half:] + before[:half])
            else:
                place.overwrite(foreign[index])
            decoded.clear()
            assert await get(store, "a") == content(1, size)
            assert index not in decoded[0]
            place.overwrite(before)


async def test_another_stores_share_of_the_same_object_is_passed_over(home: Home, tmp_path: Path) -> None:
    (tmp_path / "twin").mkdir()
    twin = Home(tmp_path / "twin")
    async with home.open() as store:
        async with twin.open() as other:
            foreign = share_place(other, await put(other, "a", content(1, 10_000)), 0).read()
        stored = await put(store, "a", content(1, 10_000))
        share_place(store, stored, 0).overwrite(foreign)
        assert await get(store, "a") == content(1, 10_000)
        assert stored.version in home.suspects


async def test_a_whole_shard_put_back_from_an_older_copy_gives_no_old_bytes(home: Home, tmp_path: Path) -> None:
    async with home.open() as store:
        await put(store, "small", content(1, 10_000))
        await put(store, "large", content(1, 700_000))
    shutil.copytree(home.root(0), tmp_path / "older")
    async with home.open() as store:
        await put(store, "small", content(2, 10_000))
        await put(store, "large", content(2, 700_000))
    shutil.rmtree(home.root(0))
    shutil.copytree(tmp_path / "older", home.root(0))
    async with home.open() as store:
        assert await get(store, "small") == content(2, 10_000)
        assert await get(store, "large") == content(2, 700_000)


# --- All patterns of loss ---

POLICIES = [*((k, m) for m in range(1, 5) for k in range(1, m + 1)), (3, 6)]


class Loss:
    """Takes shares of an object away, and puts them back."""

    def __init__(self, store: Store, stored: Stored) -> None:
        self._store = store
        self._stored = stored
        self._places = share_places(store, stored)
        self._kept = [place.read() for place in self._places]

    def take(self, indices: tuple[int, ...]) -> None:
        for index in indices:
            if self._stored.record.small:
                self._places[index].overwrite(bytes(self._places[index].length))
            else:
                self._places[index].path.rename(self._aside(index))

    def put_back(self, indices: tuple[int, ...]) -> None:
        for index in indices:
            if self._stored.record.small:
                self._places[index].overwrite(self._kept[index])
            else:
                self._aside(index).rename(self._places[index].path)

    def _aside(self, index: int) -> Path:
        return self._places[index].path.with_suffix(".aside")


@pytest.mark.parametrize(("k", "m"), POLICIES)
@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_any_loss_of_m_minus_k_shares_costs_nothing_and_of_one_more_everything(home: Home, k: int, m: int, size: int) -> None:
    home.policy = Policy(k, m, chunk_size=CHUNK)
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        loss = Loss(store, stored)
        for count in range(m - k + 1):
            for lost in combinations(range(m), count):
                loss.take(lost)
                assert await get(store, "a") == content(1, size)
                loss.put_back(lost)
        for lost in combinations(range(m), m - k + 1):
            loss.take(lost)
            with pytest.raises(Unreadable) as caught:
                await get(store, "a")
            loss.put_back(lost)
            shares = caught.value.data["shares"]
            assert isinstance(shares, list)
            assert [share["index"] for share in shares] == list(range(m))
            assert {share["index"] for share in shares if share["state"] != "ok"} == set(lost)
            assert {share["state"] for share in shares} <= {"ok", "corrupt" if stored.record.small else "missing"}
        assert await get(store, "a") == content(1, size)


async def test_an_object_without_bytes_needs_no_share(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", b"")
        for number in range(3):
            shard = store.pool.get(number)
            assert shard is not None
            shard.free([ShareId(stored.version, stored.record.placement.index(number))], small=True)
        assert await get(store, "a") == b""


async def test_an_unreadable_object_is_written_anew_and_deleted(home: Home) -> None:
    async with home.open() as store:
        for key in ("a", "b"):
            for place in share_places(store, await put(store, key, content(1, 10_000))):
                place.overwrite(bytes(place.length))
        with pytest.raises(Unreadable):
            await get(store, "a")
        await put(store, "a", b"new")
        assert await get(store, "a") == b"new"
        await delete(store, "b")


async def test_a_read_to_a_file_that_fails_midway_is_unreadable(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 3 * CHUNK))
        for index in range(2):
            share_place(store, stored, index).flip(stored.record.share_bytes - 10)
        with (home.path / "taken").open("w+b") as file, pytest.raises(Unreadable):
            await store.objects.read_to_file(stored, FileSink(store.runtime.files, file.fileno()), whole(stored.record), Nobody())
        assert await get(store, "a", length=2 * CHUNK) == content(1, 3 * CHUNK)[: 2 * CHUNK]


# --- A table too long for its record ---


@pytest.fixture
def short_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of more than one chunk go into the shares."""
    monkeypatch.setattr("zstor_local.limits.CHUNK_TABLE_INLINE_BYTES", 4)


@pytest.mark.usefixtures("short_tables")
async def test_a_long_table_lies_sealed_in_every_share_and_one_good_copy_is_enough(home: Home) -> None:
    value = content(1, 700_000)
    async with home.open() as store:
        stored = await put(store, "a", value, WriteOptions())
        assert stored.record.table_blob
        assert stored.record.chunk_table == b""
        assert await get(store, "a") == value
        at = stored.record.share_bytes + 2
        for index in (0, 1):
            path = share_place(store, stored, index).path
            SharePlace(path, 64, at + 10).flip(at)
            assert await get(store, "a") == value
        SharePlace(share_place(store, stored, 2).path, 64, at + 10).flip(at)
        with pytest.raises(Unreadable):
            await get(store, "a")


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_share_that_its_disk_cannot_read_is_bad(home: Home, size: int) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        states: dict[int, str] = {}
        store.on_bad_shares = lambda _, bad: states.update(bad)
        place = share_place(store, stored, 0)
        home.files.fail("pread", lambda path: path == str(place.path), errno.EIO, times=None)
        assert await get(store, "a") == content(1, size)
        assert states == {0: "corrupt"}


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_descriptors_that_we_lack_make_no_share_bad(home: Home, size: int) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, size))
        states: dict[int, str] = {}
        store.on_bad_shares = lambda _, bad: states.update(bad)
        root = str(home.root(stored.record.placement[0]))
        home.files.fail("open", lambda path: path.startswith(root), errno.EMFILE, times=None)
        assert await get(store, "a") == content(1, size)
        assert states == {0: "unreachable"}
