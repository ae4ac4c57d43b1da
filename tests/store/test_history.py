"""Any history of writes, deletes, damage and restarts: every key reads as a dictionary says."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.home import CHUNK, Home, content, delete, get, keys, name, put, share_place
from zstor_local.errors import NotFound
from zstor_local.model.ids import ShareId, Version
from zstor_local.model.policy import Policy
from zstor_local.store.store import Store

KEYS = ("a", "b", "ü")
M, K = 4, 2


@dataclass(frozen=True)
class Write:
    """A new version; equal sizes make swapped and stale shares that fit."""

    key: str
    size: int
    seed: int


@dataclass(frozen=True)
class Delete:
    key: str


@dataclass(frozen=True)
class Damage:
    """Up to m − k shares of one version are hurt in one way."""

    key: str
    indices: tuple[int, ...]
    how: str


@dataclass(frozen=True)
class Free:
    """What waits to be freed is freed now."""


@dataclass(frozen=True)
class Restart:
    """The daemon stops and starts; with the index of the logs thrown away, perhaps."""

    without_index: bool


Step = Write | Delete | Damage | Free | Restart

STEPS: st.SearchStrategy[Step] = st.one_of(
    st.builds(Write, st.sampled_from(KEYS), st.sampled_from((0, 1, 5_000, 131_009, 2 * CHUNK + 1)), st.integers(0, 5)),
    st.builds(Delete, st.sampled_from(KEYS)),
    st.builds(
        Damage,
        st.sampled_from(KEYS),
        st.lists(st.integers(0, M - 1), min_size=1, max_size=M - K, unique=True).map(tuple),
        st.sampled_from(("flip", "zero", "remove", "stale")),
    ),
    st.builds(Free),
    st.builds(Restart, st.booleans()),
)


@settings(max_examples=15)
@given(st.lists(STEPS, min_size=3, max_size=14))
def test_any_history_reads_as_a_dictionary(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        home = Home(Path(directory), policy=Policy(K, M, chunk_size=CHUNK))
        trio.run(History(home).live, steps)


class History:
    """A store and the dictionary that it must equal."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._wanted: dict[str, bytes] = {}
        self._stale: dict[str, bytes] = {}  # a share's bytes of an earlier version, by key
        self._hurt: set[Version] = set()

    async def live(self, steps: list[Step]) -> None:
        rest = list(steps)
        while rest:
            async with self._home.open() as store:
                await self._check(store)
                while rest and not isinstance(rest[0], Restart):
                    await self._do(store, rest.pop(0))
                    await self._check(store)
            if rest:
                restart = rest.pop(0)
                if isinstance(restart, Restart) and restart.without_index:
                    (Path(self._home.store) / "index.sqlite").unlink()
        async with self._home.open() as store:
            await self._check(store)

    async def _do(self, store: Store, step: Step) -> None:
        match step:
            case Write(key, size, seed):
                value = content(seed, size)
                await put(store, key, value)
                self._wanted[key] = value
            case Delete(key):
                try:
                    await delete(store, key)
                    del self._wanted[key]
                except NotFound:
                    assert key not in self._wanted
            case Damage(key, indices, how) if self._wanted.get(key) and self._may_be_hurt(store, key):
                for index in indices:
                    self._damage(store, key, index, how)
            case Free():
                while await store.freeing.free_some():
                    pass

    def _may_be_hurt(self, store: Store, key: str) -> bool:
        """Once each version: twice may be more than it survives."""
        version = store.objects.find(name(key)).version
        fresh = version not in self._hurt
        self._hurt.add(version)
        return fresh

    def _damage(self, store: Store, key: str, index: int, how: str) -> None:
        stored = store.objects.find(name(key))
        place = share_place(store, stored, index)
        before = place.read()
        if how == "flip":
            place.flip(len(before) // 2)
        elif how == "zero":
            place.overwrite(bytes(len(before)))
        elif how == "stale":
            place.overwrite(self._stale.get(key, b"\xff" * len(before))[: len(before)])
        elif stored.record.small:
            shard = store.pool.get(stored.record.placement[index])
            assert shard is not None
            shard.free([ShareId(stored.version, index)], small=True)
        else:
            place.path.unlink()
        self._stale[key] = before

    async def _check(self, store: Store) -> None:
        assert await keys(store) == sorted(self._wanted, key=str.encode)
        for key, value in self._wanted.items():
            assert await get(store, key) == value
        assert store.committer.state.objects == len(self._wanted)
        assert store.committer.state.bytes == sum(map(len, self._wanted.values()))
