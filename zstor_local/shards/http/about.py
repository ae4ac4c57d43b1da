"""What a shard server tells of a space."""

from __future__ import annotations

import json
from typing import Final

from zstor_local.shards.base import Capacity, ShardError
from zstor_local.shards.http.ask import Ask
from zstor_local.shards.http.peer import Peer
from zstor_local.shards.http.wire import COUNT_MAX

ABOUT_BYTES: Final = 1 << 20


class About:
    """Nothing of it is believed but the marker, which proves itself."""

    def __init__(self, peer: Peer, body: bytes) -> None:
        """ShardError for what is none."""
        try:
            members = json.loads(body)
            self.marker = bytes.fromhex(members["marker"])
            self.writer = int(members["writer"])
            self.committed = int(members["committed"])
            self.capacity = Capacity(int(members["total_bytes"]), int(members["free_bytes"]))
            if not all(0 <= each <= COUNT_MAX for each in (self.writer, self.committed, self.capacity.total, self.capacity.free)):
                raise ValueError("a count is none")
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            raise ShardError("failed", f"{peer.url} tells nothing of the shard that can be understood") from None


async def ask_about(peer: Peer, space: str) -> About:
    reply = await peer.ask(Ask("GET", f"{space}?namespaces=0", expect=(200,), most=ABOUT_BYTES))  # there may be any number of them
    return About(peer, reply.body)
