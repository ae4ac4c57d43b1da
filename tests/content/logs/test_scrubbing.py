"""Removing entries for good."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from tests.content.logs.ground import Ground, hash_of, opened, text, texts
from tests.store.home import Home
from zstor_local.content.cas import Owner
from zstor_local.content.logs.held import Held
from zstor_local.content.logs.page_index import PageIndex
from zstor_local.errors import Conflict, IoError, NotFound, ZstorError
from zstor_local.formats import unixfs
from zstor_local.formats.cid import Cid, raw
from zstor_local.formats.remotelog import ENCODINGS, Encoding


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("first", "last"), [(1, 1), (3, 3), (4, 6), (9, 10), (10, 10), (1, 10)])
async def test_scrubbed_entries_keep_their_number_and_hash_alone(home: Home, first: int, last: int, encoding: Encoding) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=4, embed_last=2, encoding=encoding)
        await ground.append_all(texts(10))
        before = await ground.pinned()
        scrubbed = await ground.scrub(first, last)
        assert scrubbed.entries == last - first + 1
        assert scrubbed.gone == [unixfs.content_id(text(number)) for number in _page_order(first, last)]
        assert scrubbed.kept == []
        expected = [None if first <= number <= last else text(number) for number in range(1, 11)]
        assert await ground.contents() == expected
        assert [entry.local_hash for entry in await ground.entries()] == [hash_of(number) for number in range(1, 11)]
        for cid in before - await ground.pinned():  # neither the content nor an old page that may have carried it
            with pytest.raises(NotFound):
                ground.cas.contents.find(cid)
        await ground.whole()
    async with opened(home) as ground:
        assert await ground.contents() == expected
        assert (await ground.append(text(11))).seq == 11
        await ground.whole()


def _page_order(first: int, last: int) -> list[int]:
    """Numbers page by page of four, each newest first."""
    return [number for top in (4, 8, 10) for number in range(top, (top - 1) // 4 * 4, -1) if first <= number <= last]


async def test_a_scrubbed_entry_does_not_come_back(home: Home) -> None:
    async with opened(home) as ground:
        await ground.append_all(texts(2))
        await ground.scrub(1)
        with pytest.raises(Conflict, match="scrubbed"):
            await ground.append(text(1))
        again = await ground.append(text(1), local_hash=b"another")
        assert (again.seq, again.new) == (3, True)


async def test_scrubbing_again_changes_nothing(home: Home) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=2)
        await ground.append_all(texts(5))
        await ground.scrub(2)
        seq = ground.names.fetch("log/default").seq
        assert (await ground.scrub(2)).entries == 0
        assert ground.names.fetch("log/default").seq == seq
        assert (await ground.scrub(1, 3)).entries == 2


async def test_content_that_others_have_stays_and_is_named(home: Home) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=2)
        await ground.append_all(texts(3))
        await ground.append(text(1), local_hash=b"the same content")
        await ground.cas.keeping.pin(unixfs.content_id(text(2)), Owner("somebody"))
        scrubbed = await ground.scrub(1, 2)
        assert {(kept.cid, kept.owners) for kept in scrubbed.kept} == {
            (unixfs.content_id(text(1)), ("log/default",)),
            (unixfs.content_id(text(2)), ("somebody",)),
        }
        assert await ground.contents() == [None, None, text(3), text(1)]
        await ground.whole()


@pytest.mark.parametrize(("first", "last"), [(0, 1), (2, 1), (3, 4), (4, 4)])
async def test_entries_that_are_not_there_cannot_be_scrubbed(home: Home, first: int, last: int) -> None:
    async with opened(home) as ground:
        await ground.append_all(texts(3))
        with pytest.raises(NotFound):
            await ground.scrub(first, last)


async def test_appending_scrubbed_content_meanwhile_loses_nothing(home: Home) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=2)
        for round_ in range(15):
            seq = (await ground.append(b"secret", local_hash=b"%d" % round_)).seq
            async with trio.open_nursery() as nursery:
                nursery.start_soon(append_secret, ground, b"again %d" % round_)
                nursery.start_soon(ground.scrub, seq)
            await ground.whole()


async def append_secret(ground: Ground, local_hash: bytes) -> None:
    assert (await ground.append(b"secret", local_hash=local_hash)).new


async def test_what_a_broken_scrub_left_is_let_go_at_the_next_opening(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=2)
        await ground.append_all(texts(7))
        log = await ground.logs.open("default")

        async def fail(cid: Cid, *, forget: bool) -> bool:
            raise ZstorErrorOfTest("the daemon dies here")

        monkeypatch.setattr(log.held, "let_go", fail)
        with pytest.raises(ZstorErrorOfTest):
            await ground.scrub(2)
        assert await ground.pinned() > await ground.needed()
    async with opened(home) as ground:
        assert await ground.contents() == [text(1), None, *texts(7, 3)]
        await ground.whole()
        with pytest.raises(NotFound):
            ground.cas.contents.find(unixfs.content_id(text(2)))


async def test_a_scrub_that_failed_half_way_is_finished_when_it_is_asked_for_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entries are scrubbed already then: what they had must go all the same, before anybody is told so."""
    async with opened(home) as ground:
        await ground.create(page_size=2)
        await ground.append_all(texts(7))
        log = await ground.logs.open("default")

        async def fail(cid: Cid, *, forget: bool) -> bool:
            raise ZstorErrorOfTest("no shard is there")

        with monkeypatch.context() as away:
            away.setattr(log.held, "let_go", fail)
            for _ in range(2):
                with pytest.raises(ZstorErrorOfTest):
                    await ground.scrub(2)
        await ground.scrub(2)
        assert await ground.contents() == [text(1), None, *texts(7, 3)]
        await ground.whole()
        with pytest.raises(NotFound):
            ground.cas.contents.find(unixfs.content_id(text(2)))


class ZstorErrorOfTest(ZstorError):
    code, type = 9_999, "of_a_test"


@pytest.mark.parametrize("later", [2, 5])
async def test_an_index_that_another_log_loses_costs_no_content(home: Home, later: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each moment in which a log waits for its content, twice: the second time while it is made anew."""
    calls, losses = 0, (0, later)
    async with opened(home) as ground:

        def losing(method: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
            async def call(*arguments: Any, **options: Any) -> object:
                nonlocal calls
                if calls in losses:
                    lose(ground.index)
                calls += 1
                return await method(*arguments, **options)

            return call

        for name in ("put", "get", "hold", "let_go"):
            monkeypatch.setattr(Held, name, losing(getattr(Held, name)))
        moment = 0
        while calls >= moment:
            calls, losses = 0, (moment, moment + later)
            log = f"log{moment}"
            await ground.create(log, page_size=2)
            await ground.append_all(texts(3), log)
            await ground.append(text(1), log, local_hash=b"again")
            await ground.append_all(texts(8, 4), log)
            scrubbed = await ground.scrub(1, 3, log)
            assert scrubbed.gone == [unixfs.content_id(text(number)) for number in (2, 3)], moment
            assert not (await ground.append(text(4), log)).new, moment
            assert await ground.contents(log) == [None, None, None, text(1), *texts(8, 4)], moment
            await ground.whole(log)
            moment += 1
        assert moment > 20


def lose(index: PageIndex) -> None:
    """Somebody else finds the index damaged."""
    index._db.execute("drop table entry")
    with pytest.raises(IoError):
        index.uses("another log", raw(b""))
