"""Work for many things, several at once."""

from __future__ import annotations

import pytest
import trio

from zstor_local.errors import NotFound
from zstor_local.store.several import SEVERAL, for_each


async def test_several_run_at_once_and_no_more(autojump_clock: trio.testing.MockClock) -> None:
    running = most = 0
    begun: list[int] = []

    async def work(number: int) -> None:
        nonlocal running, most
        begun.append(number)
        running += 1
        most = max(most, running)
        await trio.sleep(1 + number % 3)
        running -= 1

    numbers = range(3 * SEVERAL)
    await for_each(numbers, work)
    assert most == SEVERAL
    assert sorted(begun) == [*numbers]
    assert sorted(begun[:SEVERAL]) == [*range(SEVERAL)]
    assert running == 0


async def test_an_error_ends_the_others_and_comes_alone() -> None:
    ended: list[int] = []

    async def work(number: int) -> None:
        if number == SEVERAL - 1:
            raise NotFound("gone")
        try:
            await trio.sleep_forever()
        finally:
            ended.append(number)

    with pytest.raises(NotFound, match="gone"):
        await for_each(range(100), work)
    assert len(ended) < SEVERAL
    assert max(ended, default=0) < SEVERAL
