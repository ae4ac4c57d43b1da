"""The letters to readers on a server: those of namespaces that are gone go too, and there is a word where they become too many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.remote.house import CHUNK, housing
from tests.remote.test_rotating import rotated
from tests.shardserver.server import LIMIT
from tests.store.home import put
from zstor_local.access.builtin import builtin_authority
from zstor_local.access.invitation import open_invitation, open_letter, parse_public_key, public_key
from zstor_local.access.letters import Letters
from zstor_local.errors import NoSpace
from zstor_local.model.permission import Rights
from zstor_local.model.policy import Policy
from zstor_local.shards.pool import Absent
from zstor_local.store.caller import Nobody

POLICY = Policy(1, 2, chunk_size=CHUNK)


async def test_they_go_with_their_namespace_and_others_may_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("zstor_local.access.letters", "zstor_local.shardserver.space"):
        monkeypatch.setattr(f"{module}.LETTERS_MAX", 2)
    async with housing(tmp_path, near=1, servers=0, liar=True, policy=POLICY) as house:
        with trio.fail_after(LIMIT):
            store, authority = house.store, builtin_authority(house.store)
            letters = Letters(store, authority)
            lie = Path(tmp_path, "liar", "spaces", store.sealer.store_id.hex(), "letters")
            readers = {user: parse_public_key(public_key(os.urandom(32))) for user in ("bob", "carol", "dave")}
            for name in ("photos", "mail"):
                await put(store, "a", b"1", namespace=name)
                for user in readers:
                    await authority.give(name, user, Rights.of(["read"]))
            await letters.invite("photos", "bob", readers["bob"])
            await letters.invite("mail", "carol", readers["carol"])
            before = {*os.listdir(lie)}
            assert len(before) == 2
            with pytest.raises(NoSpace) as refused:
                await letters.invite("mail", "dave", readers["dave"])
            assert "delete namespaces" in (refused.value.hint or "")
            await letters.invite("mail", "carol", readers["carol"])
            assert {*os.listdir(lie)} == before
            await store.removal.remove("photos", Nobody())
            await letters.invite("mail", "dave", readers["dave"])
            after = {*os.listdir(lie)}
            assert (len(after), len(after & before)) == (2, 1)
            assert not await letters.leave()


async def test_what_a_server_missed_is_left_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not an hour later: after a rotation readers wait for the new keys."""
    letters = Letters(None, None)  # type: ignore[arg-type]
    away, rounds = False, 0

    async def leave() -> bool:
        nonlocal rounds
        rounds += 1
        return away

    monkeypatch.setattr(letters, "leave", leave)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(letters.run)
        await trio.testing.wait_all_tasks_blocked()
        await letters.soon()
        await trio.testing.wait_all_tasks_blocked()
        assert rounds == 2
        away = True
        await letters.soon()
        await trio.testing.wait_all_tasks_blocked()
        assert rounds == 4
        nursery.cancel_scope.cancel()


async def test_a_server_that_is_not_there_is_one_that_takes_no_letters(tmp_path: Path) -> None:
    async with housing(tmp_path, near=1, servers=0, liar=True, policy=POLICY) as house:
        with trio.fail_after(LIMIT):
            letters, shard = Letters(house.store, builtin_authority(house.store)), house.store.pool.get(1)
            assert shard is not None
            assert not await letters.leave()
            house.store.pool.put(Absent(shard.entry, "missing", "it was away at the start"))
            assert await letters.leave()


async def test_who_may_read_no_more_is_told_no_newer_keys(tmp_path: Path) -> None:
    """Anybody may fetch a letter: with whoever operates a server its reader would else go on reading. Others learn them."""
    async with housing(tmp_path, near=1, servers=0, liar=True, policy=POLICY) as house:
        with trio.fail_after(LIMIT):
            store, authority = house.store, builtin_authority(house.store)
            letters = Letters(store, authority)
            lie = Path(tmp_path, "liar", "spaces", store.sealer.store_id.hex(), "letters")
            await put(store, "a", b"1", namespace="photos")
            privates, passes = {user: os.urandom(32) for user in ("bob", "carol")}, {}
            for user, private in privates.items():
                await authority.give("photos", user, Rights.of(["read"]))
                invitation = await letters.invite("photos", user, parse_public_key(public_key(private)))
                passes[user] = open_invitation(invitation, private)
            await authority.remove("photos", "bob", Rights.of(["read"]))
            await rotated(house)
            assert not await letters.leave()
            bodies = {user: Path(lie, given.letter_id.hex()).read_bytes() for user, given in passes.items()}
            now = {user: open_letter(bodies[user], given, privates[user]) for user, given in passes.items()}
            ring = store.sealer.ring.record_keys(store.namespaces.get("photos").id)
            assert (now["bob"].token, now["bob"].record_keys) == ("", passes["bob"].record_keys)
            assert now["carol"].token
            assert now["carol"].record_keys == ring != passes["carol"].record_keys
