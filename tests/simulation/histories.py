"""Histories: several lives of a daemon with clients at work all the while; disks that go and come back, fail, fill up, rot, or are put
back as they once were; the power that is cut. What every client was told must fit on one line, and in the end everything must be there.

    python -m tests.simulation.histories 12345  # that seed again, told step by step
    python -m tests.simulation.soak 1000        # so many new ones, and figures

What may happen is listed here: what clients do (clients.py), what goes wrong and what the daemon is asked to do meanwhile (trouble.py),
what happens between two lives (below). How a history ends is told in peace.py, how often it comes to what in encounters.py.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

import trio
import trio.testing

from tests.metastore.memory import Cell
from tests.simulation.clients import Clients, History
from tests.simulation.encounters import counted
from tests.simulation.engines import SimulatedEngines, cell
from tests.simulation.ground import SPARES, Ground
from tests.simulation.house import HOUSES, KEY, STORE, House, small_limits
from tests.simulation.indexes import indexes
from tests.simulation.linearizable import Kind
from tests.simulation.oracle import BadState, check_logs, check_rows, check_shares
from tests.simulation.outcomes import ALL, NOTHING, Outcome, Subset
from tests.simulation.peace import (
    can_spare,
    comes_back,
    given_shards,
    goes_on,
    known_to_logs,
    mended,
    nothing_left,
    optimal,
    places,
    rebuilt,
    refuses_writes,
    without_spare_disks,
)
from tests.simulation.points import PowerLoss, under
from tests.simulation.swallowed import no_swallowed_faults
from tests.simulation.sweep import first_error
from tests.simulation.trouble import LONG, Trouble, Upkeep, compacted, staying
from tests.simulation.world import World, run, run_until_power_loss
from zstor_local.errors import Conflict
from zstor_local.metastore.base import Owed
from zstor_local.store.faults import StoreFault
from zstor_local.store.keyfile import key_exists
from zstor_local.store.opening import open_store
from zstor_local.store.rebuild import Report
from zstor_local.store.store import Store

# --- What may happen, and how often; each history takes some of it often and some not at all ---

CLIENTS: Final[Mapping[Kind, int]] = {
    "get": 16, "put": 12, "create": 2, "swap": 6, "keep": 2, "link": 4, "delete": 5, "delete if": 2, "rename": 4, "copy": 4, "refer": 3,
    "unrefer": 2, "clear": 1,
}  # fmt: skip
TROUBLE: Final = {
    "out": 1, "back": 1, "error": 1, "full": 1, "read error": 1, "short": 1, "rot": 1, "metastore": 1, "clock": 1,
    "copy": 1, "crowded": 1, "read only": 1, "bad page": 1, "hang": 1,
}  # fmt: skip
UPKEEP: Final = {
    "compact": 3, "scrub": 1, "repair": 1, "collect": 1, "add": 1, "replace": 1, "remove": 1, "rotate": 1, "rewrite": 1,
}  # fmt: skip
POWER_CUT: Final = 0.6  # of the lives, in the middle of it all
KILLED: Final = 0.3  # of those: not the power goes but the daemon alone
INDEX_LOST: Final = 0.4  # of the lives' beginnings, with the index of the logs as it once was, or without one
OLDER: Final = 0.5  # of the lives' beginnings, with an older copy of a shard in its place
EXCHANGED: Final = 0.1  # of the lives' beginnings, with two disks at each other's place
MOVED: Final = 0.1  # of the lives' beginnings, with a disk at another place, which the store is told of
METASTORE_LOST: Final = 0.15  # of the lives' ends, as they are
LOOKED_AT: Final = 0.4  # of the lives' ends, with everything healed

Mutate = Callable[[World], None]


def intact(world: World) -> None:
    """The mutation that changes nothing."""


class _Simulation:
    def __init__(self, seed: int, mutate: Mutate, house: House | None = None) -> None:
        self.draw = draw = random.Random(seed)
        self.history = History(seed)
        self.house = house = house or draw.choice(HOUSES)
        world = House(house.policy, house.shards, house.kind, seed).world()
        disks = [house.root(number) for number in range(house.shards)]
        rotten = draw.choice(disks) if draw.random() < 0.4 else None
        spares = [f"/disks/spare{number}" for number in range(SPARES)]
        weak = rotten or draw.choice(disks)
        self.ground = Ground(world, house, draw, self.history, [*disks, *spares], rotten, weak)
        if self.ground.apart:
            for spare in spares:
                world.files.mount(spare, kind=house.kind or "ext4")
        mutate(world)
        self.clients = Clients(self.history, draw, CLIENTS, self.ground.excuse)
        self.trouble = Trouble(self.ground, TROUBLE)
        self.upkeep = Upkeep(self.ground, self.clients, UPKEEP)
        self.old: Cell | None = None  # the metastore of an earlier life
        # Until what has to be freed is forgotten with the metastore, or an older copy brings back a share of which no log has a record.
        self.tidy = True

    @property
    def world(self) -> World:
        return self.ground.world

    @world.setter
    def world(self, world: World) -> None:
        self.ground.world = world

    def run(self) -> History:
        history, draw = self.history, self.draw
        with counted(history.counts), no_swallowed_faults():
            for life in range(draw.randrange(3, 6)):
                history.counts["lives"] += 1
                if self._live():
                    outcomes: list[Outcome] = [NOTHING, ALL, Subset(draw.randrange(1 << 30)), Subset(life)]
                    self._crash(None if draw.random() < KILLED else draw.choice(outcomes))
                if draw.random() < INDEX_LOST:
                    self.ground.lose_index()
                self.ground.heal(all_disks=draw.random() < 0.5)
                if draw.random() < OLDER:
                    self._put_older_back()
                if draw.random() < EXCHANGED and STORE in self.world.survivors:
                    self.ground.exchange()
                if draw.random() < MOVED and STORE in self.world.survivors:
                    self._move_shard()
                if draw.random() < METASTORE_LOST:
                    self._lose_metastore()
                if draw.random() < LOOKED_AT:
                    self._look()
            self._look()
            self._end()
            self.clients.judge()
        history.hash = self.world.files.history()
        return history

    def _crash(self, outcome: Outcome | None) -> None:
        """The power went; None: the daemon was killed, and all that no sync made durable may still be lost with the power of a later
        life.
        """
        self.history.counts["kills" if outcome is None else "power cuts"] += 1
        if outcome is None:
            self.history.note("killed")
            self.world = self.world.copy()
            return
        self.history.note(f"the power went; {outcome}")
        self.world = self.world.crash(outcome)
        indexes(self.world).lose(self.draw.randrange(1 << 20))

    # --- A life ---

    def _live(self) -> bool:
        """One life of the daemon and its clients. True if the power went."""
        world, draw = self.world, self.draw
        if draw.random() < POWER_CUT:
            world.files.crash_at(
                world.files.points + draw.choice([0, 20, 60, 200, 600]) + draw.randrange(1, 100), torn=draw.random() < 0.5
            )

        async def daemon() -> None:
            try:
                async with open_store(world.runtime, SimulatedEngines(world), self.house.config()) as store:
                    self.clients.settled()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self.trouble.run)
                        async with trio.open_nursery() as work:
                            work.start_soon(self._upkeep, store)
                            work.start_soon(self.clients.run, store)
                        nursery.cancel_scope.cancel()
            finally:
                world.files.heal()

        try:
            return run_until_power_loss(world, daemon)
        except Exception as error:
            raise _bad("the daemon died", error) from error

    async def _upkeep(self, store: Store) -> None:
        with trio.move_on_after(LONG):
            await self.upkeep.run(store)

    # --- Between two lives ---

    def _look(self) -> None:
        """Everything heals, and all must be there; now and then from the shards alone."""
        self.ground.heal(all_disks=True)
        old = None if STORE not in self.world.survivors else cell(self.world, STORE).copy()
        self._quiet_life()
        if (older := self.old or old) is not None:
            refuses_writes(self.ground, older)
        self.old = old if self.draw.random() < 0.5 else None
        if self.draw.random() < 0.5:
            self._life("compacted in part", partial(compacted, self.ground))
            if self.draw.random() < INDEX_LOST:
                self.ground.lose_index()
            self._quiet_life()
        if not self.ground.rotted and not self.ground.failed_sync and self.draw.random() < 0.3:
            self._quiet_life()
            comes_back(self.ground, self.clients.names)
        if not self.ground.rotted and self.draw.random() < 0.3:
            self._rebuild("the rebuild of a store at rest")
            self._quiet_life()

    def _put_older_back(self) -> None:
        """What the store had of one shard is older than all else, what it lacks is made anew; now and then not at once."""
        if not self.ground.copy or self.ground.exchanged is not None or STORE not in self.world.survivors:
            return
        self.ground.heal(all_disks=True)
        self.ground.put_older_back()
        self.tidy &= not self.ground.older
        if self.ground.older and self.draw.random() < 0.5:
            self._life("after an older copy was put back", self._healed)
            self._quiet_life()

    async def _healed(self, store: Store) -> None:
        """Whatever the older copy lacks is there again."""
        await self.clients.read_all(store)
        await mended(store, accept_loss=False)
        await optimal(store, self.clients.names)
        self.ground.older = False

    def _move_shard(self) -> None:
        """A shard lies at another place from now on, and the store is told so."""
        ground = self.ground
        if not ground.apart or ground.exchanged is not None:
            return
        ground.heal(all_disks=True)
        found = places(ground)
        free = [disk for disk in ground.disks if not any(map(under(disk), found.values()))]
        shards = [number for number, place in found.items() if number and place in ground.disks]  # a rebuild begins at the first's
        if not free or not shards:
            return
        number, place = self.draw.choice(shards), self.draw.choice(free)
        ground.move(found[number], place)
        self.history.counts["a shard moved to another place"] += 1

        async def told(store: Store) -> None:
            try:
                taken_for: int | None = (await store.membership.add(place, None)).number
            except Conflict:  # its drain may have come to its end
                taken_for = number if store.pool.entry(number) is None else None
            if taken_for != number:
                raise BadState(f"shard {number} is taken for shard {taken_for} where it was moved to")

        self._life("when a shard was moved", told)

    def _lose_metastore(self) -> None:
        """As a crash left it: what nobody was told of comes to light, or never does; what was refused does not, and acknowledged is
        acknowledged, but for what the answer said that all logs are owed: that only the metastore knows, as it does what an older copy
        brings back that was forgotten.
        """
        if STORE not in self.world.survivors or self.clients.half_done or self.ground.older or not key_exists(self.world.files, KEY):
            return
        self.ground.heal(all_disks=True)
        if any(debt.kind is Owed.RECORD for debt in cell(self.world, STORE).debts):
            if not known_to_logs(self.ground):
                return
            self.history.counts["the metastore is lost, and shards are owed records"] += 1
        self.tidy = False
        self.history.note("the metastore is lost")
        report = self._rebuild("the rebuild after a life", accept_loss=True)
        if report.unreadable:
            self.history.counts["a write in doubt came to light without its shares"] += 1
            self._life("after a rebuild", self.clients.delete_unreadable)

    def _rebuild(self, what: str, *, accept_loss: bool = False) -> Report:
        """The metastore is lost, and made anew from the shards; now and then the power goes meanwhile."""
        self.history.counts[what] += 1
        for _ in range(self.draw.choice([0, 0, 1, 2])):
            self.world.files.crash_at(self.world.files.points + self.draw.randrange(1, 12), torn=self.draw.random() < 0.5)
            try:
                self._rebuilt(what, accept_loss)
                self.world.files.heal()
            except PowerLoss:
                self.history.counts[f"power cut in: {what}"] += 1
                self._crash(None if self.draw.random() < KILLED else Subset(self.draw.randrange(1 << 30)))
        report = self._rebuilt(what, accept_loss)
        self.ground.forget_copies()
        self.history.note(f"rebuilt {report.objects} objects")
        return report

    def _rebuilt(self, what: str, accept_loss: bool) -> Report:
        try:
            return rebuilt(self.ground, self.world, accept_loss=accept_loss)
        except StoreFault as error:
            raise BadState(f"{what} is refused: {error}") from error

    def _life(self, what: str, work: Callable[[Store], Awaitable[None]]) -> None:
        """A life in which nothing may go wrong."""

        async def daemon() -> None:
            async with open_store(self.world.runtime, SimulatedEngines(self.world), self.house.config()) as store:
                await work(store)

        try:
            run(self.world, daemon)
        except Exception as error:
            raise _bad(what, error) from error

    def _quiet_life(self, *, last: bool = False) -> None:
        """All disks are there and nothing fails: every key is read, the store takes writes, and the oracles look at what is there."""
        ground = self.ground

        async def quiet(store: Store) -> None:
            self.clients.settled()
            await trio.testing.wait_all_tasks_blocked()
            await self.clients.read_all(store)
            if last:
                await mended(store, accept_loss=not self.tidy)
            await goes_on(ground, store)
            await trio.testing.wait_all_tasks_blocked()
            truth = cell(self.world, STORE)
            ground.can_spare = can_spare(store, truth)
            check_rows(store, truth)
            if not ground.rotted:
                check_logs(store, truth)
                if not ground.failed_sync:
                    check_shares(store, truth, self.house, tidy=self.tidy)
                    await without_spare_disks(ground, store, self.clients.names)

        self._life("in the end", quiet)
        self.history.note("a quiet life")

    def _end(self) -> None:
        """Upkeep comes to its end. A store with fewer shards than objects have shares is given more, and comes to it again."""
        if self._mended() < self.house.policy.m:
            self.history.counts["fewer shards than shares in the end"] += 1
            self._life("given more shards", partial(given_shards, self.ground))
            self._mended()
        # A segment whose removal no sync made durable may be back behind what was forgotten since. A log that rots may lose the
        # deletion of what a namespace held that is gone, and nobody looks after those any more.
        if self.ground.failed_sync:
            return
        if not self.ground.rotted or not any(each.kind == "clear" for each in self.history.operations):
            comes_back(self.ground, self.clients.names)

    def _mended(self) -> int:
        """Upkeep comes to its end, over some lives as the open segments are looked at in the next one. Returns how many shards stay."""
        shards = 0
        for _ in range(3):
            self._quiet_life(last=True)

        async def look(store: Store) -> None:
            nonlocal shards
            await trio.testing.wait_all_tasks_blocked()
            shards = staying(store)
            await nothing_left(store, cell(self.world, STORE), self.house.policy.m)
            await optimal(store, self.clients.names)
            await self.clients.read_all(store)

        self._life("when all was mended", look)
        return shards


def _bad(when: str, error: Exception) -> BadState:
    cause = first_error(error)
    return BadState(f"{when}: {cause}" if isinstance(cause, BadState) else f"{when}: {cause!r}")


class Found(AssertionError):
    """A seed whose history is not what was promised."""


def history(seed: int, mutate: Mutate = intact, house: House | None = None, *, told: bool = False) -> History:
    """The history of a seed, judged; Found if it breaks a promise. In a certain house if one is given."""
    simulation = _Simulation(seed, mutate, house)
    try:
        with small_limits():
            return simulation.run()
    except BadState as error:
        raise Found(f"seed {seed}: {error}\n\nagain: python -m tests.simulation.histories {seed}") from error
    finally:
        if told:
            happened = [*simulation.history.events, *(f"{each.begin:>6} {each}" for each in simulation.history.operations)]
            sys.stdout.write("\n".join(sorted(happened, key=lambda each: int(each.split()[0]))) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seed", type=int)
    try:
        done = history(parser.parse_args().seed, told=True)
    except Found as error:
        sys.stdout.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{done.hash}: {len(done.operations)} operations fit on a line\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
