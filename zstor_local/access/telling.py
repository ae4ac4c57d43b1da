"""Telling shard servers what they need to let users in: the authority's keys and revocations, and what tokens call the namespaces.

The daemon itself needs none of it, so nothing waits for a server that is away: it is told when it is back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import trio

from zstor_local.access.authority import Authority
from zstor_local.access.owner import Owner
from zstor_local.access.ownership import issuer_name
from zstor_local.errors import CorruptRecord, NotSupported, ZstorError
from zstor_local.model.ids import NamespaceId
from zstor_local.shards.base import NamespaceNotice, Notices, Shard, ShardError
from zstor_local.store.store import Store

SOON_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 5.0  # between two looks whether a server came back
PAUSE_SECONDS: Final = 0.1  # between a commit and a look at what it changed: not one for each of many commits

log = logging.getLogger("zstor.access")


class Telling:
    """One task for a store; `tell` has everybody told now."""

    def __init__(self, store: Store, authority: Authority) -> None:
        self._store = store
        self._authority = authority
        self._owner = Owner(store)
        self._told: dict[int, tuple[Shard, Notices]] = {}
        self._newest: dict[int, Shard] = {}  # those that go by the owner's newest key
        self._signed: tuple[object, Sequence[str]] = None, ()  # the newest document, by its number
        self._turn = trio.Lock()

    async def run(self) -> None:
        """Tell each server what has changed, and each that came back what it missed."""
        while True:
            news = self._store.committer.news()
            try:
                await self.tell()
            except ZstorError as error:
                log.warning("shard servers were not told of namespaces and keys: %s", error.message)
                await trio.sleep(LOOK_SECONDS)  # a commit that failed is news too: it would be tried again at once, without end
            with trio.move_on_after(LOOK_SECONDS):
                await news.wait()
            await trio.sleep(PAUSE_SECONDS)

    async def soon(self) -> None:
        """Tell them now, but do not wait long for those that are slow: they are told all the same."""
        with trio.move_on_after(SOON_SECONDS):
            await self.tell()

    async def tell(self) -> None:
        """Tell every server that is there and does not know yet. When this returns they know. A store that only reads tells nobody."""
        servers = [shard for shard in self._store.pool.opened() if shard.on_disk is None]
        if not servers or self._store.read_only is not None:
            return
        async with self._turn:
            notices = await self._notices()
            async with trio.open_nursery() as nursery:
                for shard in servers:
                    if shard.check() == "ok" and not self._knows(shard, notices):
                        nursery.start_soon(self._tell_one, shard, notices)

    def _knows(self, shard: Shard, notices: Notices) -> bool:
        told = self._told.get(shard.number)
        return told is not None and told[0] is shard and told[1].same(notices)

    async def _tell_one(self, shard: Shard, notices: Notices) -> None:
        try:
            newest = await self._store.runtime.threads.run(shard.tell, notices)
        except ShardError as error:
            log.warning("shard %s was not told of namespaces and keys: %s", shard.id, error)
        else:
            self._told[shard.number] = shard, notices
            self._newest.pop(shard.number, None)
            if newest:
                self._newest[shard.number] = shard

    def warnings(self) -> list[str]:
        """Where who has an older master key is let in, with what to do; one line each."""
        store = self._store
        servers = store.places.on_servers()
        try:
            record = store.rotation.record() if servers else None
        except CorruptRecord:
            return []  # the store itself tells of that
        if record is None:
            return []
        if record.retired < len(record.older):
            return [
                "shard servers let in who has an older master key: once the words of the present one are kept, "
                "`zstor key retire` has them do so no more"
            ]
        return [
            f"shard {store.pool.name(number)} may let in who has an older master key: its server is told as soon as it is there"
            for number in servers
            if self._newest.get(number) is None or self._newest[number] is not store.pool.get(number)
        ]

    async def _notices(self) -> Notices:
        own = issuer_name(self._store.sealer.store_id)
        try:
            document = await self._authority.trust()
            issuer = str(document["issuer"])
        except NotSupported:
            document, issuer = None, self._authority.kind
        if issuer != own:
            document = self._owner.trust()
        updated = document.get("updated") if document else None
        if document and updated != self._signed[0]:
            self._signed = updated, self._owner.sign(document)
        named = [
            each for each in self._store.namespaces.all() if not each.name.startswith("_")
        ]  # no token is for one of the store's own
        spaces = [NamespaceNotice(NamespaceId(each.id), each.name, None if issuer == own else issuer) for each in named]
        trust = self._signed[1] if document else ()
        return Notices(trust, updated if isinstance(updated, int) else 0, tuple(spaces))
