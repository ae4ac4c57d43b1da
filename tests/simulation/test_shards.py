"""Crash points of what changes the shards themselves: compaction of their logs, adding, draining and replacing them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import pytest

from tests.simulation.account import Client
from tests.simulation.house import House, policy
from tests.simulation.oracle import BadState
from tests.simulation.programs import (
    APART,
    LARGE,
    MIDDLE,
    SMALL,
    SMALL_2,
    SPARE,
    delete,
    put_list,
    put_small,
    put_then_delete,
)
from tests.simulation.sweep import Depth, Program, Run, sites_of, small_world, sweep
from zstor_local.errors import NotFound
from zstor_local.shards.compacting import LogSegments
from zstor_local.store.caller import Nobody
from zstor_local.store.pace import unpaced

FIVE: Final = House(policy(2, 3), 5, kind="xfs")


async def compact(client: Client) -> None:
    await client.store.compaction.compact(unpaced, least=0.01)


async def compact_beside_writes(client: Client) -> None:
    await client.put("a", SMALL_2)
    await compact(client)
    await client.put("m", SMALL)
    await client.delete("b")
    await compact(client)


async def put_more(client: Client) -> None:
    for key in "abcm":
        await client.put(key, MIDDLE)
        await client.delete(key)
    await client.put("c", MIDDLE)


async def add(client: Client) -> None:
    await client.store.membership.add("/spare", None)
    await client.put("z", LARGE)
    await client.put("a", SMALL_2)


async def drain(client: Client) -> None:
    if "1" in client.store.pool.states():
        await client.store.membership.remove("1", Nobody())


async def force_out(client: Client) -> None:
    if "1" in client.store.pool.states():
        await client.store.membership.remove("1", Nobody(), force=True)


async def replace(client: Client) -> None:
    with suppress(NotFound):
        await client.store.membership.replace("3", "/spare", Nobody())


def without_last_shard(start: Run) -> Run:
    start.world.files.take_out("/disks/3")
    return start


PROGRAMS: Final = [
    Program("compact after overwrites and deletes", APART, compact, (put_small, put_more, put_then_delete, delete)),
    Program("compact beside writes", APART, compact_beside_writes, (put_list, put_more)),
    Program("compact while a shard is away", SPARE, compact, (put_small, put_more), between=without_last_shard),
    Program("add a shard", APART, add, (put_list,)),
    Program("drain a shard", SPARE, drain, (put_list,)),
    Program("force a shard out", FIVE, force_out, (put_list,)),
    Program("replace a dead shard", SPARE, replace, (put_list,), between=without_last_shard),
]


@pytest.fixture(autouse=True, scope="module")
def in_a_small_world() -> Iterator[None]:
    with small_world():
        yield


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_every_crash_leaves_the_store_whole(program: Program) -> None:
    assert sweep(program, Depth(extra=0, torn=False)) > 20


def test_the_programs_do_what_they_are_named_after() -> None:
    compacting = "zstor_local.shards.log.Log.remove:unlink"
    assert all(compacting in sites_of(program) for program in PROGRAMS if program.name.startswith("compact"))
    assert "zstor_local.shards.opening.DirectoryEngine.retire:rename" in sites_of(PROGRAMS[4])


def not_flushed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LogSegments, "flush", lambda self: None)


def sweep_all(programs: Sequence[Program]) -> None:
    for program in programs:
        sweep(program, Depth(extra=0, torn=False))


def test_copies_that_are_not_flushed_are_noticed() -> None:
    with pytest.MonkeyPatch.context() as patch:
        not_flushed(patch)
        with pytest.raises(BadState):
            sweep_all(PROGRAMS[:3])
