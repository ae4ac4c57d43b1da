"""What a shard server gives page by page: the entries of its logs, the names of its shares. No end of them is followed in circles."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Final

from zstor_local.model.ids import ShareId
from zstor_local.shards.base import ScannedEntry, ShardError
from zstor_local.shards.http.ask import Ask, Reply
from zstor_local.shards.http.wire import BEGINNING, NEXT, PAGE_BYTES, BadWire, Batch, cursor, parse_batch, parse_share_name

LIST_NAMES: Final = 10_000  # in a page
LIST_BYTES: Final = 1 << 20


def read_log(url: str, path: str, ask: Callable[[Ask], Reply]) -> Iterator[ScannedEntry]:
    """The entries that a server sends under the path, which ends where the cursor belongs; ShardError for anything else."""
    after = BEGINNING
    while True:
        reply = ask(Ask("GET", f"{path}after={after}", expect=(200,), most=2 * PAGE_BYTES))
        batch, following = read_batch(url, reply), reply.headers.get(NEXT, "")
        yield from batch.entries
        if not batch.entries or following == after:
            return
        if not cursor(after) < cursor(following):
            raise ShardError("failed", f"{url} sends its log in circles")
        after = following


def read_batch(url: str, reply: Reply) -> Batch:
    """The batch that a server sends; ShardError for anything else."""
    try:
        return parse_batch(reply.body)
    except BadWire as error:
        raise ShardError("failed", f"{url}: {error}") from None


def read_names(url: str, path: str, ask: Callable[[Ask], Reply]) -> Iterator[ShareId]:
    """The shares that a server names under the path, which ends where another parameter belongs; ShardError for anything else."""
    after = ""
    while True:
        reply = ask(Ask("GET", f"{path}after={after}&limit={LIST_NAMES}", expect=(200,), most=LIST_BYTES))
        try:
            names: list[str] = [*json.loads(reply.body)["shares"]]
            shares = [parse_share_name(name) for name in names]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ShardError("failed", f"{url} lists something that is no share") from None
        if any(name <= after for name in names):
            raise ShardError("failed", f"{url} lists shares in circles")
        yield from shares
        if not names:
            return
        after = max(names)
