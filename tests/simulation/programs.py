"""The programs that the sweep takes apart: what a client does, in which house."""

from __future__ import annotations

import os
import random
from typing import Final

import trio

from tests.simulation.account import Client
from tests.simulation.house import House, policy
from tests.simulation.outcomes import ALL
from tests.simulation.sweep import Program, Run, base, live, nothing, rehearse
from zstor_local.store.links import Previous
from zstor_local.store.sources import FileSource
from zstor_local.store.writes import WriteOptions

TOGETHER: Final = House(policy(2, 3), 3)  # one ext4: syncfs for a group
APART: Final = House(policy(2, 3), 3, kind="xfs")  # a disk for each shard: fdatasync for each log
TMPFS: Final = House(policy(2, 3), 3, kind="one:tmpfs")  # one disk whose syncfs is not trusted
SPARE: Final = House(policy(2, 3), 4, kind="xfs")
FOUR: Final = House(policy(2, 4), 4, kind="xfs")
SIX: Final = House(policy(4, 6), 6, kind="xfs")
SOURCE: Final = "/home/u/source"


def value(size: int, seed: int) -> bytes:
    """Bytes that do not compress to nothing, others for each seed."""
    return b"".join((seed * 1_000_003 + number * 7_919).to_bytes(8) for number in range(size // 8 + 1))[:size]


SMALL, SMALL_2, MIDDLE = value(100, 1), value(300, 2), value(16_000, 3)
LARGE, LARGE_2, CHUNKS = value(140_000, 4), value(150_000, 5), value(600_001, 6)


# --- What clients do ---


async def put_small(client: Client) -> None:
    await client.put("a", SMALL)


async def put_small_2(client: Client) -> None:
    await client.put("a", SMALL_2)


async def put_middle(client: Client) -> None:
    await client.put("m", MIDDLE)


async def put_two_middle(client: Client) -> None:
    """In one group, which does not fit in a segment."""
    async with trio.open_nursery() as nursery:
        for key in "am":
            nursery.start_soon(client.put, key, random.Random(key).randbytes(20_000))


async def put_large(client: Client) -> None:
    await client.put("a", LARGE)


async def put_large_2(client: Client) -> None:
    await client.put("a", LARGE_2)


async def put_wide(client: Client) -> None:
    await client.put("a", CHUNKS[:300_000])


async def put_file(client: Client) -> None:
    """Several chunks, read from a file by the workers."""
    files = client.store.runtime.files
    fd = files.open(SOURCE, os.O_RDONLY)
    await client.put("a", CHUNKS, source=FileSource(files, fd))
    files.close(fd)


async def delete(client: Client) -> None:
    await client.delete("a")


async def put_then_delete(client: Client) -> None:
    await client.put("b", SMALL)
    await client.put("b", LARGE)
    await client.delete("b")
    await client.delete("b")  # not found: nothing happens


async def exclusive(client: Client) -> None:
    await client.put("a", SMALL_2, WriteOptions(exclusive=True))  # is there already
    await client.put("a", LARGE_2, WriteOptions(exclusive=True))
    await client.put("b", SMALL_2, WriteOptions(exclusive=True))


async def if_version(client: Client) -> None:
    old = client.version("a")
    await client.put("a", SMALL_2, WriteOptions(if_version=old))
    await client.put("a", LARGE, WriteOptions(if_version=old))  # stale
    await client.delete("a", old)  # stale
    await client.delete("a", client.version("a"))


async def two_keys(client: Client) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.put, "a", SMALL_2)
        nursery.start_soon(client.put, "b", MIDDLE)


async def one_key_twice(client: Client) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.put, "a", SMALL_2)
        nursery.start_soon(client.put, "a", MIDDLE)
        nursery.start_soon(client.delete, "a")


async def large_beside_small(client: Client) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.put, "a", LARGE_2)
        nursery.start_soon(client.put, "b", SMALL)
        nursery.start_soon(client.delete, "m")


async def put_list(client: Client) -> None:
    await client.put("a", SMALL, WriteOptions(references=["x"]))
    await client.put("b", LARGE, WriteOptions(references=["x", "y"], previous=Previous("a")))
    await client.put("c", MIDDLE, WriteOptions(previous=Previous("b")))


async def link(client: Client) -> None:
    await client.put("d", LARGE_2, WriteOptions(previous=Previous("c")))
    await client.put("e", SMALL, WriteOptions(previous=Previous("c")))  # a second successor


async def unlink(client: Client) -> None:
    await client.delete("b")


async def rename(client: Client) -> None:
    await client.rename("b", "d")
    await client.rename("d", "c")  # takes the one that followed out of the list


async def copy(client: Client) -> None:
    await client.copy("b", "d")
    await client.delete("b")
    await client.delete("d")


async def copy_together(client: Client) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.copy, "b", "d")
        nursery.start_soon(client.delete, "b")
        nursery.start_soon(client.put, "d", SMALL_2)


async def rotate(client: Client) -> None:
    job, _ = await client.store.rotation.rotate()
    while job.running:
        await job.news().wait()
    assert job.state == "done"


async def rotate_beside_writes(client: Client) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.put, "a", LARGE)
        nursery.start_soon(client.put, "m", SMALL_2)
        nursery.start_soon(client.store.rotation.rotate)
        nursery.start_soon(client.delete, "b")


# --- What happens to the world in between ---


def without_last_shard(start: Run) -> Run:
    start.world.files.take_out("/disks/3")
    return start


def with_source(start: Run) -> Run:
    start.world.files.place(SOURCE, CHUNKS)
    return start


def power_lost_in(program: Program, site: str) -> Run:
    """What a power loss before the last time that the program comes to this site leaves, if everything unpinned survives."""
    _, sites = rehearse(program)
    trial = base(program).copy()
    trial.world.files.crash_at(max(each.number for each in sites if each.name == site))
    live(trial, program.house, program.work)
    return Run(trial.world.crash(ALL), trial.account)


_LARGE_FOR_LARGE: Final = Program("large for large", APART, put_large_2, (put_large,))
_RENAME: Final = "zstor_local.shards.share_files.FileShareWriter._rename:fsync_directory"

_ROTATION: Final = Program("rotation", APART, rotate, (put_list, unlink))

PROGRAMS: Final = [
    Program("first start, small", TOGETHER, put_small, from_start=True),
    Program("first start, large, disks apart", APART, put_large, from_start=True),
    Program("new small", APART, put_small, (nothing,)),
    Program("new small, one disk", TOGETHER, put_small, (put_middle,)),
    Program("new large", APART, put_large, (put_middle,)),
    Program("new large, one disk", TOGETHER, put_large, (put_middle,)),
    Program("new file of three chunks", APART, put_file, (nothing,), between=with_source),
    Program("new large, 4+2", SIX, put_wide, (nothing,)),
    Program("small for small", TMPFS, put_small_2, (put_small,)),
    Program("middle for small, over a full segment", APART, put_two_middle, (put_small, put_middle)),
    Program("large for small", APART, put_large, (put_small,)),
    Program("small for large", TOGETHER, put_small, (put_large,)),
    _LARGE_FOR_LARGE,
    Program("delete small", APART, delete, (put_small,)),
    Program("delete large", APART, delete, (put_large,)),
    Program("put and delete", TMPFS, put_then_delete, (put_small,)),
    Program("exclusive", TOGETHER, exclusive, (put_small,)),
    Program("if_version", TMPFS, if_version, (put_small,)),
    Program("large for small, a shard missing", FOUR, put_large, (put_small,), between=without_last_shard),
    Program("small for large, a shard missing", FOUR, put_small, (put_large,), between=without_last_shard),
    Program("delete large, a shard missing", FOUR, delete, (put_large,), between=without_last_shard),
    Program("large for large, on the spare shard", SPARE, put_large_2, (put_large,), between=without_last_shard),
    Program("two keys in a group", APART, two_keys, (put_small,)),
    Program("one key twice in a group", TOGETHER, one_key_twice, (put_small,)),
    Program("large beside small", APART, large_beside_small, (put_small, put_middle)),
    Program("link to a list", APART, link, (put_list,)),
    Program("delete in the middle of a list", TOGETHER, unlink, (put_list,)),
    Program("delete in a list, a shard missing", FOUR, unlink, (put_list,), between=without_last_shard),
    Program("rename in a list", APART, rename, (put_list,)),
    Program("copy and delete both", APART, copy, (put_list,)),
    Program("copy, delete and write in a group", TOGETHER, copy_together, (put_list,)),
    _ROTATION,
    Program("rotation beside writes", TOGETHER, rotate_beside_writes, (put_list,)),
    Program("restart in a rotation", APART, from_start=True, between=lambda _: power_lost_in(_ROTATION, "metastore:commit after")),
    Program("restart", APART, put_small_2, (put_large, put_small), from_start=True),
    Program(
        "restart after a crash before the commit",
        APART,
        from_start=True,
        between=lambda _: power_lost_in(_LARGE_FOR_LARGE, "metastore:commit before"),
    ),
    Program("restart after a crash between shares", APART, from_start=True, between=lambda _: power_lost_in(_LARGE_FOR_LARGE, _RENAME)),
]
