"""Reading another user's namespace: its records are followed on the shard servers, its objects read from there.

What the owner's daemon gave, a pass, is a row of our store; letters renew it. The records themselves are kept in memory, read anew at
each start. Nothing is ever written there: our token lets us read only, and the shard servers check it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import trio

from zstor_local.access.authority import Authority
from zstor_local.access.invitation import Pass, Place, open_invitation, open_letter, public_key
from zstor_local.coding.keys import KEY_BYTES, NamespaceKeys
from zstor_local.errors import AlreadyExists, CorruptRecord, NotFound, Unauthenticated, Unavailable, ZstorError
from zstor_local.metastore.base import Reference, Row, StoreState, Transaction, Usage
from zstor_local.metastore.memory import Cell, MemoryMetastore
from zstor_local.model.ids import ShareId, check_namespace
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE, Envelope, Kind, ObjectRecord, Tombstone
from zstor_local.runtime import Network
from zstor_local.shards.base import ShardError, ShardState, ShareMissing
from zstor_local.shards.http.engine import locate
from zstor_local.shards.http.peer import Ask, Deadlines, Peer
from zstor_local.shards.http.share import HttpShareReader
from zstor_local.shards.http.wire import NEXT, PAGE_BYTES, BadWire, Batch, cursor, parse_batch, share_name
from zstor_local.store.namespaces import Gate, Namespace
from zstor_local.store.sealing import SHARDS_OF_ONE, Foreign
from zstor_local.store.store import Store
from zstor_local.store.stored import open_object

TABLE: Final = "joined"  # of store-wide rows: passes, by the name that the namespace has here
IDENTITY_TABLE: Final = "identity"
WAIT_SECONDS: Final = 50  # that a server is asked to wait for news
RENEW_SECONDS: Final = 30  # before a token expires
AGAIN_SECONDS: Final = (1.0, 30.0)  # after a server did not answer: at first, and at most
JOIN_SECONDS: Final = 30.0  # that a join waits for the first look at all servers
LETTER_BYTES: Final = 64 * 1024
TOKEN_SECONDS: Final = 3_600

log = logging.getLogger("zstor.access")


class _NoTokens:
    """For letters, which need none."""

    async def token(self, *, anew: bool = False) -> str:
        return "none"


class _Joined:
    """One namespace that we may read: its pass, its rows, its shards."""

    def __init__(self, store: Store, network: Network, authority: Authority, name: str, given: Pass, number: int) -> None:
        self.name = name
        self.given = given
        self._store = store
        self._network = network
        self._authority = authority
        self._renewing = trio.Lock()
        self.scope = trio.CancelScope()
        keys = NamespaceKeys.of(given.record_keys)
        self.foreign = Foreign(given.store_id, keys, number * SHARDS_OF_ONE)
        self.rows = MemoryMetastore(Cell(given.store_id))
        self.namespace = Namespace(
            name, given.namespace_id, Policy(), keys, store.namespaces.hasher, given.made, (), Gate(read_only=True)
        )
        self.shards: Mapping[int, _JoinedShard] = {}
        self._open_shards()

    def _open_shards(self) -> None:
        known = {shard.place: shard for shard in self.shards.values()}
        opened: dict[int, _JoinedShard] = {}
        for place in self.given.places:
            try:
                shard = known.get(place) or _JoinedShard(self, place, self._network, self._store)
                opened[shard.number] = shard
            except ShardError as error:
                log.warning("a shard of the joined namespace %s is left out: %s", self.name, error)
        self.shards = opened

    # --- Tokens: see shards.http.peer.TokenSource ---

    async def token(self, *, anew: bool = False) -> str:
        if anew or self._expires() <= self._store.runtime.clock.now() // 1_000_000 + RENEW_SECONDS:
            old = self.given.token
            async with self._renewing:
                if self.given.token == old:
                    await self._renew()
        if not self.given.token:
            raise ShardError("failed", f"there is no permission any more to read {self.name}", untouched=True)
        return self.given.token

    def _expires(self) -> int:
        import jwt

        try:
            return int(jwt.decode(self.given.token, options={"verify_signature": False})["exp"])
        except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return 0

    async def _renew(self) -> None:
        if self.given.source == "authority":
            if self._authority.kind == "builtin" or self._authority.organization != self.given.organization:
                # Our own authority's tokens open our own shards: they are nothing for servers that somebody else has named.
                raise ShardError("failed", f"no authority here gives tokens for {self.name}", untouched=True)
            try:
                token = await self._authority.token(self.given.namespace, ["read"], None, TOKEN_SECONDS)
            except ZstorError as error:
                raise ShardError("failed", f"the authority gives no token: {error.message}", untouched=True) from None
            self._take(replace(self.given, token=token.text))
            return
        newest = self.given
        for shard in self.shards.values():
            newest = await shard.letter(newest)
        if newest.made > self.given.made:
            self._take(newest)
            await self._store.rows.put(TABLE, self.name, newest.encode())

    def _take(self, given: Pass) -> None:
        self.given = given
        self.foreign.keys.renew(given.record_keys)
        self._open_shards()
        self._store.pool.joined.update(self.shards)

    # --- Records ---

    def take(self, batch: Batch) -> None:
        """What a server's log says: of each key the record with the highest sequence counts."""
        transaction = Transaction(StoreState())
        usage, highest = Usage(), self.rows.state().sequence
        newest: dict[str, Envelope] = {}
        for scanned in batch.entries:
            envelope = scanned.entry.envelope
            if envelope.kind not in (Kind.OBJECT, Kind.TOMBSTONE) or envelope.namespace != self.namespace.id:
                continue
            try:
                if envelope.kind is Kind.TOMBSTONE:
                    key = Tombstone.decode(self._store.sealer.open(envelope)).key
                else:
                    key = open_object(self._store.sealer, envelope).key
            except CorruptRecord:
                continue  # another server has a good copy, or nobody
            known = newest.get(key) or self.rows.get(self.namespace.id, key) or self.rows.tombstone(self.namespace.id, key)
            if known is None or known.sequence < envelope.sequence:
                newest[key] = envelope
        for key, envelope in newest.items():
            before, after = self._record(self.rows.get(self.namespace.id, key)), self._record(envelope)
            transaction.rows.append(Row(self.namespace.id, key, envelope))
            usage += Usage((after is not None) - (before is not None), _size(after) - _size(before))
            transaction.references_gone += self._references(key, before)
            transaction.references += self._references(key, after)
            highest = max(highest, envelope.sequence)
        if newest:
            transaction.state = StoreState(highest)
            transaction.usage = {self.namespace.id: usage}
            self.rows.commit(transaction)
            self._store.committer.tell()

    def _record(self, envelope: Envelope | None) -> ObjectRecord | None:
        return None if envelope is None or envelope.kind is Kind.TOMBSTONE else open_object(self._store.sealer, envelope)

    def _references(self, key: str, record: ObjectRecord | None) -> Sequence[Reference]:
        texts = () if record is None else record.references
        return [Reference(self.namespace.id, self.namespace.reference_hash(text), key) for text in texts]

    async def follow(self) -> None:
        """Until it is left."""
        with self.scope:
            followed: set[_JoinedShard] = set()
            async with trio.open_nursery() as nursery:
                while True:
                    for shard in self.shards.values():
                        if shard not in followed:
                            followed.add(shard)
                            nursery.start_soon(shard.follow)
                    await trio.sleep(WAIT_SECONDS)


class _JoinedShard:
    """A shard of another user's store, as far as reading needs one (store/shares.py)."""

    on_disk = None

    def __init__(self, joined: _Joined, place: Place, network: Network, store: Store) -> None:
        self.place = place
        self.number = joined.foreign.first + place.number
        self.id = f"{joined.name}/{place.id}"
        self.url = place.url
        self._joined = joined
        server, self.space = locate(place.url, joined.given.store_id)
        self.network = network
        self.peer = Peer(server, joined, network, store.runtime.randomness, Deadlines())
        self._following = Peer(
            server, joined, network, store.runtime.randomness, Deadlines(request=WAIT_SECONDS + 20.0)
        )  # its long waits are not what is usual
        self._letters = Peer(server, _NoTokens(), network, store.runtime.randomness, Deadlines())
        self._after = "0.0.0"
        self._error: str | None = None

    def check(self) -> ShardState:
        return "ok" if self.peer.broken is None else "missing"

    def last_error(self) -> str | None:
        return self.peer.broken or self._error

    def failed(self, error: ShardError) -> ShardError:
        self._error = str(error)
        return error

    def writing(self) -> dict[str, str]:
        raise ShardError("readonly", "another user's shard is only read", untouched=True)

    fenced = writing

    def open_share(self, share: ShareId, *, small: bool) -> HttpShareReader:
        return HttpShareReader(self, share, small=small, namespace=self._joined.namespace.id)

    def has(self, share: ShareId, *, small: bool) -> bool:
        query = f"{'small=1&' if small else ''}namespace={self._joined.namespace.id.hex()}"
        ask = Ask("HEAD", f"{self.space}/shares/{share_name(share)}?{query}", expect=(200, 404))
        try:
            return self.network.run(lambda: self.peer.ask(ask)).status == 200
        except ShareMissing:
            raise self.failed(ShardError("failed", f"{self.url} answers something else than was asked")) from None

    def peek(self, share: ShareId, offset: int, length: int) -> None:
        """A server is always waited for."""

    async def letter(self, before: Pass) -> Pass:
        """The newer of the letter that lies here and a pass."""
        try:
            path = f"{self.space}/letters/{before.letter_id.hex()}"
            reply = await self._letters.ask(Ask("GET", path, expect=(200,), most=LETTER_BYTES))
            return open_letter(reply.body, before)
        except (ShardError, ShareMissing, CorruptRecord):
            return before

    async def look(self, *, wait: int = 0) -> bool:
        """Take a page of the log; returns whether there was one. ShardError if the server does not let us, or is away."""
        path = f"{self.space}/log?namespace={self._joined.namespace.id.hex()}&after={self._after}&wait={wait}"
        try:
            reply = await self._following.ask(Ask("GET", path, expect=(200,), most=2 * PAGE_BYTES))
            batch = parse_batch(reply.body)
        except ShareMissing:
            raise ShardError("failed", f"{self.url} answers something else than was asked") from None
        except BadWire as error:
            raise ShardError("failed", f"{self.url}: {error}") from None
        self._joined.take(batch)
        following = reply.headers.get(NEXT, self._after)
        if not batch.entries or following == self._after:
            return False
        if not cursor(self._after) < cursor(following):
            raise ShardError("failed", f"{self.url} sends its log in circles")
        self._after = following
        return True

    async def catch_up(self, took: Callable[[], None]) -> None:
        """Take the log to its end; `took` is called after each page."""
        while await self.look():
            took()

    async def follow(self) -> None:
        pause, longest = AGAIN_SECONDS
        while True:
            began = trio.current_time()
            try:
                news = await self.look(wait=WAIT_SECONDS)
                pause = AGAIN_SECONDS[0]
                if not news and trio.current_time() - began < pause:
                    await trio.sleep(pause)  # it did not wait for news
            except ShardError as error:
                log.info("%s", error)
                await trio.sleep(pause)
                pause = min(longest, 2 * pause)


class Joining:
    """The use cases, and the tasks that follow."""

    def __init__(self, store: Store, authority: Authority, network: Network) -> None:
        self._store = store
        self._authority = authority
        self._network = network
        self._joined: dict[str, _Joined] = {}
        self._nursery: trio.Nursery | None = None
        self._numbers = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow what was joined before, and what is joined from now on."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for row in self._store.rows.scan(TABLE):
                try:
                    self._open(row.name, Pass.decode(row.value))
                except ZstorError as error:
                    log.error("the joined namespace %s is left out: %s", row.name, error)
            task_status.started()
            await trio.sleep_forever()

    async def public_key(self) -> str:
        """Our own, made on first use."""
        row = await self._store.rows.change(
            IDENTITY_TABLE, "x25519", lambda row: self._store.runtime.randomness.bytes(KEY_BYTES) if row is None else row.value
        )
        if row is None:
            raise AssertionError("a row that was put is there")
        return public_key(row.value)

    async def join(self, invitation: str, name: str | None, progress: Callable[[int], None]) -> Namespace:
        """Read the namespace that the invitation gives, under its own name or another one. Durable when this returns, and caught up
        with each server that answers. AlreadyExists for a name that is taken here. `progress` is told how many objects are known.
        """
        row = self._store.rows.get(IDENTITY_TABLE, "x25519")
        given = open_invitation(invitation, bytes(KEY_BYTES) if row is None else row.value)
        name = check_namespace(name or given.namespace)
        self._must_be_anothers(given)
        before = self._joined.get(name)
        if before is not None and before.given.namespace_id == given.namespace_id:
            await self._store.rows.put(TABLE, name, given.encode())  # a newer invitation
            before._take(given)
        elif before is not None or self._store.namespaces.record(name) is not None:
            raise AlreadyExists(f"there is a namespace {name} here", hint="give it another name with `namespace`")
        elif any(each.given.namespace_id == given.namespace_id for each in self._joined.values()):
            raise AlreadyExists("that namespace is joined already, under another name", hint="`zstor namespace ls` shows it")
        else:
            await self._store.rows.put(TABLE, name, given.encode())
            self._open(name, given)
        joined = self._joined[name]
        with trio.move_on_after(JOIN_SECONDS):
            await self._catch_up(joined, progress)
        return joined.namespace

    async def _catch_up(self, joined: _Joined, progress: Callable[[int], None]) -> None:
        errors: list[str] = []

        def took() -> None:
            progress(joined.rows.usage(joined.namespace.id).objects)

        async def catch_up(shard: _JoinedShard) -> None:
            try:
                await shard.catch_up(took)
            except ShardError as error:
                errors.append(str(error))

        async with trio.open_nursery() as nursery:
            for shard in joined.shards.values():
                nursery.start_soon(catch_up, shard)
        if errors and len(errors) == len(joined.shards):
            wrong = Unauthenticated if "token" in errors[0] else Unavailable
            raise wrong(f"no shard server lets us read: {errors[0]}", hint="it is joined, and read as soon as one does")

    async def leave(self, name: str) -> None:
        """Forget a namespace that was joined; NotFound if it was not."""
        joined = self._joined.pop(name, None)
        if joined is None:
            raise NotFound(f"no namespace {name} was joined", hint="`zstor namespace ls` lists them")
        await self._store.rows.remove(TABLE, name)
        joined.scope.cancel()
        self._store.namespaces.joined.pop(name, None)
        for number in joined.shards:
            self._store.pool.joined.pop(number, None)
        self._store.reading.joined.pop(joined.namespace.id, None)
        self._store.sealer.foreign.pop(joined.namespace.id, None)

    def _must_be_anothers(self, given: Pass) -> None:
        """AlreadyExists for what would take the place of something of this store's, whoever claims to own it."""
        ours = {STORE_WIDE, *self._store.namespaces.ids()}
        if given.store_id == self._store.sealer.store_id or given.namespace_id in ours:
            raise AlreadyExists("that is a namespace of this very store", hint="read it by its name")

    def joined(self, name: str) -> bool:
        return name in self._joined

    def _open(self, name: str, given: Pass) -> None:
        if self._nursery is None:
            raise Unavailable("the daemon is starting", hint="try again")
        self._must_be_anothers(given)
        self._numbers += 1
        joined = _Joined(self._store, self._network, self._authority, name, given, self._numbers)
        self._store.sealer.foreign[given.namespace_id] = joined.foreign
        self._store.reading.joined[given.namespace_id] = joined.rows
        self._store.pool.joined.update(joined.shards)
        self._store.namespaces.joined[name] = joined.namespace
        self._joined[name] = joined
        self._nursery.start_soon(joined.follow)


def _size(record: ObjectRecord | None) -> int:
    return 0 if record is None else record.size
