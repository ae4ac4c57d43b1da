"""Linked objects against Python's own lists: whatever is written, overwritten, deleted, renamed and copied, walks agree both ways."""

from __future__ import annotations

from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.account import Account, Client, name
from tests.simulation.engines import cell
from tests.simulation.house import STORE, House, policy
from tests.simulation.oracle import check_logs, check_rows, check_shares
from tests.simulation.sweep import opened
from tests.simulation.world import run
from zstor_local.errors import Conflict, ZstorError
from zstor_local.store.links import Previous
from zstor_local.store.store import Store
from zstor_local.store.walk import Route, Walk
from zstor_local.store.writes import WriteOptions

HOUSE: Final = House(policy(2, 3), 3)
KEYS: Final = st.sampled_from("abcde")
STEPS: Final = st.lists(
    st.one_of(
        st.tuples(st.just("write"), KEYS, st.none()),
        st.tuples(st.just("follow"), KEYS, KEYS),
        st.tuples(st.just("delete"), KEYS, st.none()),
        st.tuples(st.just("rename"), KEYS, KEYS),
        st.tuples(st.just("copy"), KEYS, KEYS),
    ),
    min_size=20,
    max_size=50,
)


class Model:
    """Lists of keys, each in the order of creation; a key that is linked to none is a list of one."""

    def __init__(self) -> None:
        self.lists: list[list[str]] = []
        self.values: dict[str, bytes] = {}

    def of(self, key: str) -> list[str] | None:
        return next((each for each in self.lists if key in each), None)

    def remove(self, key: str) -> None:
        found = self.of(key)
        if found is not None:
            found.remove(key)
            self.lists = [each for each in self.lists if each]
            del self.values[key]

    def write(self, key: str, value: bytes) -> None:
        if self.of(key) is None:
            self.lists.append([key])
        self.values[key] = value

    def follow(self, key: str, previous: str, value: bytes) -> None:
        """A link that the store has allowed: a new tail, the same link again, or a younger list behind an older one."""
        before, own = self.of(previous), self.of(key)
        assert before is not None
        if own is None:
            assert before[-1] == previous
            before.append(key)
        elif own is not before:
            assert (before[-1], own[0]) == (previous, key)
            before += own
            self.lists.remove(own)
        else:
            assert own.index(key) == own.index(previous) + 1
        self.values[key] = value

    def may_follow(self, key: str, previous: str) -> bool | None:
        """Whether a link must be allowed, must not be, or (None) depends on which list is the older one."""
        before, own = self.of(previous), self.of(key)
        if before is None or key == previous:
            return False
        if own is None:
            return before[-1] == previous
        if own is before:
            return own.index(key) == own.index(previous) + 1
        if before[-1] != previous or own[0] != key:
            return False
        return True if len(own) == 1 else None

    def rename(self, key: str, new_key: str) -> None:
        if key == new_key:
            return
        self.remove(new_key)
        found = self.of(key)
        assert found is not None
        found[found.index(key)] = new_key
        self.values[new_key] = self.values.pop(key)


async def step(client: Client, model: Model, number: int, change: str, key: str, other: str | None) -> None:
    """Do it to both."""
    value = f"{number}".encode()
    answer: object
    if change == "write":
        answer = await client.put(key, value)
        model.write(key, value)
    elif change == "follow" and other is not None:
        answer = await client.put(key, value, WriteOptions(previous=Previous(other)))
        allowed = model.may_follow(key, other)
        assert allowed is None or allowed is not isinstance(answer, ZstorError)
        if isinstance(answer, ZstorError):
            assert allowed is False or isinstance(answer, Conflict)
            return
        model.follow(key, other, value)
    elif change == "delete":
        answer = await client.delete(key)
        there = model.of(key) is not None
        assert there is not isinstance(answer, ZstorError)
        model.remove(key)
        return
    else:
        assert other is not None
        answer = await (client.rename if change == "rename" else client.copy)(key, other)
        if model.of(key) is None:
            assert isinstance(answer, ZstorError)
            return
        if change == "rename":
            model.rename(key, other)
        else:
            model.write(other, model.values[key])
    assert not isinstance(answer, ZstorError)


async def agree(store: Store, client: Client, model: Model) -> None:
    walk = Walk(store.core, store.namespaces)
    for keys in model.lists:
        for start, key in enumerate(keys):
            assert [each.record.key async for each in walk.along(name(key), Route())] == keys[start:]
            assert [each.record.key async for each in walk.along(name(key), Route(forward=False))] == keys[start::-1]
            assert await client.get(key) == model.values[key]
    assert store.committer.state.objects == len(model.values)


@settings(max_examples=40)
@given(STEPS)
def test_walks_agree_with_a_model(steps: list[tuple[str, str, str | None]]) -> None:
    world = HOUSE.world()
    account, model = Account(), Model()

    async def live() -> None:
        async with opened(world, HOUSE) as store:
            client = Client(store, account)
            for number, (change, key, other) in enumerate(steps):
                await step(client, model, number, change, key, other)
            await agree(store, client, model)
            while await store.freeing.free_some():
                pass
            truth = cell(world, STORE)
            check_rows(store, truth)
            check_logs(store, truth)
            check_shares(store, truth, HOUSE, tidy=True)

    async def again() -> None:
        async with opened(world, HOUSE) as store:
            await agree(store, Client(store, account), model)

    run(world, live)
    run(world, again)
