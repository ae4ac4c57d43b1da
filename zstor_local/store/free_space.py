"""Free space on the disks: a warning while there is still time, and no writes into the last of it, so that deletes always go on.

A delete takes room too, a little: its record in the metastore and in the logs. So a disk counts as full for writes while it still has
RESERVE_BYTES (or a fiftieth of a small disk); deletes, repairs and what else the committer has to write go on below that. A share that
such a disk has not had is owed to it until it has room.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio

from zstor_local import limits
from zstor_local.errors import NoSpace
from zstor_local.runtime import Runtime
from zstor_local.shards.base import Capacity, ShardError
from zstor_local.shards.pool import ShardPool

LOOK_SECONDS: Final = 1.0  # how old an answer may be: writes ask each time
TELL_SECONDS: Final = 60.0  # between two calls of `on_full`
WARN_PART: Final = 10  # a warning when less than a tenth is free
RESERVE_PART: Final = 50  # of a disk so small that RESERVE_BYTES would be most of it


def kept_free(capacity: Capacity) -> int:
    """Bytes of a disk that writes leave alone."""
    return min(limits.RESERVE_BYTES, capacity.total // RESERVE_PART)


def _mib(count: int) -> str:
    return f"{count / limits.MIB:,.0f} MiB" if count >= limits.MIB else f"{count / limits.KIB:,.0f} KiB"


class FreeSpace:
    """The disks of one store: that of the metastore, and those of the shards."""

    def __init__(self, runtime: Runtime, store: str, pool: ShardPool, on_full: Callable[[], None]) -> None:
        """`on_full` is called now and then while a shard's disk counts as full."""
        self._runtime = runtime
        self._on_full = on_full
        self._told = -TELL_SECONDS
        self._store = store
        self._pool = pool
        self._looked = -LOOK_SECONDS
        self._metastore: Capacity | None = None
        self._shards: dict[int, Capacity] = {}
        self._full: frozenset[int] = frozenset()

    def full_shards(self) -> frozenset[int]:
        """Shards that take no further shares."""
        self._look()
        return self._full

    def is_short(self) -> bool:
        """Whether a disk takes nothing more but deletes."""
        self._look()
        return bool(self._full) or self._metastore_full()

    def _metastore_full(self) -> bool:
        capacity = self._metastore
        return capacity is not None and capacity.free < kept_free(capacity)

    def must_take_writes(self) -> None:
        """NoSpace if the metastore's disk has only its reserve left."""
        self._look()
        if (capacity := self._metastore) is not None and self._metastore_full():
            raise NoSpace(
                f"the disk of the metastore has {_mib(capacity.free)} left, which are kept for deletes; nothing changed",
                hint="delete something (`zstor rm`), or free room on the disk of the store",
            )

    def warnings(self) -> list[str]:
        """Disks that are nearly full, one line each."""
        self._look()
        found = []
        disks: list[tuple[str, Capacity | None]] = [("the disk of the metastore", self._metastore)]
        groups: dict[str, list[int]] = {}
        for number in sorted(self._shards):
            groups.setdefault(self._pool.group(number), []).append(number)
        for numbers in groups.values():
            names = ", ".join(self._pool.name(number) for number in numbers)
            disks.append((f"the disk of shard {names}", min((self._shards[number] for number in numbers), key=lambda each: each.free)))
        for name, disk in disks:
            if disk is None or not disk.total or disk.free * WARN_PART >= disk.total:
                continue
            if disk.free < kept_free(disk):
                found.append(f"{name} is full ({_mib(disk.free)} free): it takes no writes; deletes go on")
            else:
                found.append(f"{name} has {100 * disk.free // disk.total} % free ({_mib(disk.free)}): make room before it is full")
        return found

    def _look(self) -> None:
        now = trio.current_time()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        shards: dict[int, Capacity] = {}
        for shard in self._pool.opened():
            with suppress(ShardError):
                # Asking a server takes time: what presence saw is some seconds old.
                capacity = self._pool.capacity(shard.number) if shard.on_disk is None else shard.capacity()
                if capacity is not None:
                    shards[shard.number] = capacity
        self._note(self._store_capacity(), shards)
        if self._full and now - self._told >= TELL_SECONDS:
            self._told = now
            self._on_full()

    def _note(self, metastore: Capacity | None, shards: dict[int, Capacity]) -> None:
        self._metastore = metastore
        self._shards = shards
        self._full = frozenset(number for number, capacity in shards.items() if capacity.free < kept_free(capacity))

    def _store_capacity(self) -> Capacity | None:
        files = self._runtime.files
        try:
            fd = files.open(self._store, os.O_RDONLY | os.O_DIRECTORY)
            try:
                system = files.file_system(fd)
            finally:
                files.close(fd)
        except OSError:
            return None
        return Capacity(system.total, system.free)
