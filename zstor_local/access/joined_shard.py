"""A shard of another user's store, as our daemon reads it: it is asked for shares, and for news of the joined namespace."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from zstor_local.access.invitation import Pass, Place, open_letter
from zstor_local.coding.keys import KEY_BYTES
from zstor_local.errors import ZstorError
from zstor_local.model.ids import ShareId
from zstor_local.runtime import Network
from zstor_local.shards.base import ShardError, ShardState, ShareMissing
from zstor_local.shards.http.ask import Ask, Deadlines
from zstor_local.shards.http.engine import locate
from zstor_local.shards.http.peer import Peer
from zstor_local.shards.http.server import Server
from zstor_local.shards.http.share import HttpShareReader, has_share
from zstor_local.shards.http.wire import BEGINNING, NEXT, PAGE_BYTES, cursor, share_name
from zstor_local.store.store import Store

if TYPE_CHECKING:
    from zstor_local.access.joined import Joined

IDENTITY_TABLE: Final = "identity"
IDENTITY: Final = "x25519"  # its row: our private key
WAIT_SECONDS: Final = 50  # that a server is asked to wait for news
AGAIN_SECONDS: Final = (1.0, 30.0)  # after a server did not answer: at first, and at most
LETTER_BYTES: Final = 64 * 1024

log = logging.getLogger("zstor.access")


def private_key(store: Store) -> bytes:
    """What invitations and letters to us open with; zeros before anybody asked for its public key."""
    row = store.rows.get(IDENTITY_TABLE, IDENTITY)
    return bytes(KEY_BYTES) if row is None else row.value


class _NoTokens:
    """For letters, which need none."""

    behind = False

    async def token(self, refused: int = 0) -> str | None:
        return None if refused else "none"


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
        url, self.space = locate(place.url, joined.given.store_id)
        self.network = network
        server = Server(url, network, store.runtime.randomness, Deadlines())
        self.peer, self._letters = Peer(server, joined), Peer(server, _NoTokens())
        waited_for = Deadlines(request=WAIT_SECONDS + 20.0)
        self._following = Peer(Server(url, network, store.runtime.randomness, waited_for), joined)  # long waits are not what is usual
        self._after = BEGINNING
        self._round = 0  # how often it had to be read again
        self._waiting = trio.CancelScope()
        self._took = 0.0  # seconds, for the last page
        self._error: str | None = None
        self.unheard: str | None = None  # why its log was not told when that was last tried

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
        path = f"{self.space}/shares/{share_name(share)}?{query}"
        try:
            return self.network.run(lambda: has_share(self.peer, path))
        except ShardError as error:
            raise self.failed(error) from None

    def peek(self, share: ShareId, offset: int, length: int) -> None:
        """A server is always waited for."""

    async def letter(self, before: Pass) -> Pass:
        """The newer of the letter that lies here and a pass."""
        try:
            path = f"{self.space}/letters/{before.letter_id.hex()}"
            reply = await self._letters.ask(Ask("GET", path, expect=(200,), most=LETTER_BYTES))
            return open_letter(reply.body, before, private_key(self._store))
        except (ShardError, ShareMissing, ZstorError):  # the last of a letter that does not open, or of our own metastore
            return before

    async def look(self, *, wait: int = 0) -> bool:
        """Take a page of the log; returns whether there was one. ShardError if the server does not let us, or is away."""
        after, round_ = self._after, self._round
        path = f"{self.space}/log?namespace={self._joined.namespace.id.hex()}&after={after}&wait={wait}"
        try:
            with trio.CancelScope() as asking:
                self._waiting = asking if wait else self._waiting
                reply = await self._following.ask(Ask("GET", path, expect=(200,), most=2 * PAGE_BYTES))
        except ShareMissing:
            raise ShardError("failed", f"{self.url} answers something else than was asked") from None
        except ShardError as error:
            if error.code == "gone":
                self.read_again()
            raise
        if asking.cancelled_caught:
            return True
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
        if (self._after, self._round) == (after, round_):  # who joins and who follows look at once; and it may have to be read again
            self._after = following
        return True

    def read_again(self) -> None:
        """Its log, from the beginning."""
        self._after = BEGINNING
        self._round += 1
        self._waiting.cancel()

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
                self.unheard = None
                pause = AGAIN_SECONDS[0]
                if news:
                    await trio.sleep(self._took)
                elif trio.current_time() - began < pause:
                    await trio.sleep(pause)  # it did not wait for news
            except ShardError as error:
                log.info("%s", error)
                self.unheard = str(error)
                await trio.sleep(pause)
                pause = min(longest, 2 * pause)
