"""Where a store's parts lie in a simulated world: everything on one disk as the default store has it, or a disk for each shard."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from tests.simulation.world import Mount, World
from zstor_local import limits
from zstor_local.config import Config, ShardConfig
from zstor_local.model.policy import Policy

STORE = "/home/u/.local/share/zstor"
KEY = "/home/u/.config/zstor/master.key"


@dataclass(frozen=True, slots=True)
class House:
    """A configuration and the disks for it. `kind` None: the default store, with its shards on the disk of everything else (ext4).

    Otherwise each shard has a disk of its own of that kind; with "one:" before the kind all shards share one.
    """

    policy: Policy
    shards: int
    kind: str | None = None
    seed: int = 0

    def world(self) -> World:
        if self.kind is None:
            return World(self.seed)
        if self.kind.startswith("one:"):
            return World(self.seed, [Mount("/disks", kind=self.kind.removeprefix("one:"))])
        return World(self.seed, [Mount(self.root(number), kind=self.kind) for number in range(self.shards)])

    def config(self) -> Config:
        shards = () if self.kind is None else tuple(ShardConfig(str(n), self.root(n)) for n in range(self.shards))
        return Config(store=STORE, socket="/run/zstor.sock", master_key_file=KEY, policy=self.policy, shards=shards)

    def root(self, number: int) -> str:
        return f"{STORE}/shards/{number}" if self.kind is None else f"/disks/{number}"

    def take_out(self, world: World, number: int) -> None:
        """The shard's disk is gone."""
        world.files.take_out(self.root(number))

    def put_back(self, world: World) -> None:
        """Every disk is there again."""
        if self.kind is not None and not self.kind.startswith("one:"):
            for number in range(self.shards):
                world.files.put_back(self.root(number))


def policy(k: int, m: int) -> Policy:
    return Policy(k, m, chunk_size=256 * limits.KIB)


HOUSES: Final = (
    House(policy(2, 4), 4, kind="xfs"),
    House(policy(2, 4), 5, kind="ext4"),
    House(policy(2, 4), 4, kind="one:ext4"),
    House(policy(3, 5), 6, kind="xfs"),
    House(policy(1, 3), 3, kind="xfs"),
    House(policy(2, 3), 7, kind="xfs"),
    House(policy(1, 2), 5, kind="one:ext4"),
)


@contextmanager
def small_limits() -> Iterator[None]:
    """Logs whose segments are soon full, share files of a few KiB, and a few rows read at once: the same paths for less work."""
    level = logging.getLogger("zstor").level
    logging.getLogger("zstor").setLevel(logging.CRITICAL + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "SEGMENT_BYTES", 1 << 13)
        patch.setattr(limits, "SMALL_SHARE_BYTES", 1 << 11)
        patch.setattr(limits, "ROWS_BYTES", 1 << 10)
        try:
            yield
        finally:
            logging.getLogger("zstor").setLevel(level)
