"""Histories of a shard server drawn by lot: lives full of work, ended by kills, power losses and stops, the last one on a bad disk."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.shardserver.server import NAMESPACE
from tests.simulation.indexes import indexes
from tests.simulation.oracle import BadState
from tests.simulation.outcomes import NOTHING, outcomes
from tests.simulation.server_sweep import State, examine, examine_once, small_segments
from tests.simulation.servers import OTHER, Life, Promises, living
from tests.simulation.sweep import first_error
from tests.simulation.world import World, run_until_power_loss
from zstor_local.shardserver.refusal import Refusal

LIVES = 8
SMALL, LARGE = range(1, 60), range(60, 80)
WORK = (
    *("append",) * 6, *("free",) * 3, *("compact",) * 2, "put", "put", "free large", "letter", "describe", "retire",
    "supersede",
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def small_world() -> Iterator[None]:
    with small_segments():
        yield


class History:
    """One, from a seed."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)
        self.state = State(World(seed), Promises())
        self.done: list[str] = []

    def run(self) -> None:
        for _ in range(LIVES):
            self._live(crash=self._draw.random() < 0.7)
            self._end()
        examine(self.state, thoroughly=True)
        self._live_on_a_bad_disk()

    def _live(self, *, crash: bool) -> None:
        draw, state = self._draw, self.state

        async def server() -> None:
            with living(state.world, state.promises) as life:
                life.observe()
                if crash:
                    state.world.files.crash_at(state.world.files.points + draw.randrange(1, 60), torn=draw.random() < 0.4)
                for _ in range(draw.randrange(3, 25)):
                    await self._work(life)
                life.observe()

        self.done.append("start")
        run_until_power_loss(state.world, server)

    def _end(self) -> None:
        """What the end of a life leaves: after a kill or a stop all, after a power loss some."""
        draw, state = self._draw, self.state
        world = state.world.copy()
        if state.world.files.dead and draw.random() < 0.6:
            left = list(outcomes(state.world.files.unpinned(), singles=6, subsets=6, seed=draw.randrange(1 << 20)))
            world = state.world.crash(draw.choice(left))
            indexes(world).lose(draw.randrange(1 << 20))
        if draw.random() < 0.2:
            indexes(world).commits.clear()
        self.state = State(world, state.promises)

    def _live_on_a_bad_disk(self) -> None:
        """What is acknowledged in spite of it survives a power loss."""
        draw, state = self._draw, self.state
        lost: list[State] = []

        async def server() -> None:
            with living(state.world, state.promises) as life:
                files = state.world.files
                files.fail_at(
                    files.points + draw.randrange(1, 40), draw.choice((errno.EIO, errno.ENOSPC)), and_after=draw.random() < 0.3
                )
                for _ in range(20):
                    with suppress(Refusal, OSError):
                        await self._work(life)
                lost.append(State(state.world.crash(NOTHING), state.promises.copy()))
                files.heal()

        self.done.append("start on a bad disk")
        run_until_power_loss(state.world, server)
        examine_once(lost[0])

    async def _work(self, life: Life) -> None:
        draw = self._draw
        what = draw.choice(WORK)
        self.done.append(what)
        if what == "append":
            numbers = draw.sample(SMALL, draw.randrange(1, 4))
            mine = {NAMESPACE: [number for number in numbers if number < 40], OTHER: [number for number in numbers if number >= 40]}
            freed = [number for number in self._there(small=True) if number not in numbers and draw.random() < 0.1]
            life.append_to({namespace: some for namespace, some in mine.items() if some}, freed)
        elif what == "free":
            life.free(*(number for number in self._there(small=True) if draw.random() < 0.4))
        elif what == "put":
            number = draw.choice(LARGE)
            life.put(number, edition=draw.randrange(2), namespace=NAMESPACE if number < 70 else OTHER)
        elif what == "free large":
            life.free_large(*(number for number in self._there(small=False) if draw.random() < 0.5))
        elif what == "compact":
            await life.compact()
        elif what == "supersede":
            life.supersede(*(number for number in SMALL if draw.random() < 0.3), namespace=draw.choice((NAMESPACE, OTHER)))
        elif what == "letter":
            life.put_letter(draw.randbytes(9))
        elif what == "describe":
            life.describe(draw.choice((NAMESPACE, OTHER)), draw.choice(("photos", "mail")))
        elif draw.random() < 0.2:
            life.retire(draw.choice((NAMESPACE, OTHER)))

    def _there(self, *, small: bool) -> list[int]:
        """The numbers of shares that are there for sure."""
        shares = self.state.promises.shares
        return [share.version[-1] for (share, is_small), values in shares.items() if is_small == small and None not in values]


RETIRED_AFTER_A_FAILED_SYNC = (91000075, 91000281)  # a segment that was unlinked before came back


@pytest.mark.parametrize("seed", [*range(30), *RETIRED_AFTER_A_FAILED_SYNC])
def test_a_history_keeps_what_was_acknowledged(seed: int) -> None:
    history = History(seed)
    try:
        history.run()
    except Exception as error:
        raise BadState(f"after {', '.join(history.done[-20:])}: {first_error(error)}") from error
