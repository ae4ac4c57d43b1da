"""One namespace of another user's store, as our daemon reads it: the pass that its owner gave, its tokens, the shards that it names.

What the shard servers say of it (joined_shard) gathers in joined_rows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import trio

from zstor_local import limits
from zstor_local.access.authority import Authority
from zstor_local.access.invitation import Pass
from zstor_local.access.joined_rows import Rows
from zstor_local.access.joined_shard import JoinedShard
from zstor_local.coding.keys import NamespaceKeys
from zstor_local.errors import ZstorError
from zstor_local.runtime import SECOND_US, Network
from zstor_local.shards.base import ShardError
from zstor_local.store.namespaces import JOINED_TABLE, Gate, Namespace
from zstor_local.store.sealing import Foreign
from zstor_local.store.store import Store

RENEW_SECONDS: Final = 30  # before a token expires
TOKEN_SECONDS: Final = 3_600
KEYS_SECONDS: Final = (1.0, 3_600.0)  # between two looks for keys, at first and at most
LETTERS_SECONDS: Final = 600.0  # after which letters are looked at anyway: they may name servers that no record here tells of

log = logging.getLogger("zstor.access")


class Joined:
    """One namespace that we may read: its pass, its rows, its shards."""

    def __init__(
        self, store: Store, network: Network, authority: Authority, name: str, given: Pass, number: int, rows: Rows
    ) -> None:  # fmt: skip
        self.name = name
        self.given = given
        self._store = store
        self._network = network
        self._authority = authority
        self._renewing = trio.Lock()
        self.scope = trio.CancelScope()
        keys = NamespaceKeys.of(given.record_keys, given.through)
        self.foreign = Foreign(given.store_id, keys, number * limits.SHARD_NUMBERS)
        self.rows = rows.metastore
        self._kept = rows
        self._taking = trio.Lock()
        self._sealed = False  # something was heard that does not open
        self._abroad: set[int] = set()  # shards that records name and no pass has
        self._wanted = trio.Event()  # what a letter may bring
        self._renewed = trio.Event()
        self.namespace = Namespace(
            name, given.namespace_id, given.policy, keys, store.namespaces.hasher, given.created, (), Gate(read_only=True)
        )
        self.shards: Mapping[int, JoinedShard] = {}
        self._open_shards()

    def _open_shards(self) -> None:
        known = {shard.place: shard for shard in self.shards.values()}
        opened: dict[int, JoinedShard] = {}
        for place in self.given.places:
            try:
                shard = known.get(place) or JoinedShard(self, place, self._network, self._store)
                opened[shard.number] = shard
            except ShardError as error:
                log.warning("a shard of the joined namespace %s is left out: %s", self.name, error)
        self.shards = opened

    # --- Tokens: see shards.http.peer.TokenSource ---

    behind = False

    async def token(self, refused: int = 0) -> str | None:
        if refused > 1:
            return None
        if refused or self._expires() <= self._store.runtime.clock.now() // SECOND_US + RENEW_SECONDS:
            old = self.given.token
            async with self._renewing:
                if self.given.token == old:
                    await self._renew()
        if not self.given.token:
            raise _no_token(f"there is no permission any more to read {self.name}")
        return self.given.token

    def _expires(self) -> int:
        import jwt

        try:
            return int(jwt.decode(self.given.token, options={"verify_signature": False})["exp"])
        except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return 0

    async def _renew(self) -> None:
        if self.given.source == "authority":
            named = self.given.namespace
            if self._authority.kind == "builtin" or self._authority.organization != self.given.organization:
                # Our own authority's tokens open our own shards: they are nothing for servers that somebody else has named.
                raise _no_token(f"no authority here gives tokens for {self.name}")
            if self.name != named:  # or it would be shown one for something of ours, or what our user knows nothing of
                raise _no_token(f"its servers are shown a token for {named}, and so only where it is joined as {named}")
            try:
                token = await self._authority.token(self.given.namespace, ["read"], None, TOKEN_SECONDS)
            except ZstorError as error:
                raise _no_token(f"the authority gives no token: {error.message}") from None
            self.renew(replace(self.given, token=token.text))
            return
        await self._read_letters()

    async def _read_letters(self) -> None:
        newest = self.given
        for shard in self.shards.values():
            newest = await shard.letter(newest)
        if newest.made > self.given.made:
            if newest.source == "authority":
                newest = replace(newest, token=self.given.token)
            elif not newest.token:  # then it has no keys but the oldest, and what was read before is still shown
                newest = replace(newest, record_keys=self.given.record_keys, through=self.given.through)
            self.renew(newest)
            try:
                await self._store.rows.put(JOINED_TABLE, self.name, newest.encode())
            except ZstorError as error:  # it counts until the end of this daemon, and the next one finds it where it lay
                log.warning("a letter to the joined namespace %s was not kept: %s", self.name, error)

    def renew(self, given: Pass) -> None:
        """Take a newer pass in place of the one before. Shards that it does not name are left; with other keys all is read again."""
        before = {*self.shards}
        if given.record_keys != self.given.record_keys:
            self._read_again()
        self.given = given
        self.foreign.keys.renew(given.record_keys, given.through)
        self._open_shards()
        self._describe()
        self._renewed.set()
        self._renewed = trio.Event()
        for number in before - {*self.shards}:
            self._store.pool.joined.pop(number, None)
        self._store.pool.joined.update(self.shards)

    def _describe(self) -> None:
        """Show the namespace as the pass has it, unless it was left meanwhile."""
        shown, before = self._store.namespaces.joined, self.namespace
        self.namespace = replace(before, policy=self.given.policy, created=self.given.created)
        if shown.get(self.name) is before:
            shown[self.name] = self.namespace

    # --- Records ---

    async def take(self, page: bytes) -> bool:
        """What a server's log says. Returns whether it says anything. ShardError where that cannot be understood, or cannot be kept."""
        async with self._taking:
            taken = await self._store.runtime.threads.run(self._kept.take, page)
        if taken.news:
            self._store.committer.tell()
        if taken.lost:
            self._read_again()
        self._sealed |= taken.sealed
        abroad = taken.shards - self.shards.keys() - self._abroad
        self._abroad |= abroad
        if taken.sealed or abroad:
            self._wanted.set()
        return taken.entries

    def _read_again(self) -> None:
        """All logs from their beginnings."""
        for shard in self.shards.values():
            shard.read_again()

    async def follow(self) -> None:
        """Until it is left."""
        with self.scope:
            followed: set[JoinedShard] = set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._get_letters)
                while True:
                    renewed = self._renewed
                    for shard in {*self.shards.values()} - followed:
                        nursery.start_soon(shard.follow)
                    followed = {*self.shards.values()}
                    await renewed.wait()

    async def _get_letters(self) -> None:
        """Where something did not open its owner may have another key by now, which a letter brings, now or later. Or nothing opens it:
        then it is tried less and less often. Where a record names a shard that is not known there may be a server more.
        """
        pause = KEYS_SECONDS[0]
        while True:
            with trio.move_on_after(LETTERS_SECONDS):
                await self._wanted.wait()
            self._wanted = trio.Event()
            sealed, self._sealed = self._sealed, False
            known = self.given.record_keys
            async with self._renewing:
                await self._read_letters()
            if not sealed or self.given.record_keys != known:
                pause = KEYS_SECONDS[0]
                continue
            await trio.sleep(pause)
            pause = min(KEYS_SECONDS[1], 2 * pause)
            self._sealed = True
            self._wanted.set()

    @property
    def unheard(self) -> str | None:
        """Why no server tells of news, in the words of one; None as long as another one does."""
        reasons = [shard.unheard for shard in self.shards.values()]
        return reasons[0] if reasons and all(reasons) else None

    def follows(self, shard: JoinedShard) -> bool:
        """Whether the pass still names it."""
        return self.shards.get(shard.number) is shard

    async def leave(self) -> None:
        """Follow it no more, and forget what was heard."""
        self.scope.cancel()
        async with self._taking:
            self.close()

    def close(self) -> None:
        """Forget what was heard. Nobody follows it any more."""
        self._kept.close()


def _no_token(why: str) -> ShardError:
    return ShardError("failed", why, untouched=True, code="unauthenticated")
