"""Checking logs: what is wrong is named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.content.logs.ground import Ground, hash_of, opened, text, texts
from tests.formats.vectors import BY_NAME
from tests.store.home import Home, share_places
from zstor_local.content.logs.held import PAGE
from zstor_local.content.logs.verifying import Problem
from zstor_local.errors import CorruptRecord
from zstor_local.formats import unixfs
from zstor_local.formats.remotelog import Entry, Page
from zstor_local.store.sources import BytesSource


async def history(ground: Ground) -> None:
    await ground.create(page_size=3)
    await ground.append_all(texts(8))


async def first_problem(ground: Ground, known: tuple[int, bytes] | None = None) -> Problem:
    return (await ground.verify(known=known)).problems[0]


async def forge(ground: Ground, page: Page) -> None:
    """Set a log's head as a broken or malicious writer would."""
    await ground.names.publish("log/default", page.encode("protobuf"))


async def test_a_whole_log_has_no_problems(home: Home) -> None:
    async with opened(home) as ground:
        await history(ground)
        await ground.scrub(5)
        found = await ground.verify(known=(4, hash_of(4)))
        assert (found.entries, found.pages, found.scrubbed, found.contents, found.problems) == (8, 3, 1, 7, [])
        assert (await ground.verify("default")).problems == []


async def test_an_empty_log_is_whole(home: Home) -> None:
    async with opened(home) as ground:
        found = await ground.verify()
        assert (found.entries, found.problems) == (0, [])


async def test_a_missing_page_is_named(home: Home) -> None:
    async with opened(home) as ground:
        await history(ground)
        place = (await ground.logs.open("default")).closed_pages()[0]
        await ground.cas.keeping.unpin(place.cid, "log/default", forget=True)
        problem = await first_problem(ground)
        assert (problem.kind, problem.seq, problem.cid) == ("missing", 3, place.cid)


async def test_missing_content_is_named(home: Home) -> None:
    async with opened(home) as ground:
        await history(ground)
        cid = unixfs.content_id(text(2))
        await ground.cas.keeping.unpin(cid, "log/default", forget=True)
        problem = await first_problem(ground)
        assert (problem.kind, problem.seq, problem.cid) == ("missing", 2, cid)


async def test_content_with_too_few_shares_is_named(home: Home) -> None:
    async with opened(home) as ground:
        await history(ground)
        content = ground.cas.contents.find(unixfs.content_id(text(7)))
        for place in share_places(ground.store, content.stored):
            place.flip(0)
        problem = await first_problem(ground)
        assert (problem.kind, problem.seq) == ("missing", 7)
        assert (await ground.verify(contents=False)).problems == []


async def test_a_known_entry_that_is_another_now_is_a_fork(home: Home) -> None:
    async with opened(home) as ground:
        await history(ground)
        problem = await first_problem(ground, known=(4, b"what I saw"))
        assert (problem.kind, problem.seq) == ("fork", 4)
        problem = await first_problem(ground, known=(9, b"what I saw"))
        assert (problem.kind, problem.seq) == ("gap", 8)


@pytest.mark.parametrize(
    ("numbers", "local_hashes", "kind", "seq", "words"),
    [
        ([5, 4, 2], "abc", "gap", 3, "the log lacks entry 3"),
        ([5, 4, 4], "abc", "fork", 4, "entry 4 comes below entry 4"),
        ([5, 4, 3], "aba", "fork", 3, "entries 5 and 3 have the same local hash"),
        ([5, 4, 3], "abc", "gap", 2, "the log lacks entries 1 to 2"),  # the page before
    ],
)
async def test_pages_that_break_the_rules_are_named(
    home: Home, numbers: list[int], local_hashes: str, kind: str, seq: int, words: str
) -> None:
    """As another program may have written them: our own writer refuses such a head."""
    async with opened(home) as ground:
        await ground.append(text(1))
        entries = tuple(
            Entry(number, local_hash.encode(), unixfs.content_id(text(1)))
            for number, local_hash in zip(numbers, local_hashes, strict=True)
        )
        await forge(ground, Page(entries))
        problem = await first_problem(ground)
        assert (problem.kind, problem.seq, problem.text) == (kind, seq, words)


async def test_pages_that_do_not_join_are_a_gap(home: Home) -> None:
    async with opened(home) as ground:
        await history(ground)
        log = await ground.logs.open("default")
        page = await log.page(log.closed_pages()[0].cid)
        await forge(ground, replace(log.head.page, tail=log.closed_pages()[0].cid))
        problem = await first_problem(ground)
        assert (problem.kind, problem.seq, page.last) == ("gap", 6, 3)


async def test_what_is_no_page_is_named(home: Home) -> None:
    async with opened(home) as ground:
        await history(ground)
        log = await ground.logs.open("default")
        cid = await log.held.put(b"\x0a\xff no page", PAGE)
        await forge(ground, replace(log.head.page, tail=cid))
        problem = await first_problem(ground)
        assert (problem.kind, problem.seq, problem.cid) == ("malformed", 6, cid)


async def test_embedded_content_of_another_entry_is_a_bad_hash(home: Home) -> None:
    async with opened(home) as ground:
        await ground.create(page_size=3, embed_last=3)
        await ground.append_all(texts(2))
        log = await ground.logs.open("default")
        newest, oldest = log.head.page.entries
        await forge(ground, Page((newest, replace(oldest, data=b"forged"))))
        problem = await first_problem(ground)
        assert (problem.kind, problem.seq) == ("bad_hash", 1)


async def test_an_entry_whose_hash_is_no_message_id_is_a_bad_hash(home: Home) -> None:
    message = bytes.fromhex(BY_NAME["flow-alice-bob"]["mvds_message_hex"])
    async with opened(home) as ground:
        await ground.create(messages="mvds")
        await ground.append(message)
        for content, kind in ((message, "bad_hash"), (text(1), "malformed")):
            await ground.cas.upload(BytesSource(content))
            await forge(ground, Page((Entry(1, b"another", unixfs.content_id(content)),)))
            assert (await first_problem(ground)).kind == kind


async def test_a_head_that_breaks_the_rules_is_not_read(home: Home) -> None:
    async with opened(home) as ground:
        await ground.append(text(1))
        await forge(ground, Page((Entry(3, b"x", unixfs.content_id(text(1))),)))
    async with opened(home) as ground:
        with pytest.raises(CorruptRecord, match="log/default"):
            await ground.entries()
        assert (await first_problem(ground)).kind == "gap"
        await ground.names.publish("log/default", b"\xff")
        assert (await first_problem(ground)).kind == "malformed"


async def test_a_log_that_cannot_be_opened_can_be_checked(home: Home) -> None:
    async with opened(home) as ground:
        await history(ground)
        place = (await ground.logs.open("default")).closed_pages()[1]
        await ground.cas.keeping.unpin(place.cid, "log/default", forget=True)
    async with opened(home) as ground:  # the index is gone too
        problem = await first_problem(ground)
        assert (problem.kind, problem.seq, problem.cid) == ("missing", 6, place.cid)


async def test_numbers_of_any_size_are_told_apart(home: Home) -> None:
    """A page may name the largest number there is."""
    async with opened(home) as ground:
        await ground.create()
        cid = (await ground.cas.upload(BytesSource(text(1)))).id
        await forge(ground, Page((Entry(2**64 - 1, hash_of(1), cid), Entry(2**64 - 2, hash_of(1), cid))))
        problem = await first_problem(ground)
        assert (problem.kind, problem.seq) == ("fork", 2**64 - 2)
        assert str(2**64 - 1) in problem.text
