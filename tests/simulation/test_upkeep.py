"""Crash points of repair, collect and scrub: wherever the world stops, nothing good is lost, and the next upkeep makes all whole.

Each program begins with as many bad shares as may be lost, so that a single good one less would be noticed at once by a read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

import pytest
import trio

from tests.simulation.account import Account, Client
from tests.simulation.house import House
from tests.simulation.oracle import BadState
from tests.simulation.programs import (
    APART,
    FOUR,
    LARGE,
    SMALL,
    SPARE,
    TOGETHER,
    put_large,
    put_large_2,
    put_middle,
    put_small,
    without_last_shard,
)
from tests.simulation.sweep import Depth, Program, Run, check, live, sites_of, small_world, states
from zstor_local.metastore.base import Garbage
from zstor_local.model.ids import ObjectName
from zstor_local.runtime import read_exactly, sync_directory, write_all
from zstor_local.store.caller import Nobody
from zstor_local.store.health import Health
from zstor_local.store.pace import unpaced
from zstor_local.store.reading import stretch
from zstor_local.store.rewriterow import RewriteRow
from zstor_local.store.sources import BytesSource
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.writes import WriteOptions

DEPTH: Final = Depth(1, torn=False)
LONG: Final = Depth(0, killed=False, torn=False)  # for what is made of many steps, most of which only look


# --- What the daemon does ---


async def repair_all(client: Client) -> None:
    await client.store.repair_all.run(Nobody())


async def collect(client: Client) -> None:
    await client.store.collect.everything(Nobody(), dry_run=False, accept_loss=False, spend=unpaced)


async def scrub(client: Client) -> None:
    store = client.store
    await store.scrub.start()
    while store.scrub.status().state != "idle":
        await store.scrub.news().wait()
    await store.mending.mend()
    while await store.freeing.free_some():
        pass


async def write_beside_collect(client: Client) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, client)
        nursery.start_soon(client.put, "b", b"written meanwhile" * 9_000)
        nursery.start_soon(client.delete, "m")


async def rewrite(client: Client) -> None:
    """The policy is changed behind the first object, and before the last one."""
    store = client.store
    first = (await objects(store))[0]
    job = await store.rewriting.start("default")
    while (await objects(store))[0].version == first.version:
        await store.committer.news().wait()
    await store.namespaces.change("default", lambda record: replace(record, policy=replace(record.policy, padding="padme")))
    while job.running:
        await job.news().wait()
    assert job.state == "done"


async def objects(store: Store) -> Sequence[Stored]:
    return [stored async for stored in store.objects.list("default", "", None, 100)]


async def of_one_policy(store: Store) -> None:
    """Whatever policy a namespace was given while it was written again, all of its objects have it."""
    for job in store.jobs.list():
        while job.running:
            await job.news().wait()
    namespace = store.namespaces.find("default")
    for stored in await objects(store):
        if namespace is None or stored.record.policy != namespace.policy:
            raise BadState(f"{stored.record.key} is stored by {stored.record.policy}")


OTHER: Final = {"small": SMALL, "large": LARGE}


async def put_elsewhere(client: Client) -> None:
    for key, data in OTHER.items():
        await client.store.writer.write(ObjectName("other", key), BytesSource(data), WriteOptions(), Nobody())


async def remove_namespace(client: Client) -> None:
    await client.store.removal.remove("other", Nobody())


async def whole_or_gone(store: Store) -> None:
    """A namespace that was to be removed has all its objects, or none."""
    record = store.namespaces.record("other")
    keys = [stored.record.key async for stored in store.objects.list("other", "", None, 10)] if record is not None else []
    if keys not in ([], sorted(OTHER)):
        raise BadState(f"the namespace is there with {keys}")
    for key in keys:
        stored = store.objects.find(ObjectName("other", key))
        if await store.objects.read(stored, stretch(stored.record, None, None)) != OTHER[key]:
            raise BadState(f"{key} has another value")


# --- What has happened to the disks ---


def share_files(start: Run, house: House, number: int) -> list[str]:
    files, root = start.world.files, f"{house.root(number)}/shares"
    return [f"{root}/{part}/{name}" for part in files.list(root) for name in files.list(f"{root}/{part}")]


def without_shares(house: House, *numbers: int) -> Callable[[Run], Run]:
    """The share files of these shards are gone."""

    def between(start: Run) -> Run:
        files = start.world.files
        for number in numbers:
            for path in share_files(start, house, number):
                files.unlink(path)
                sync_directory(files, os.path.dirname(path))
        return start

    return between


def without_log(house: House, number: int) -> Callable[[Run], Run]:
    """Everything behind the header of a shard's log is zeros: small shares and copies of records are gone."""

    def between(start: Run) -> Run:
        files, root = start.world.files, f"{house.root(number)}/log"
        for name in files.list(root):
            fd = files.open(f"{root}/{name}", os.O_RDWR)
            write_all(files, fd, [bytes(files.status(fd).size - 64)], 64)
            files.fsync(fd)
            files.close(fd)
        return start

    return between


def with_strays(house: House) -> Callable[[Run], Run]:
    """A share of each version lies on another shard too, where no record puts it."""

    def between(start: Run) -> Run:
        files = start.world.files
        for path in share_files(start, house, 0):
            fd = files.open(path, os.O_RDONLY)
            data = bytes(read_exactly(files, fd, files.status(fd).size, 0))
            files.close(fd)
            files.place(f"{house.root(1)}/shares/{path.split('/')[-2]}/{os.path.basename(path)}", data)
        return start

    return between


PROGRAMS: Final = [
    Program("repair lost files", APART, repair_all, (put_large, put_small), between=without_shares(APART, 1)),
    Program("repair lost files, one disk", TOGETHER, repair_all, (put_large,), between=without_shares(TOGETHER, 2)),
    Program("repair two lost files of four", FOUR, repair_all, (put_large,), between=without_shares(FOUR, 0, 2)),
    Program("repair a lost log", APART, repair_all, (put_middle,), between=without_log(APART, 1)),
    Program("repair on the spare shard", SPARE, repair_all, (put_large, put_middle), between=without_last_shard),
    Program("scrub lost files", APART, scrub, (put_large, put_small), between=without_shares(APART, 1)),
    Program("scrub a lost log", APART, scrub, (put_large, put_middle), between=without_log(APART, 2)),
    Program("scrub strays", APART, scrub, (put_large,), between=with_strays(APART)),
    Program("collect strays", APART, collect, (put_large, put_large_2, put_middle), between=with_strays(APART)),
    Program("collect strays, one disk", TOGETHER, collect, (put_large,), between=with_strays(TOGETHER)),
    Program("rewrite", APART, rewrite, (put_large, put_middle)),
    Program("remove a namespace", APART, remove_namespace, (put_large, put_elsewhere)),
    Program("collect beside writes", APART, write_beside_collect, (put_large, put_middle), between=with_strays(APART)),
]


@pytest.fixture(autouse=True, scope="module")
def in_a_small_world() -> Iterator[None]:
    with small_world():
        for program in PROGRAMS:
            sites_of(program)  # what the programs begin with is made before any mutant comes
        yield


def examine(state: Run, house: House) -> None:
    """Everything reads as it was told, and after one more upkeep everything is whole, tidy and fit to be rebuilt."""
    account, world = state.account.copy(), state.world

    async def look(client: Client) -> None:
        for key, value in (await client.observe()).items():
            if not account.allows(key, value):
                raise BadState(f"{key} has another value")
            account.chosen(key, value)
        await whole_or_gone(client.store)

    async def upkeep(client: Client) -> None:
        await look(client)
        await of_one_policy(client.store)
        await repair_all(client)
        await scrub(client)
        await collect(client)
        await look(client)
        found = client.store.scrub.status().found
        if found.damage:
            raise BadState(f"damage is left: {found}")
        await check(client, world, house, tidy=True)

    run_life(world, house, account, look)
    house.put_back(world)
    run_life(world, house, account, upkeep)


def run_life(world: object, house: House, account: Account, work: Callable[[Client], object]) -> None:
    try:
        if live(Run(world, account), house, work):  # type: ignore[arg-type]
            raise BadState("the power went twice")
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error if isinstance(error, BadState) else BadState(f"{type(error).__name__}: {error}") from group


def sweep_upkeep(program: Program) -> int:
    count = 0
    for where, state in states(program, LONG if program.work in (scrub, write_beside_collect) else DEPTH):
        count += 1
        try:
            examine(state, program.house)
        except BadState as error:
            raise BadState(f"{where}: {error}") from error
    return count


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_every_crash_of_the_upkeep_leaves_what_the_next_one_makes_whole(program: Program) -> None:
    assert sweep_upkeep(program) > 5


def free_without_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    async def is_needless(self: Health, row: Garbage) -> bool:
        return True

    monkeypatch.setattr(Health, "is_needless", is_needless)


def test_a_policy_that_is_changed_behind_a_rewrite_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewriteRow, "asked_again", lambda self: self)
    with pytest.raises(BadState, match="is stored by"):
        sweep_upkeep(next(program for program in PROGRAMS if program.name == "rewrite"))


def test_a_collect_that_does_not_ask_the_records_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    free_without_a_look(monkeypatch)
    monkeypatch.setattr("zstor_local.store.strays.put_here", lambda *_: False)
    monkeypatch.setattr("zstor_local.store.collect.put_here", lambda *_: False)
    with pytest.raises(BadState):
        sweep_upkeep(next(program for program in PROGRAMS if program.name == "collect strays"))


def test_a_repair_that_does_not_finish_what_it_counts_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a share as moved that never came to lie anywhere: with the old place freed there is one good share too few."""
    free_without_a_look(monkeypatch)
    monkeypatch.setattr("zstor_local.shards.share_files.FileShareWriter.finish", lambda self, index, length, table: self.abort())
    with pytest.raises(BadState):
        sweep_upkeep(next(program for program in PROGRAMS if program.name == "repair on the spare shard"))
