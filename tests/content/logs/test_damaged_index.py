"""A bit that flips in the index of logs hides an entry's content, and nobody is told: nothing is let go of for that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.content.ground import HOUR
from tests.content.logs.ground import Ground, opened, text, texts
from tests.store.home import Home
from zstor_local.formats import unixfs
from zstor_local.runtime import SECOND_US

HIDDEN = 2  # its entry is in a page that is closed


async def let_go_of_leftovers(ground: Ground) -> None:
    assert await ground.leftovers.let_go() == 0


async def scrub_an_entry_with_the_same_content(ground: Ground) -> None:
    found = await ground.scrub(7)
    assert [(kept.cid, kept.owners) for kept in found.kept] == [(unixfs.content_id(text(HIDDEN)), ("log/default",))]


async def go_on_with_a_scrub_that_was_broken_off(ground: Ground) -> None:
    log = await ground.logs.open("default")
    await log.mark(unsettled=True)
    log._loaded_in = None
    await ground.logs.open("default")
    assert not log.record.unsettled


@pytest.mark.parametrize("work", [let_go_of_leftovers, scrub_an_entry_with_the_same_content, go_on_with_a_scrub_that_was_broken_off])
async def test_content_that_only_the_pages_name_stays(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: Callable[[Ground], Awaitable[None]]
) -> None:
    monkeypatch.setattr("zstor_local.content.logs.leftovers.KEPT", -HOUR * SECOND_US)
    cid = unixfs.content_id(text(HIDDEN))
    async with opened(home, index=str(tmp_path / "logs.sqlite")) as ground:
        await ground.create(page_size=2)
        await ground.append_all(texts(6))
        await ground.append(text(HIDDEN), local_hash=b"again")
        flipped = bytes([*cid.binary[:-1], cid.binary[-1] ^ 1])
        ground.index._db.execute("update entry set cid=? where seq=?", (flipped, HIDDEN))
    async with opened(home, index=str(tmp_path / "logs.sqlite")) as ground:
        if work is not scrub_an_entry_with_the_same_content:
            await ground.scrub(7)
            ground.index._db.execute("update entry set cid=? where seq=?", (flipped, HIDDEN))
        await work(ground)
        assert (await ground.contents())[: HIDDEN + 1] == texts(HIDDEN + 1)
        await ground.whole()
        assert ground.index.uses("default", cid)
