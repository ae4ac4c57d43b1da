"""The programs that the sweep takes apart: what a client does, in which house."""

from __future__ import annotations

from tests.simulation.account import Client
from tests.simulation.house import House, policy
from tests.simulation.sweep import Program, nothing

THREE = House(policy(2, 3), 3)
APART = House(policy(2, 3), 3, kind="xfs")
SLOW = House(policy(2, 3), 3, kind="one:tmpfs")


def data(size: int, seed: int = 0) -> bytes:
    return b"".join((seed * 1_000_003 + n * 7_919).to_bytes(8) for n in range(size // 8 + 1))[:size]


SMALL_1, SMALL_2 = data(100, 1), data(300, 2)
LARGE_1, LARGE_2 = data(140_000, 3), data(150_000, 4)


async def put_small(client: Client) -> None:
    await client.put("a", SMALL_1)


async def put_large(client: Client) -> None:
    await client.put("a", LARGE_1)


async def overwrite_large(client: Client) -> None:
    await client.put("a", LARGE_2)


PROGRAMS = [
    Program("first start", THREE, put_small, from_start=True),
    Program("new small", APART, put_small, before=(nothing,)),
    Program("new large", APART, put_large, before=(nothing,)),
]
