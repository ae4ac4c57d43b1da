"""Whom the owner's daemon has invited, and the letters that it leaves for them on shard servers: each renews a pass for a day.

A letter can be left again and again. Once the permission is taken away it holds no token, and no more does the next one. Those that
are left no more, as their namespace was deleted, go from the servers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

import trio

from zstor_local.access.authority import Authority
from zstor_local.access.invitation import Pass, Place, Secret, letter_secrets, seal_invitation, seal_letter
from zstor_local.access.trust import TOKEN_SECONDS_MAX
from zstor_local.coding.keys import SALT_BYTES
from zstor_local.errors import InvalidParams, NoSpace, NotFound, PermissionDenied, ZstorError
from zstor_local.model.fields import decode, encode
from zstor_local.model.ids import NamespaceId
from zstor_local.model.record import STORE_WIDE
from zstor_local.shards.base import ShardError, ShareMissing
from zstor_local.shards.http.ask import Ask
from zstor_local.shards.http.shard import HttpShard
from zstor_local.shards.http.wire import DIGEST, LETTERS_MAX, digest
from zstor_local.store.namespaces import INVITED_TABLE, Namespace
from zstor_local.store.store import Store

ROUND_SECONDS: Final = 3_600.0  # a letter holds a day
SOON_SECONDS: Final = 2.0
AGAIN_SECONDS: Final = 60.0  # after a round in which a server was away

log = logging.getLogger("zstor.access")


class Letters:
    """One task for a daemon, and the use case of inviting."""

    def __init__(self, store: Store, authority: Authority) -> None:
        self._store = store
        self._authority = authority
        self._working = trio.Lock()
        self._undone = trio.Event()  # there is more to be left than in the last round

    async def run(self) -> None:
        """Leave every letter, again each hour."""
        while True:
            self._undone = trio.Event()
            try:
                away = await self.leave()
            except ZstorError as error:
                log.warning("letters to readers were not left: %s", error)
                away = True
            with trio.move_on_after(AGAIN_SECONDS if away else ROUND_SECONDS):
                await self._undone.wait()

    async def soon(self) -> None:
        """Leave them now, but do not wait long for servers that are slow: the next round follows at once."""
        away = True
        with trio.move_on_after(SOON_SECONDS), suppress(ZstorError):
            away = await self.leave()
        if away:
            self._undone.set()

    async def invite(self, namespace_name: str, user: str, public: bytes) -> str:
        """An invitation for the bearer of this key, who must have the permission to read. Durable when this returns."""
        namespace = self._store.namespaces.own(namespace_name)
        row = f"{namespace.id.hex()}/{user}"
        if self._store.rows.get(INVITED_TABLE, row) is None and len(self._names()) >= LETTERS_MAX:
            raise NoSpace(
                f"shard servers keep {LETTERS_MAX} letters, one for each reader of each namespace, and so many readers are invited",
                hint="delete namespaces that nobody reads any more: their readers' letters go with them",
            )
        given = await self._pass(namespace, user, public)
        if self._authority.kind == "builtin" and not given.token:
            raise PermissionDenied(f"{user} may not read {namespace_name}", hint=f"zstor perm give {namespace_name} {user} read")
        if not given.places:
            raise InvalidParams(
                "no shard of this store is on a shard server, where somebody else could read it",
                hint="`zstor shard add https://HOST:PORT`",
            )
        invitation = seal_invitation(given, public)
        await self._store.rows.put(INVITED_TABLE, row, encode({0: 1, 1: public}))
        await self.leave()
        return invitation

    async def leave(self) -> bool:
        """Leave every letter on every server, and no others; returns whether one was away."""
        async with self._working:
            shards = [shard for shard in self._store.pool.opened() if isinstance(shard, HttpShard)]
            away = len(shards) < len(self._store.places.on_servers())
            for shard in shards:
                away |= not await self._put(shard, "letters", b"".join(self._names()))
            for namespace, user, public in self._invited():
                given = await self._pass(namespace, user, public)
                for name, body in self._sealed(given, public):
                    for shard in shards:
                        away |= not await self._put(shard, f"letters/{name.hex()}", body)
            return away

    async def _put(self, shard: HttpShard, path: str, body: bytes) -> bool:
        """False where the server does not take it."""
        try:
            await shard.peer.ask(Ask("PUT", f"{shard.space}/{path}", body, {**shard.fenced(), DIGEST: digest(body)}))
        except (ShardError, ShareMissing) as error:
            log.log(logging.WARNING if _is_full(error) else logging.INFO, "shard %s takes no letters: %s", shard.id, error)
            return False
        return True

    def _names(self) -> list[bytes]:
        """The names of all letters that are left."""
        secrets = (self._secrets(namespace.id, public) for namespace, _, public in self._invited())
        return [secret.id for current, retired in secrets for secret in (current, *retired)]

    def _sealed(self, given: Pass, public: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The letters to a reader with their names: one for who has the newest pass, and one for each secret that others may know by
        now, where a reader that was away still looks.
        """
        salt = self._store.runtime.randomness.bytes
        current, retired = self._secrets(given.namespace_id, public)
        for secret in (current, *retired):
            yield secret.id, seal_letter(given, salt(SALT_BYTES), public if retired else None, secret)

    def _secrets(self, namespace: NamespaceId, public: bytes) -> tuple[Secret, Sequence[Secret]]:
        """What seals a reader's letters now, and what did before older master keys were retired. A rotation alone changes nothing."""
        secrets = letter_secrets(self._store.sealer.keys(STORE_WIDE), namespace, public)
        record = self._store.rotation.record()
        count = len(secrets) - (0 if record is None else record.retired)
        return secrets[count - 1], secrets[count:]

    def _invited(self) -> Iterator[tuple[Namespace, str, bytes]]:
        for row in self._store.rows.each(INVITED_TABLE):
            space, _, user = row.name.partition("/")
            namespace = self._store.namespaces.by_id(NamespaceId(bytes.fromhex(space)))
            public = decode(row.value).get(1)
            if namespace is not None and not namespace.gate.closed and isinstance(public, bytes):
                yield namespace, user, public

    async def _pass(self, namespace: Namespace, user: str, public: bytes) -> Pass:
        """What the user needs to read the namespace now; without a token if there is no permission."""
        sealer = self._store.sealer
        keys, through = sealer.ring.record_keys(namespace.id), sealer.ring.through
        secret, _ = self._secrets(namespace.id, public)
        token = ""
        if self._authority.kind == "builtin":
            try:
                token = (await self._authority.token(namespace.name, ["read"], user, TOKEN_SECONDS_MAX)).text
            except (PermissionDenied, NotFound):
                keys, through = keys[-1:], through[-1:]  # the one that every reader has had: who may read no more learns no newer one
        return Pass(
            namespace=namespace.name,
            namespace_id=namespace.id,
            store_id=sealer.store_id,
            user=user,
            record_keys=keys,
            places=tuple(self._places()),
            source="letters" if self._authority.kind == "builtin" else "authority",
            organization=self._authority.organization,
            token=token,
            letter_key=secret.key,
            letter_id=secret.id,
            made=self._store.runtime.clock.now(),
            policy=namespace.policy,
            created=namespace.created,
            through=tuple(each for each in through if each is not None),
        )

    def _places(self) -> Iterator[Place]:
        """Where readers find the servers, those too that are away now."""
        places = self._store.places
        there = {*places.on_servers()}
        for entry in places.record.shards:
            if entry.number in there:
                yield Place(entry.number, entry.id, places.place(entry))


def _is_full(error: ShardError | ShareMissing) -> bool:
    """Whether it is not only away, and readers wait in vain."""
    return isinstance(error, ShardError) and error.state == "full"
