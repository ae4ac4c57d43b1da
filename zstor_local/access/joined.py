"""One namespace of another user's store, as our daemon reads it: the pass, its records, its shards.

The records are followed on the shard servers and kept in a metastore of their own beside ours, which is made anew at each start.
Whoever sends some without end gets a part of our disk and half of a thread, and no more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final

import trio

from zstor_local import limits
from zstor_local.access.authority import Authority
from zstor_local.access.invitation import Pass, Place, open_letter
from zstor_local.coding.keys import KEY_BYTES, NamespaceKeys
from zstor_local.errors import CorruptRecord, IoError, ZstorError
from zstor_local.metastore.base import (
    CommitRefused,
    CommitUnknown,
    Metastore,
    MetastoreClosed,
    MetastoreInUse,
    MetastoreNotOpened,
    Reference,
    Row,
    StoreState,
    Transaction,
    Usage,
)
from zstor_local.metastore.sqlite import SqliteMetastore
from zstor_local.model.ids import ShareId
from zstor_local.model.policy import Policy
from zstor_local.model.record import Envelope, Kind, ObjectRecord, Tombstone
from zstor_local.runtime import Files, Network
from zstor_local.shards.base import ShardError, ShardState, ShareMissing
from zstor_local.shards.http.engine import locate
from zstor_local.shards.http.peer import Ask, Deadlines, Peer
from zstor_local.shards.http.share import HttpShareReader
from zstor_local.shards.http.wire import NEXT, PAGE_BYTES, BadWire, cursor, parse_batch, share_name
from zstor_local.store.namespaces import Gate, Namespace
from zstor_local.store.sealing import SHARDS_OF_ONE, Foreign
from zstor_local.store.store import Store
from zstor_local.store.stored import open_object

TABLE: Final = "joined"  # of store-wide rows: passes, by the name that the namespace has here
IDENTITY_TABLE: Final = "identity"
IDENTITY: Final = "x25519"  # its row: our private key
WAIT_SECONDS: Final = 50  # that a server is asked to wait for news
RENEW_SECONDS: Final = 30  # before a token expires
AGAIN_SECONDS: Final = (1.0, 30.0)  # after a server did not answer: at first, and at most
LETTER_BYTES: Final = 64 * 1024
TOKEN_SECONDS: Final = 3_600
ROWS: Final = "joined-"  # files in the store's directory, one for each namespace
ROWS_BYTES: Final = 4_096 * limits.MIB  # of its records, some millions

_FAILED: Final = (CommitRefused, CommitUnknown, MetastoreClosed, MetastoreInUse, MetastoreNotOpened, ZstorError, OSError)

log = logging.getLogger("zstor.access")


class Rows:
    """What is heard of a namespace, in a file that means nothing after the daemon's end."""

    def __init__(self, store: Store, given: Pass) -> None:
        """Begin it anew. IoError."""
        self._files = store.runtime.files
        self._path = f"{store.config.store}/{ROWS}{given.namespace_id.hex()}.sqlite"
        remove_rows(self._files, store.config.store, given)
        try:
            SqliteMetastore.load(self._path, given.store_id, ())
            self.metastore: Metastore = SqliteMetastore(self._path)
        except _FAILED as error:
            raise IoError(f"there is no place for the records of a joined namespace: {error}", hint="make room") from error

    def check_room(self) -> None:
        """ShardError where they have become too many."""
        size = sum(self._files.path_status(path).size for path in (self._path, f"{self._path}-wal"))
        if size > ROWS_BYTES:
            raise ShardError("failed", f"its records take more than {ROWS_BYTES} bytes: no more are kept", untouched=True)

    def close(self) -> None:
        self.metastore.close()
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                self._files.unlink(self._path + suffix)


def remove_rows(files: Files, directory: str, given: Pass | None = None) -> None:
    """What an earlier life has left: of one namespace, or of all."""
    prefix = ROWS if given is None else f"{ROWS}{given.namespace_id.hex()}"
    with suppress(OSError):
        for name in files.list(directory):
            if name.startswith(prefix):
                files.unlink(f"{directory}/{name}")


def private_key(store: Store) -> bytes:
    """What invitations and letters to us open with; zeros before anybody asked for its public key."""
    row = store.rows.get(IDENTITY_TABLE, IDENTITY)
    return bytes(KEY_BYTES) if row is None else row.value


class _NoTokens:
    """For letters, which need none."""

    behind = False

    async def token(self, refused: int = 0) -> str | None:
        return None if refused else "none"


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
        keys = NamespaceKeys.of(given.record_keys)
        self.foreign = Foreign(given.store_id, keys, number * SHARDS_OF_ONE)
        self.rows = rows.metastore
        self._kept = rows
        self._taking = trio.Lock()
        self.namespace = Namespace(
            name, given.namespace_id, Policy(), keys, store.namespaces.hasher, given.made, (), Gate(read_only=True)
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
        if refused or self._expires() <= self._store.runtime.clock.now() // 1_000_000 + RENEW_SECONDS:
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
            self.renew(replace(self.given, token=token.text))
            return
        newest = self.given
        for shard in self.shards.values():
            newest = await shard.letter(newest)
        if newest.made > self.given.made:
            self.renew(newest)
            await self._store.rows.put(TABLE, self.name, newest.encode())

    def renew(self, given: Pass) -> None:
        """Take a newer pass in place of the one before. Shards that it does not name are left."""
        before = {*self.shards}
        self.given = given
        self.foreign.keys.renew(given.record_keys)
        self._open_shards()
        for number in before - {*self.shards}:
            self._store.pool.joined.pop(number, None)
        self._store.pool.joined.update(self.shards)

    # --- Records ---

    async def take(self, page: bytes) -> bool:
        """What a server's log says: of each key the record with the highest sequence counts. Returns whether it says anything.
        ShardError where that cannot be understood, or cannot be kept.
        """
        async with self._taking:
            try:
                entries, news = await self._store.runtime.threads.run(self._take, page)
            except BadWire as error:
                raise ShardError("failed", str(error)) from None
            except _FAILED as error:
                raise ShardError("failed", f"the records of {self.name} cannot be kept: {error}") from error
        if news:
            self._store.committer.tell()
        return entries

    def _take(self, page: bytes) -> tuple[bool, bool]:
        """Whether there are entries in it, and whether one of them is news."""
        batch = parse_batch(page)
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
            self._kept.check_room()
            transaction.state = StoreState(highest)
            transaction.usage = {self.namespace.id: usage}
            self.rows.commit(transaction)
            self.rows.checkpoint()
        return bool(batch.entries), bool(newest)

    def _record(self, envelope: Envelope | None) -> ObjectRecord | None:
        return None if envelope is None or envelope.kind is Kind.TOMBSTONE else open_object(self._store.sealer, envelope)

    def _references(self, key: str, record: ObjectRecord | None) -> Sequence[Reference]:
        texts = () if record is None else record.references
        return [Reference(self.namespace.id, self.namespace.reference_hash(text), key) for text in texts]

    async def follow(self) -> None:
        """Until it is left."""
        with self.scope:
            followed: set[JoinedShard] = set()
            async with trio.open_nursery() as nursery:
                while True:
                    for shard in {*self.shards.values()} - followed:
                        nursery.start_soon(shard.follow)
                    followed = {*self.shards.values()}
                    await trio.sleep(WAIT_SECONDS)

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


class JoinedShard:
    """A shard of another user's store, as far as reading needs one (store/shares.py)."""

    on_disk = None

    def __init__(self, joined: Joined, place: Place, network: Network, store: Store) -> None:
        self.place = place
        self.number = joined.foreign.first + place.number
        self.id = f"{joined.name}/{place.id}"
        self.url = place.url
        self._joined = joined
        self._store = store
        server, self.space = locate(place.url, joined.given.store_id)
        self.network = network
        self.peer = Peer(server, joined, network, store.runtime.randomness, Deadlines())
        self._following = Peer(
            server, joined, network, store.runtime.randomness, Deadlines(request=WAIT_SECONDS + 20.0)
        )  # its long waits are not what is usual
        self._letters = Peer(server, _NoTokens(), network, store.runtime.randomness, Deadlines())
        self._after = "0.0.0"
        self._took = 0.0  # seconds, for the last page
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
            return open_letter(reply.body, before, private_key(self._store))
        except (ShardError, ShareMissing, CorruptRecord):
            return before

    async def look(self, *, wait: int = 0) -> bool:
        """Take a page of the log; returns whether there was one. ShardError if the server does not let us, or is away."""
        after = self._after
        path = f"{self.space}/log?namespace={self._joined.namespace.id.hex()}&after={after}&wait={wait}"
        try:
            reply = await self._following.ask(Ask("GET", path, expect=(200,), most=2 * PAGE_BYTES))
        except ShareMissing:
            raise ShardError("failed", f"{self.url} answers something else than was asked") from None
        began = trio.current_time()
        try:
            entries = await self._joined.take(reply.body)
        except ShardError as error:
            raise ShardError(error.state, f"{self.url}: {error}") from None
        self._took = trio.current_time() - began
        following = reply.headers.get(NEXT, after)
        if not entries or following == after:
            return False
        if not cursor(after) < cursor(following):
            raise ShardError("failed", f"{self.url} sends its log in circles")
        if cursor(self._after) < cursor(following):  # who joins and who follows look at once
            self._after = following
        return True

    async def catch_up(self, took: Callable[[], None]) -> None:
        """Take the log to its end; `took` is called after each page."""
        while await self.look():
            took()

    async def follow(self) -> None:
        """As long as the pass names it. As much time as a page took is left to others: there may be no end of them."""
        pause, longest = AGAIN_SECONDS
        while self._joined.follows(self):
            began = trio.current_time()
            try:
                news = await self.look(wait=WAIT_SECONDS)
                pause = AGAIN_SECONDS[0]
                if news:
                    await trio.sleep(self._took)
                elif trio.current_time() - began < pause:
                    await trio.sleep(pause)  # it did not wait for news
            except ShardError as error:
                log.info("%s", error)
                await trio.sleep(pause)
                pause = min(longest, 2 * pause)


def _size(record: ObjectRecord | None) -> int:
    return 0 if record is None else record.size
