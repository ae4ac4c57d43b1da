"""Appending to logs and reading them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from tests.content.logs.ground import hash_of, opened, text, texts
from tests.formats.vectors import BY_NAME
from tests.store.home import Home
from tests.store.test_committer import Gate
from zstor_local import limits
from zstor_local.content.cas import Owner
from zstor_local.content.logs.opened import OpenLog
from zstor_local.content.logs.paging import Closed
from zstor_local.content.logs.policy import LogPolicy
from zstor_local.errors import AlreadyExists, Conflict, InvalidParams, IoError, NotFound, TooLarge
from zstor_local.formats import unixfs
from zstor_local.formats.cid import Cid
from zstor_local.formats.remotelog import ENCODINGS, Encoding, Page, parse_page
from zstor_local.store.sources import BytesSource


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("page_size", "embed_last"), [(1, 0), (1, 1), (3, 0), (3, 2), (3, 3), (100, 7)])
async def test_entries_come_back_in_order_whatever_the_policy(home: Home, page_size: int, embed_last: int, encoding: Encoding) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=page_size, embed_last=embed_last, encoding=encoding)
        for number in range(1, 11):
            appended = await ground.append(text(number))
            assert (appended.seq, appended.new, appended.cid) == (number, True, unixfs.content_id(text(number)))
        assert await ground.contents() == texts(10)
        await ground.whole()
    async with opened(home) as ground:
        assert await ground.contents(since=4) == texts(10, 5)
        assert (await ground.append(text(11))).seq == 11
        log = await ground.logs.open("default")
        embedded = [entry.seq for entry in reversed(log.head.page.entries) if entry.data]
        assert embedded == list(range(max(log.head.page.first, 12 - embed_last), 12))
        await ground.whole()


async def test_the_value_of_the_name_is_the_newest_page_and_tails_lead_to_the_first(home: Home) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=4)
        await ground.append_all(texts(10))
        page = parse_page(ground.names.fetch("log/default").value)
        seen = []
        while True:
            seen.append([entry.seq for entry in page.entries])
            if page.tail is None:
                break
            page = parse_page(await ground.cas.read(ground.cas.contents.find(page.tail)))
        assert seen == [[10, 9], [8, 7, 6, 5], [4, 3, 2, 1]]


async def test_a_log_is_there_when_it_was_made_and_the_default_one_always(home: Home) -> None:
    async with opened(home) as ground:
        assert await ground.entries() == []
        assert list(ground.logs.list(None, 10)) == []
        await ground.append(text(1))
        with pytest.raises(NotFound, match="there is no log"):
            await ground.append(text(1), "other")
        await ground.create("other", 1)
        with pytest.raises(AlreadyExists):
            await ground.create("other", 2)
        await ground.append(text(1), "other")
        assert list(ground.logs.list(None, 10)) == ["default", "other"]
        assert list(ground.logs.list("default", 10)) == ["other"]
    async with opened(home) as ground:
        assert (await ground.logs.open("other")).record.policy == LogPolicy(page_size=1)
        assert await ground.contents("other") == texts(1)


async def test_the_default_log_may_be_made_after_it_was_looked_at(home: Home) -> None:
    async with opened(home) as ground:
        assert await ground.entries() == []
        await ground.create(page_size=2, messages="any")
        await ground.append_all(texts(3))
        assert (await ground.logs.open("default")).head.page.first == 3


@pytest.mark.parametrize("policy", [{"page_size": 0}, {"page_size": 1_001}, {"embed_last": -1}, {"page_size": 3, "embed_last": 4}])
def test_a_policy_that_cannot_be_is_refused(policy: dict[str, int]) -> None:
    with pytest.raises(InvalidParams):
        LogPolicy(**policy)  # type: ignore[arg-type]


@pytest.mark.parametrize("log", ["", "a/b", "-a", "A", "x" * 64, "a\0"])
async def test_what_is_no_name_of_a_log_is_refused(home: Home, log: str) -> None:
    async with opened(home) as ground:
        with pytest.raises(InvalidParams):
            await ground.create(log)
        with pytest.raises(InvalidParams):
            await ground.entries(log)


async def test_appending_an_entry_again_is_the_same_entry(home: Home) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=2)
        await ground.append_all(texts(5))
        for number in (1, 4, 5):
            again = await ground.append(text(number))
            assert (again.seq, again.new) == (number, False)
        assert len(await ground.entries()) == 5
        with pytest.raises(Conflict, match="other content"):
            await ground.append(b"other", local_hash=hash_of(2))
        await ground.whole()


async def test_one_content_may_stand_under_several_hashes(home: Home) -> None:
    async with opened(home) as ground:
        first, second = [await ground.append(b"same", local_hash=local) for local in (b"1", b"2")]
        assert (first.seq, second.seq, first.cid == second.cid) == (1, 2, True)
        await ground.whole()


async def test_ten_senders_on_one_log_never_lose_an_entry(home: Home) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=5, embed_last=2)
        numbers: dict[bytes, int] = {}

        async def send(sender: int) -> None:
            before = 0
            for position in range(12):
                content = b"%d from %d" % (position, sender)
                numbers[content] = (await ground.append(content)).seq
                assert numbers[content] > before  # a sender's own entries keep its order
                before = numbers[content]

        async with trio.open_nursery() as nursery:
            for sender in range(10):
                nursery.start_soon(send, sender)
        assert sorted(numbers.values()) == list(range(1, 121))
        assert await ground.contents() == sorted(numbers, key=numbers.__getitem__)
        await ground.whole()


async def test_what_waits_is_published_together(home: Home) -> None:
    async with opened(home) as ground:
        await ground.append(text(0))
        log = await ground.logs.open("default")
        async with trio.open_nursery() as nursery, log.lock:
            for number in range(1, 51):
                nursery.start_soon(ground.append, text(number))
            while log.lock.statistics().tasks_waiting < 50:
                await trio.lowlevel.checkpoint()
        assert len(await ground.entries()) == 51
        assert ground.names.fetch("log/default").seq == 2


async def test_of_two_that_append_the_same_one_is_new(home: Home) -> None:
    async with opened(home) as ground:
        outcomes: list[bool] = []

        async def send() -> None:
            outcomes.append((await ground.append(text(1))).new)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(send)
        assert sorted(outcomes) == [False] * 4 + [True]
        assert len(await ground.entries()) == 1


async def test_content_is_appended_by_its_id(home: Home) -> None:
    large = bytes(range(256)) * 6_000
    async with opened(home) as ground:
        await ground.create(page_size=4, embed_last=4)
        small_id = (await ground.cas.upload(BytesSource(b"small"))).id
        large_id = (await ground.cas.upload(BytesSource(large), Owner("me"))).id
        await ground.append(small_id, local_hash=b"s")
        await ground.append(large_id, local_hash=b"l")
        newest, oldest = (await ground.logs.open("default")).head.page.entries
        assert (oldest.data, newest.data) == (b"small", b"")
        assert await ground.contents() == [b"small", large]
        assert [pin.owner for pin in ground.cas.contents.find(large_id).pins] == ["me", "log/default"]
        with pytest.raises(InvalidParams, match="needs a local hash"):
            await ground.append(small_id)
        with pytest.raises(NotFound):
            await ground.append(unixfs.content_id(b"never uploaded"), local_hash=b"n")
        await ground.whole()


async def test_large_contents_are_not_embedded_and_many_close_a_page_early(home: Home) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=1_000, embed_last=1_000)
        for number in range(6):
            await ground.append(bytes([number]) * limits.LOG_EMBED_BYTES)
        await ground.append(bytes(limits.LOG_EMBED_BYTES + 1))
        log = await ground.logs.open("default")
        assert not log.head.page.entries[0].data
        assert len(log.closed_pages()) == 2
        assert len(ground.names.fetch("log/default").value) <= limits.LOG_PAGE_BYTES
        await ground.whole()


async def test_an_entry_can_stay_out_of_the_pages(home: Home) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=4, embed_last=4)
        await ground.append(b"in")
        await ground.append(b"out", embed=False)
        assert [entry.data for entry in await ground.entries()] == [b"in", b""]


@pytest.mark.parametrize("local_hash", [b"", b"x" * 65])
async def test_a_local_hash_has_a_size(home: Home, local_hash: bytes) -> None:
    async with opened(home) as ground:
        with pytest.raises(InvalidParams):
            await ground.append(b"x", local_hash=local_hash)


async def test_a_log_of_mvds_messages_knows_their_ids(home: Home) -> None:
    flow = BY_NAME["flow-alice-bob"]
    message, message_id = bytes.fromhex(flow["mvds_message_hex"]), bytes.fromhex(flow["local_hash_hex"])
    async with opened(home) as ground:
        await ground.create(messages="mvds")
        await ground.append(message)
        (entry,) = await ground.entries()
        assert entry.local_hash == message_id
        assert not (await ground.append(message, local_hash=message_id)).new
        with pytest.raises(InvalidParams, match="message id"):
            await ground.append(message, local_hash=b"another")
        for content in (b"\x8a", bytes.fromhex(BY_NAME["mvds-message-metadata"]["wire_hex"])):
            with pytest.raises(InvalidParams, match="no MVDS message"):
                await ground.append(content)
        large = (await ground.cas.upload(BytesSource(bytes(limits.LOG_EMBED_BYTES + 1)))).id
        with pytest.raises(TooLarge):
            await ground.append(large)
        await ground.whole()


async def test_an_index_that_is_lost_or_of_another_history_is_made_anew(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "logs.sqlite"
    async with opened(home, index=str(path)) as ground:
        await ground.create(page_size=2)
        await ground.append_all(texts(5))
    older = path.read_bytes()
    async with opened(home, index=str(path)) as ground:
        await ground.append_all(texts(9, 6))
    for damaged in (b"", b"garbage" * 1_000, older):
        for file in tmp_path.glob("logs.sqlite*"):
            file.unlink()
        path.write_bytes(damaged)
        async with opened(home, index=str(path)) as ground:
            assert await ground.contents() == texts(9)
            assert not (await ground.append(text(1))).new
            await ground.whole()


async def test_an_index_that_fails_in_use_is_made_anew_in_memory(home: Home, tmp_path: Path) -> None:
    async with opened(home, index=str(tmp_path / "logs.sqlite")) as ground:
        await ground.create(page_size=2)
        await ground.append_all(texts(5))
        ground.index._db.execute("drop table entry")  # what damage comes to
        ground.index._db.execute("drop table page")
        with pytest.raises(IoError):
            await ground.append(text(6))
        await ground.append_all(texts(8))
        assert await ground.contents() == texts(8)
        await ground.whole()


async def test_an_entry_that_has_come_in_is_not_called_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index fails when the change has happened."""
    publish = OpenLog.publish

    async def then_fail(log: OpenLog, closed: Sequence[Closed], head: Page) -> None:
        await publish(log, closed, head)
        ground.index._db.execute("drop table entry")

    async with opened(home) as ground:
        await ground.create(page_size=1)
        await ground.append_all(texts(2))
        monkeypatch.setattr(OpenLog, "publish", then_fail)
        found: list[int] = []

        async def append(number: int) -> None:
            found.append((await ground.append(text(number))).seq)

        log = await ground.logs.open("default")
        # Both come in together: the first of them is looked for in the index.
        async with trio.open_nursery() as nursery, log.lock:
            for number in (3, 4):
                nursery.start_soon(append, number)
            while len(ground.appending._queues["default"]) < 2:
                await trio.lowlevel.checkpoint()
        monkeypatch.undo()
        assert sorted(found) == [3, 4]
        with pytest.raises(IoError):
            await ground.append(text(1))
        assert len(await ground.contents()) == 4
        await ground.whole()


@pytest.mark.parametrize("damage", ["update page set cid = x'00'", "update page set cid = 'text'", "update page set first = 'text'"])
async def test_a_damaged_row_of_the_index_is_told_once(home: Home, damage: str) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=2)
        await ground.append_all(texts(5))
        ground.index._db.execute(damage)
        with pytest.raises(IoError):
            await ground.contents()
        assert await ground.contents() == texts(5)
        await ground.whole()


async def test_a_rebuild_brings_logs_back(home: Home, tmp_path: Path) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=3, embed_last=1, encoding="json")
        await ground.append_all(texts(8))
        await ground.scrub(2)
    report = home.rebuild()
    assert report.loss == []
    async with opened(home) as ground:
        assert await ground.contents() == [text(1), None, *texts(8, 3)]
        assert (await ground.append(text(9))).seq == 9
        await ground.whole()


async def test_of_two_contents_for_one_hash_one_is_refused_and_not_kept(home: Home) -> None:
    async with opened(home) as ground:
        refused = 0

        async def send(content: bytes) -> None:
            nonlocal refused
            try:
                await ground.append(content, local_hash=b"one hash")
            except Conflict:
                refused += 1

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(send, text(number))
        assert refused == 3
        await ground.whole()
        (entry,) = await ground.entries()
        for number in range(4):
            if unixfs.content_id(text(number)) != entry.cid:
                with pytest.raises(NotFound):
                    ground.cas.contents.find(unixfs.content_id(text(number)))


async def test_reading_the_newest_entries_fetches_as_many_pages_whatever_the_length(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=4)
        fetched: dict[int, int] = {}
        log = await ground.logs.open("default")
        get, count = log.held.get, 0

        async def counting(cid: Cid) -> bytes:
            nonlocal count
            count += 1
            return await get(cid)

        monkeypatch.setattr(log.held, "get", counting)
        for length in (20, 60, 100):
            await ground.append_all(texts(length, 1 if length == 20 else length - 39))
            count = 0
            assert [entry.seq for entry in await ground.entries(since=length - 10)] == list(range(length - 9, length + 1))
            fetched[length] = count
        assert set(fetched.values()) <= {2, 3}


async def test_an_append_costs_two_commits_and_now_and_then_a_page(home: Home) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=5)
        await ground.append(text(0))
        gate = Gate(home)
        await ground.append_all(texts(50))
        commits = [transaction for transaction in gate.commits if transaction.rows]
        assert len(commits) == 2 * 50 + 50 // 5
