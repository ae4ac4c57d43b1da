"""A log as one file, and back."""

from __future__ import annotations

import gc
import json
import os
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.content.ground import HOUR
from tests.content.logs.ground import Ground, opened, text, texts
from tests.store.home import Home
from zstor_local.content.logs.exporting import Exported, Exporting
from zstor_local.content.logs.held import Held
from zstor_local.content.logs.importing import Imported, Importing
from zstor_local.content.logs.logs import Logs
from zstor_local.content.logs.opened import OpenLog
from zstor_local.content.logs.policy import LogPolicy
from zstor_local.errors import Conflict, Incomplete, IoError, Unreadable
from zstor_local.formats import car
from zstor_local.formats.cid import Cid, parse, raw
from zstor_local.formats.directory import Tree, directory, parse_directory
from zstor_local.formats.protobuf import Malformed
from zstor_local.formats.remotelog import ENCODINGS, Encoding, parse_page
from zstor_local.formats.unixfs import content_id
from zstor_local.runtime import SECOND_US
from zstor_local.store.caller import Nobody
from zstor_local.store.sinks import MemorySink
from zstor_local.store.sources import FileSource

LARGE = bytes(range(256)) * 5_000  # more than one block


async def export(ground: Ground, log: str = "default") -> tuple[bytes, Exported]:
    sink = MemorySink()
    exported = await Exporting(ground.logs, ground.cas).export(log, sink, Nobody())
    assert exported.bytes == len(sink.value())
    return sink.value(), exported


@contextmanager
def source_of(ground: Ground, data: bytes, path: Path) -> Iterator[FileSource]:
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        yield FileSource(ground.store.runtime.files, fd)
    finally:
        os.close(fd)


async def load(ground: Ground, data: bytes, path: Path, log: str | None = None) -> Imported:
    with source_of(ground, data, path) as source:
        return await Importing(ground.store.runtime, ground.logs, ground.cas).import_(source, log, Nobody())


def blocks_of(data: bytes) -> tuple[Cid, dict[Cid, bytes]]:
    reader = car.Reader()
    blocks = {block.cid: block.data for block in reader.blocks(data)}
    reader.finish()
    assert reader.roots is not None
    return reader.roots[0], blocks


def repacked(root: Cid, blocks: dict[Cid, bytes]) -> bytes:
    return car.header([root]) + b"".join(car.section(cid, len(data)) + data for cid, data in blocks.items())


async def history(ground: Ground, log: str = "default", **policy: object) -> None:
    await ground.create(log, 3, **policy)
    await ground.append_all([*texts(6), LARGE, b"", *texts(10, 9)], log)


@pytest.fixture
def other(tmp_path: Path) -> Home:
    (tmp_path / "other").mkdir()
    return Home(tmp_path / "other")


@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_a_log_comes_back_in_another_store(home: Home, other: Home, tmp_path: Path, encoding: Encoding) -> None:
    async with opened(home) as ground:
        await history(ground, encoding=encoding, embed_last=1)
        await ground.scrub(4, 5)
        data, exported = await export(ground)
        assert (exported.entries, exported.pages) == (10, 4)
        contents, head = await ground.contents(), ground.names.fetch("log/default").value
    async with opened(other) as ground:
        imported = await load(ground, data, tmp_path / "a.car")
        assert (imported.entries, imported.pages, imported.state) == (10, 4, "created")
        assert await ground.contents() == contents
        assert ground.names.fetch("log/default").value == head
        assert (await ground.logs.open("default")).record.policy == LogPolicy(3, 1, encoding)
        await ground.whole()
        assert (await export(ground))[0] == data
        assert (await load(ground, data, tmp_path / "a.car")).state == "unchanged"
    async with opened(other) as ground:
        assert (await ground.append(text(11))).seq == 11
        await ground.whole()


async def test_the_file_is_a_directory_that_any_ipfs_tool_can_read(home: Home) -> None:
    async with opened(home) as ground:
        await history(ground)
        data, exported = await export(ground)
        root, blocks = blocks_of(data)
        assert root == exported.root
        top = parse_directory(blocks[root])
        assert list(top) == ["000000", "log.json"]
        about = json.loads(blocks[top["log.json"]])
        assert (about["log"], about["entries"]) == ("default", 10)
        group = parse_directory(blocks[top["000000"]])
        assert list(group) == [f"{first:012}-{min(first + 2, 10):012}" for first in (1, 4, 7, 10)]
        third = parse_directory(blocks[group["000000000007-000000000009"]])
        assert list(third) == ["000000000007", "000000000008", "000000000009", "page"]
        assert third["000000000007"] == content_id(LARGE)
        assert [entry.seq for entry in parse_page(blocks[third["page"]]).entries] == [9, 8, 7]
        assert parse_directory(blocks[group["000000000010-000000000010"]])["page"] == parse(about["head"])


async def test_an_empty_log_comes_back(home: Home, other: Home, tmp_path: Path) -> None:
    async with opened(home) as ground:
        await ground.create("empty", 7)
        data, _ = await export(ground, "empty")
    async with opened(other) as ground:
        await load(ground, data, tmp_path / "a.car")
        assert await ground.entries("empty") == []
        assert (await ground.logs.open("empty")).record.policy.page_size == 7


async def two_exports(home: Home, last: int) -> tuple[bytes, bytes]:
    """Of a log of ten entries, and of the same log with those up to `last`."""
    async with opened(home) as ground:
        await history(ground)
        older, _ = await export(ground)
        await ground.append_all(texts(last, 11))
        newer, _ = await export(ground)
    return older, newer


async def test_a_later_file_brings_what_came_since_and_an_older_one_nothing(home: Home, other: Home, tmp_path: Path) -> None:
    older, newer = await two_exports(home, 16)
    async with opened(other) as ground:
        await load(ground, older, tmp_path / "a.car")
        imported = await load(ground, newer, tmp_path / "a.car")
        assert (imported.entries, imported.stored, imported.state) == (
            6,
            6 + 2,
            "advanced",
        )  # with the two pages that were closed since
        assert len(await ground.entries()) == 16
        assert (await load(ground, older, tmp_path / "a.car")).state == "unchanged"
        await ground.whole()


async def test_a_log_that_went_another_way_is_not_overwritten(home: Home, other: Home, tmp_path: Path) -> None:
    older, newer = await two_exports(home, 12)
    async with opened(other) as ground:
        await load(ground, older, tmp_path / "a.car")
        await ground.append(b"another eleventh")
        with pytest.raises(Conflict, match="differ at entry 11"):
            await load(ground, newer, tmp_path / "a.car")
        assert len(await ground.entries()) == 11
        assert (await load(ground, newer, tmp_path / "a.car", "copy")).state == "created"
        assert len(await ground.entries("copy")) == 12
        await ground.whole()
        await ground.whole("copy")


async def test_what_was_scrubbed_does_not_come_back_by_an_import(home: Home, tmp_path: Path) -> None:
    async with opened(home) as ground:
        await history(ground)
        older, _ = await export(ground)
        await ground.scrub(2)
        assert (await load(ground, older, tmp_path / "a.car")).state == "unchanged"
        await ground.append(text(11))
        assert (await ground.contents())[1] is None


async def test_an_import_that_was_broken_off_goes_on_where_it_was(
    home: Home, other: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(home) as ground:
        await history(ground)
        data, _ = await export(ground)
    async with opened(other) as ground:
        upload, count = ground.cas.upload, 0

        async def failing(*given: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count > 6:
                raise IoError("the disk went away")
            return await upload(*given, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(ground.cas, "upload", failing)
        with pytest.raises(IoError):
            await load(ground, data, tmp_path / "a.car")
        assert await ground.entries() == []
    async with opened(other) as ground:
        imported = await load(ground, data, tmp_path / "a.car")
        assert (imported.state, imported.stored) == ("created", 13 - 6)  # ten contents and three closed pages
        await ground.whole()


async def test_pages_that_cannot_be_read_right_after_an_import_are_known_all_the_same_later(
    home: Home, other: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(home) as ground:
        await history(ground)
        data, _ = await export(ground)
    async with opened(other) as ground:
        with monkeypatch.context() as patch:
            patch.setattr(Held, "get", _unreadable)
            with pytest.raises(Unreadable):
                await load(ground, data, tmp_path / "a.car")
        again = await ground.append(text(1))
        assert (again.seq, again.new) == (1, False)
        assert len(await ground.entries()) == 10


async def test_what_a_log_let_go_of_that_was_made_during_an_import_is_put_there_again(
    home: Home, other: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is known to nobody any more when the import comes to its end: too many others were opened since."""
    async with opened(home) as ground:
        await ground.create("l", page_size=2)
        await ground.append_all(texts(2), "l")
        data, _ = await export(ground, "l")
    create = Logs.create
    monkeypatch.setattr("zstor_local.content.logs.logs.RECENT_LOGS", 1)
    monkeypatch.setattr("zstor_local.content.logs.leftovers.KEPT", -HOUR * SECOND_US)  # as of an import that was broken off a day ago
    async with opened(other) as ground:

        async def create_late(self: Logs, name: str, policy: LogPolicy) -> OpenLog:
            monkeypatch.setattr(Logs, "create", create)
            await ground.create("l", page_size=2)
            await ground.append(text(1), "l")
            assert await ground.leftovers.let_go() == 1
            await ground.create("another")
            gc.collect()
            return await self.create(name, policy)

        monkeypatch.setattr(Logs, "create", create_late)
        assert (await load(ground, data, tmp_path / "log.car")).entries == 1
        assert await ground.contents("l") == texts(2)
        await ground.whole("l")


async def _unreadable(self: Held, cid: Cid) -> bytes:
    raise Unreadable("two shards are away")


async def test_content_that_became_unreadable_is_stored_anew(home: Home, tmp_path: Path) -> None:
    """Somebody keeps it, but too many of its shares are gone: the file has its bytes."""
    async with opened(home) as ground:
        await history(ground)
        data, _ = await export(ground)
        for path in home.share_files()[:2]:
            Path(path).unlink()
        with pytest.raises(Unreadable):
            await ground.contents()
        assert (await load(ground, data, tmp_path / "log.car", "copy")).stored == 1
        assert await ground.contents("copy") == await ground.contents() == [*texts(6), LARGE, b"", *texts(10, 9)]


async def test_the_blocks_may_come_in_any_order_and_often(home: Home, other: Home, tmp_path: Path) -> None:
    async with opened(home) as ground:
        await history(ground)
        root, blocks = blocks_of((await export(ground))[0])
    backwards = dict(reversed(blocks.items())) | {raw(b"a stranger"): b"a stranger"}
    async with opened(other) as ground:
        await load(ground, repacked(root, backwards), tmp_path / "a.car")
        await ground.whole()


async def test_no_damaged_file_is_taken(home: Home, other: Home, tmp_path: Path) -> None:
    async with opened(home) as ground:
        await history(ground)
        data, _ = await export(ground)
        root, blocks = blocks_of(data)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    stranger = repacked(raw(b"x"), {raw(b"x"): b"x"})
    for_people = {cid for cid, block in blocks.items() if _is_directory(block)} - {root}
    incomplete = [
        repacked(root, {cid: block for cid, block in blocks.items() if cid != missing})
        for missing in blocks
        if missing not in for_people
    ]
    async with opened(other) as ground:
        for damaged in (b"", b"no car at all", bytes(flipped), data[:-1], stranger, car.header([root]), *incomplete):
            with pytest.raises(Incomplete):
                await load(ground, damaged, tmp_path / "a.car")
        assert await ground.entries() == []


async def test_a_file_of_very_many_blocks_takes_no_more_memory_than_another(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zstor_local.content.logs.importing._WINDOW", 1 << 14)
    few = {raw(block): block for block in (number.to_bytes(4) for number in range(1_000))}
    many = {raw(block): block for block in (number.to_bytes(4) for number in range(20_000))}
    peaks: list[int] = []
    async with opened(home) as ground:
        for blocks in (few, few, many):
            data = repacked(raw(b""), blocks)
            tracemalloc.start()
            with pytest.raises(Incomplete, match="lacks the block"):
                await load(ground, data, tmp_path / "log.car")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[2] < 2 * peaks[1]


def _is_directory(block: bytes) -> bool:
    try:
        parse_directory(block)
    except Malformed:
        return False
    return True


async def test_content_that_is_not_there_cannot_be_imported_nor_pages_that_do_not_join(home: Home, tmp_path: Path) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=1)
        await ground.append_all(texts(3))
        log = await ground.logs.open("default")
        first, head = log.closed_pages()[0].cid, log.head.page
        forged = type(head)(head.entries, first).encode("protobuf")  # entry 2 is left out
        about = json.dumps(
            {"log": "forged", "page_size": 1, "embed_last": 0, "encoding": "protobuf", "messages": "any", "head": str(raw(forged))}
        ).encode()
        root = directory({"log.json": Tree(raw(about), len(about))})
        _, blocks = blocks_of((await export(ground))[0])
        forged_file = repacked(root.tree.cid, {root.tree.cid: root.block, raw(about): about, raw(forged): forged} | blocks)
        with pytest.raises(Incomplete, match="ends with entry 1, the next begins with 3"):
            await load(ground, forged_file, tmp_path / "a.car")


@pytest.mark.parametrize(
    "wrong",
    [
        {"page_size": 1.5},
        {"page_size": True},
        {"embed_last": 0.5},
        {"encoding": "xml"},
        {"messages": []},
        {"log": 5},
        {"head": ["Qm"]},
        {"head": {}},
    ],
)
async def test_a_file_that_says_of_the_log_what_cannot_be_leaves_nothing(home: Home, tmp_path: Path, wrong: dict[str, object]) -> None:
    """Its row could never be read again."""
    said = {"log": "stranger", "page_size": 1, "embed_last": 0, "encoding": "protobuf", "messages": "any", "head": None} | wrong
    about = json.dumps(said).encode()
    root = directory({"log.json": Tree(raw(about), len(about))})
    async with opened(home) as ground:
        with pytest.raises(Incomplete, match="holds no log"):
            await load(ground, repacked(root.tree.cid, {root.tree.cid: root.block, raw(about): about}), tmp_path / "a.car")
        assert [*ground.logs.list(None, 10)] == []


async def test_a_description_that_is_nested_without_end_is_refused(home: Home, tmp_path: Path) -> None:
    about = 100_000 * b"["
    root = directory({"log.json": Tree(raw(about), len(about))})
    async with opened(home) as ground:
        with pytest.raises(Incomplete, match="holds no log"):
            await load(ground, repacked(root.tree.cid, {root.tree.cid: root.block, raw(about): about}), tmp_path / "a.car")


def test_a_directory_has_the_id_that_other_tools_compute() -> None:
    """`ipfs add -r --cid-version=1` of a directory with the file `hello`, which holds `hello\\n`."""
    made = directory({"hello": Tree(raw(b"hello\n"), 6)})
    assert parse_directory(made.block) == {"hello": raw(b"hello\n")}
    assert made.block.hex() == ("122f" + "0a24" + raw(b"hello\n").binary.hex() + "1205" + b"hello".hex() + "1806" + "0a020801")
    assert (
        str(directory({}).tree.cid) == "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
    )  # the well-known empty directory
