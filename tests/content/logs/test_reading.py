"""What a read of a log holds in memory."""

from __future__ import annotations

import pytest

from tests.content.logs.ground import opened
from tests.store.home import Home
from zstor_local import limits

PIECES = [bytes([number]) * 4_000 for number in range(1, 11)]


async def test_what_is_embedded_comes_only_with_values_and_no_more_than_a_list_may_hold(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LIST_BYTES", 10_000)
    async with opened(home) as ground:
        await ground.create(page_size=1, embed_last=1)
        await ground.append_all(PIECES)
        _, some = await ground.reading.since("default", 0, 1_000, embedded=True)
        assert [entry.data for entry in some] == PIECES[:3]
        _, rest = await ground.reading.since("default", some[-1].seq, 1_000, embedded=True)
        assert [entry.data for entry in rest] == PIECES[3:6]
        _, bare = await ground.reading.since("default", 0, 1_000, embedded=False)
        assert [(entry.seq, entry.data) for entry in bare] == [(number, b"") for number in range(1, 11)]
