"""A shard server as somebody asks it: with tokens of theirs."""

from __future__ import annotations

from typing import Protocol

from zstor_local.model.ids import ShardUid
from zstor_local.shards.base import ShardError
from zstor_local.shards.http.ask import Ask, Reply
from zstor_local.shards.http.connections import TokenRefused
from zstor_local.shards.http.server import Server


class TokenSource(Protocol):
    """Where tokens for a server come from."""

    @property
    def behind(self) -> bool:
        """Whether the last one was of an older key of its owner's than the newest."""
        ...

    async def token(self, refused: int = 0) -> str | None:
        """One that is good for half a minute at least. `refused`: how many were refused just now, for one request; None where no other
        one is left to try.
        """
        ...


class OwnTokens(TokenSource, Protocol):
    """A store's own: without a shard they only ask which one lies somewhere."""

    def of(self, shard: ShardUid) -> TokenSource:
        """Those for one of its shards, of use to no other server than its own."""
        ...


class Peer:
    """A server and the tokens that it is asked with. Those who ask the same one share its connections, and what is known of it."""

    def __init__(self, server: Server, tokens: TokenSource) -> None:
        self.server = server
        self._tokens = tokens

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def broken(self) -> str | None:
        """Why nothing is asked of it now; None if it is well, as far as is known."""
        return self.server.broken

    @property
    def behind(self) -> bool:
        """Whether it takes no token of its owner's newest key, as far as is known."""
        return self._tokens.behind

    async def ask(self, ask: Ask) -> Reply:
        """The answer, or ShardError (`untouched` where nothing was sent), or ShareMissing."""
        if self.broken is not None:
            raise ShardError("missing", self.broken, untouched=True)
        refusal, refused = ShardError("failed", f"there is no token for {self.url}", untouched=True), 0
        while (token := await self._tokens.token(refused)) is not None:
            try:
                return await self.server.ask(ask, token)
            except TokenRefused as error:
                refusal, refused = error, refused + 1
        raise refusal
