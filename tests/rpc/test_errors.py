"""The errors that methods declare: whoever reads docs/api.md knows what a call may answer."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.rpc.conftest import World, error_type
from tests.store.home import Home, put
from zstor_local.access.opening import open_authority
from zstor_local.content.logs.page_index import PageIndex
from zstor_local.errors import IoError, MethodNotFound, OutcomeUnknown
from zstor_local.formats.cid import raw
from zstor_local.metastore.sqlite_lookups import SqliteLookups
from zstor_local.network import open_network
from zstor_local.parts import Parts, methods

LOST = "there is no such thing"
# What the methods need that change nothing.
GIVEN: dict[str, Any] = {
    "key": "a", "start_key": "a", "name": "a", "namespace": "default", "user": "ann", "reference": "r", "id": str(raw(b"x")),
    "have_b64": [], "known_seq": None, "known_hash_b64": None, "job": LOST, "stream": LOST, "seq": 1, "method": "rpc.ping",
}  # fmt: skip
MAY_BE_GIVEN = {"key", "id"}


@pytest.fixture
async def whole(world: World, tmp_path: Path) -> AsyncIterator[World]:
    """Every method of a daemon, over a store with an object."""
    home = Home(tmp_path / "home")
    home.path.mkdir()
    async with home.open() as store, open_authority(store) as authority, open_network() as network:
        await put(store, "a", b"content")
        pages = PageIndex(":memory:")
        world.registry = methods(Parts(store, authority, network, pages, os.path.realpath))
        yield world
        pages.close()


async def test_what_a_metastore_that_cannot_be_read_is_answered_with_is_declared(whole: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of methods that commit nothing: a committer that cannot read commits nothing more."""

    def unread(*_: object) -> NoReturn:
        raise IoError("the metastore cannot be read")

    looking = [each for each in whole.registry if OutcomeUnknown not in each.errors and MethodNotFound not in each.errors]
    answered: dict[str, str] = {}
    async with whole.serving(), whole.client() as client:
        with monkeypatch.context() as patched:
            for ask in ("_all", "_some"):
                patched.setattr(SqliteLookups, ask, unread)
            for method in looking:
                params: dict[str, Any] = {
                    each.name: GIVEN[each.name] for each in method.parameters if each.required or each.name in MAY_BE_GIVEN
                }
                reply = await client.call(method.name, params)
                if "error" in reply:
                    answered[method.name] = str(error_type(reply))
    declared = {each.name: {"invalid_params", *(error.type for error in each.errors)} for each in looking}
    undeclared = {name: told for name, told in answered.items() if told not in declared[name]}
    assert undeclared == {}
    assert "io_error" in answered.values()
