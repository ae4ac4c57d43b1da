"""Faults instead of crashes: the disks or the metastore answer with errors, the daemon lives on.

Every operation of a program fails, once or from then on. The client gets what it asked for or a typed error that is true; nothing is
acknowledged that a power loss could undo; a log whose flush failed takes nothing more; after a clean restart nothing is left over.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import trio.testing

from tests.simulation.account import Client
from tests.simulation.house import House
from tests.simulation.oracle import BadState
from tests.simulation.outcomes import NOTHING
from tests.simulation.points import Site, under
from tests.simulation.sweep import Mutate, Program, Run, base, examine, fingerprint, first_error, intact, live, rehearse
from tests.simulation.world import World
from zstor_local.errors import ZstorError
from zstor_local.shards.directory import LOG
from zstor_local.shards.share_files import TEMPORARY

TWO: Final = "two shards"
HANGS: Final = "a disk that does not answer"
FLUSHES: Final = (
    "zstor_local.shards.directory.DirectoryShard.start_flush:fdatasync",
    "zstor_local.shards.directory.DirectoryShard.flush_file_system:syncfs",
    "zstor_local.shards.log.Log.flush:fdatasync",
)


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong from a crash point on: the call itself (`once`), every later one too (`all`), or all that has to do with two
    shards, or with shares on their way into files there; or nobody knows, as a disk does not answer.
    """

    code: int
    kind: str

    def __str__(self) -> str:
        return f"{errno.errorcode[self.code]} {self.kind}"

    def strike(self, world: World, house: House, number: int) -> None:
        files = world.files
        if self.kind == HANGS:
            there = under(house.root(0))
            files.hang(lambda path: files.points >= number and there(path))
            return
        if self.kind in ("once", "all"):
            files.fail_at(number, self.code, and_after=self.kind == "all")
            return
        for shard in (0, 1):
            there = under(house.root(shard) if self.kind == TWO else f"{house.root(shard)}/{TEMPORARY}")
            files.fail("*", lambda path, there=there: files.points >= number and there(path), self.code, times=None)  # type: ignore[misc]


ONCE: Final = [Fault(code, "once") for code in (errno.EIO, errno.ENOSPC, errno.EROFS)]
LASTING: Final = [
    Fault(errno.EIO, "all"),
    Fault(errno.ENOSPC, "all"),
    Fault(errno.EIO, TWO),
    Fault(errno.EROFS, "all"),
    Fault(errno.ENOSPC, TWO),
    Fault(errno.ENOSPC, "two shards' shares"),
    Fault(errno.ETIMEDOUT, HANGS),
]


def each_and_one_in_turn(number: int) -> Sequence[Fault]:
    """An error once and one that lasts; over a program's crash points all of them come."""
    return ONCE[number % len(ONCE)], LASTING[number % len(LASTING)]


def everything(number: int) -> Sequence[Fault]:
    return [*ONCE, *LASTING]


def sweep_faults(program: Program, faults: Callable[[int], Sequence[Fault]], mutate: Mutate = intact) -> int:
    """Let each crash point of the work fail. Returns how many trials there were; raises the first BadState."""
    begin, sites = rehearse(program, mutate)
    seen: set[tuple[object, ...]] = set()
    count = 0
    for number in range(begin + 1, len(sites) + 1):
        for fault in faults(number):
            count += 1
            try:
                for clean, state in _states(program, number, fault, mutate):
                    look = fingerprint(state.world), state.account.state()
                    if look not in seen:
                        seen.add(look)
                        examine(state, program.house, thoroughly=count % 4 == 0, tidy=clean, faulty=True)
            except BadState as error:
                raise BadState(f"{program}, {fault} at {number} ({sites[number - 1].name}): {error}") from error
    return count


def _states(program: Program, number: int, fault: Fault, mutate: Mutate) -> Iterator[tuple[bool, Run]]:
    """What a power loss leaves when the last reply was sent, and (clean) what a stop leaves.

    Whether all is tidy can be told of the latter only: what a failed sync of a directory should have made durable may come undone by a
    power loss however often it is synced again, and so a freed share may come back.
    """
    trial = base(program).copy()
    world = trial.world
    mutate(world)
    lost: list[tuple[bool, Run]] = []

    async def work(client: Client) -> None:
        await program.work(client)
        await trio.testing.wait_all_tasks_blocked()
        lost.append((False, Run(world.crash(NOTHING), trial.account.copy())))
        await _true_or_typed(client)
        world.files.heal()
        await client.store.presence.look()
        await _true_or_typed(client, healed=True)
        answer = await client.put("after", b"the daemon lives")
        if fault.kind == HANGS and client.store.pool.state(0) != "ok":
            raise BadState(f"the disk answers again, and its shard is not used: {client.store.pool.reason(0)}")
        enough = len(client.store.pool.usable()) >= program.house.policy.write_quorum  # a log that failed takes nothing in this life
        if isinstance(answer, ZstorError) and enough and client.store.committer.failure is None:
            raise BadState(f"all is well again, and the daemon takes no writes: {answer}")

    fault.strike(world, program.house, number)
    try:
        live(trial, program.house, work)
    except Exception as error:
        raise BadState(f"the daemon died: {first_error(error)!r}") from error
    if fault.kind in ("once", "all"):
        _check_flushes(program.house, world, number)
    yield from lost
    world.files.heal()
    yield True, Run(world.copy(), trial.account)


async def _true_or_typed(client: Client, *, healed: bool = False) -> None:
    for key in sorted(client.account.possible):
        try:
            value = await client.get(key)
        except ZstorError as error:
            if healed:
                raise BadState(f"all is well again, and {key} cannot be read: {error}") from error
            continue
        if not client.account.allows(key, value):
            raise BadState(f"the daemon goes on with other bytes of {key}")


def _check_flushes(house: House, world: World, number: int) -> None:
    """If the flush at this crash point failed, its logs were closed for ever."""
    sites: Sequence[Site] = world.files.sites
    if number > len(sites) or sites[number - 1].name not in FLUSHES:
        return
    failed = sites[number - 1]
    together = failed.name.endswith("syncfs")
    roots = [house.root(shard) for shard in range(house.shards) if together or under(house.root(shard))(failed.path)]
    for later in sites[number:]:
        root = next((root for root in roots if under(root)(later.path)), None)
        if root is None:
            continue
        appended = later.name.endswith(("pwritev", "fdatasync", "allocate")) and under(f"{root}/{LOG}")(later.path)
        if appended or later.name.endswith("rename"):
            raise BadState(f"after the failed flush: {later.name} of {later.path}")
