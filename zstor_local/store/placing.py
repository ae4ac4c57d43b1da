"""Which shards take the shares of a version that is written, and how many of them must."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from zstor_local.model.ids import Version
from zstor_local.shards.base import ShardError, ShardState
from zstor_local.shards.pool import ShardPool
from zstor_local.store.free_space import FreeSpace
from zstor_local.store.namespaces import Namespace, Namespaces
from zstor_local.store.quorum import not_enough_shards

Refused = Mapping[int, ShardError]  # by share index, why its shard does not get it

NONE_REFUSED: Final[Refused] = MappingProxyType({})
_REMOVED: Final = ShardError("missing", "it was removed")
_FULL: Final = ShardError("full", "only its reserve is left", untouched=True)


class Placing:
    """One for a store. `write_quorum` is the configured one, None for what each policy asks for."""

    def __init__(self, pool: ShardPool, namespaces: Namespaces, free_space: FreeSpace, write_quorum: int | None) -> None:
        self._pool = pool
        self._namespaces = namespaces
        self._free_space = free_space
        self._write_quorum = write_quorum

    def place(self, namespace: Namespace, version: Version) -> tuple[tuple[int, ...], Refused]:
        """Shards for a version's shares, and those of the shares that are owed from the beginning, as their disks have only their
        reserve left. NotEnoughShards or NoSpace at once if too few are there or have room.
        """
        self._free_space.must_take_writes()
        full = self._free_space.full_shards()
        if not full and not namespace.placement:
            placed = self._pool.place_well(version, namespace.policy.m)
            if placed is not None:
                return placed, NONE_REFUSED
        states: Mapping[int, ShardState] = self._pool.recent_states()
        if full:
            states = {number: "full" if state == "ok" and number in full else state for number, state in states.items()}
        if namespace.placement:
            named = self._namespaces.shards_of(namespace.placement)  # looked up later: another shard may have come meanwhile
            states = {number: state for number, state in states.items() if number in named}
        placement = self._pool.place(version, namespace.policy.m, states)
        usable = sum(states.get(number) == "ok" for number in placement)
        quorum = self.quorum(namespace)
        if usable < quorum:
            bad = {
                self._pool.name(n): _FULL if n in full else ShardError(state, self._pool.reason(n))
                for n in placement
                if (state := states.get(n, "missing")) != "ok"
            }
            raise not_enough_shards(usable, quorum, bad)
        return placement, {index: _FULL for index, number in enumerate(placement) if number in full}

    def must_be_there(self, namespace: Namespace, placement: Sequence[int], failed: Collection[int]) -> None:
        """NotEnoughShards if shards were removed since they took shares, and too few are left. `failed` are indices of other shares."""
        gone = {number for number in placement if self._pool.entry(number) is None}
        durable = sum(index not in failed and number not in gone for index, number in enumerate(placement))
        if durable < (quorum := self.quorum(namespace)):
            raise not_enough_shards(durable, quorum, {self._pool.name(number): _REMOVED for number in gone})

    def quorum(self, namespace: Namespace) -> int:
        """How many shards must have taken a version before it is committed."""
        least = namespace.policy.write_quorum
        return least if self._write_quorum is None else min(max(least, self._write_quorum), namespace.policy.m)
