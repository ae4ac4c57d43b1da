"""Shares on a shard server: read by ranges, begun ahead if wanted; written in parts that go out while the next is made."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

from zstor_local.coding.share import FOOTER_BYTES, SHARE_HEADER_BYTES, ShareHeader, pack_share_header
from zstor_local.model.ids import NamespaceId, ShareId
from zstor_local.runtime import Buffer, Network, Pending
from zstor_local.shards.base import ShardError, ShareLate, ShareMissing
from zstor_local.shards.http.ask import Ask, Reply
from zstor_local.shards.http.peer import Peer
from zstor_local.shards.http.wire import DIGEST, PART_BYTES_MAX, digest, share_name
from zstor_local.shards.share_claims import Claiming, table_offset

PARTS_IN_FLIGHT: Final = 4  # of one share
PROOF_BYTES: Final = 32  # of a finished share that are read back


class Speaker(Protocol):
    """The shard as its shares need it: where they lie on the server, and what goes with a request that changes something."""

    @property
    def peer(self) -> Peer: ...
    @property
    def network(self) -> Network: ...
    @property
    def space(self) -> str: ...
    def writing(self) -> dict[str, str]:
        """Headers; ShardError if this opening of the shard may not write."""
        ...

    def fenced(self) -> dict[str, str]:
        """The same for what takes something back: whatever became of the opening since."""
        ...

    def failed(self, error: ShardError) -> ShardError:
        """Tell the shard what happened to it."""
        ...


async def read_range(peer: Peer, path: str, offset: int, length: int) -> bytes:
    """Bytes of a share's file or entry; fewer only at its end, where the server says so too."""
    if length == 0:
        return b""
    headers = {"range": f"bytes={offset}-{offset + length - 1}"}
    reply = await peer.ask(Ask("GET", path, headers=headers, expect=(206, 416), most=max(length, 4_096)))
    if reply.status == 416:
        return b""
    return _checked(peer, reply, offset, length)


async def has_share(peer: Peer, path: str) -> bool:
    """Whether a share lies there, whatever its bytes are. To HEAD a shard that is not there at all is no other answer than a share that
    is not: a read tells them apart, by a ShardError.
    """
    if (await peer.ask(Ask("HEAD", path, expect=(200, 404)))).status == 200:
        return True
    try:
        await read_range(peer, path, 0, 1)
    except ShareMissing:
        return False
    return True


def _checked(peer: Peer, reply: Reply, offset: int, length: int) -> bytes:
    """The body, if it is the range that was asked for."""
    span, _, size = reply.headers.get("content-range", "").removeprefix("bytes ").partition("/")
    if not size.isascii() or not size.isdecimal() or len(size) > 16:
        raise ShardError("failed", f"{peer.url} answers without a range")
    expected = min(length, int(size) - offset)
    if len(reply.body) != expected or span != f"{offset}-{offset + expected - 1}":
        raise ShardError("failed", f"{peer.url} answers another range than was asked for")
    return reply.body


class HttpShareReader(Claiming):
    """One share. Opening asks nothing: that it is missing shows at the first read."""

    def __init__(self, shard: Speaker, share: ShareId, *, small: bool, namespace: NamespaceId | None = None) -> None:
        """`namespace` is told by whoever may read only that one."""
        self._shard = shard
        query = [*(["small=1"] if small else []), *([f"namespace={namespace.hex()}"] if namespace else [])]
        self._path = f"{shard.space}/shares/{share_name(share)}{'?' if query else ''}{'&'.join(query)}"
        self._skip = 0 if small else SHARE_HEADER_BYTES
        self._small = small
        self._lock = threading.Lock()
        self._ahead: dict[tuple[int, int], Pending[bytes]] = {}

    def prefetch(self, offset: int, length: int) -> None:
        with self._lock:
            if (offset, length) not in self._ahead and self._shard.peer.broken is None:
                self._ahead[offset, length] = self._begin(offset, length)

    def read(self, offset: int, length: int, *, patient: bool = True) -> bytes:
        with self._lock:
            pending = self._ahead.get((offset, length)) or self._begin(offset, length)
            self._ahead[offset, length] = pending
        try:
            data = pending.wait(None if patient else self._shard.peer.server.patience)
        except TimeoutError:
            if not patient:
                raise ShareLate from None
            self._forget(offset, length)
            raise self._shard.failed(ShardError("missing", f"{self._shard.peer.url} is not asked any more")) from None
        except ShardError as error:
            self._forget(offset, length)
            raise self._shard.failed(error) from None
        except BaseException:
            self._forget(offset, length)
            raise
        self._forget(offset, length)
        return data

    def _begin(self, offset: int, length: int) -> Pending[bytes]:
        peer, path, at = self._shard.peer, self._path, self._skip + offset
        return self._shard.network.start(lambda: read_range(peer, path, at, length))

    def _forget(self, offset: int, length: int) -> None:
        with self._lock:
            self._ahead.pop((offset, length), None)

    def read_table(self, length: int) -> bytes:
        if self._small:
            raise ShareMissing  # a small share's table is always in its record
        return self._run(lambda: self._read_table(length))

    async def _read_table(self, length: int) -> bytes:
        peer = self._shard.peer
        ask = Ask("GET", self._path, headers={"range": f"bytes=-{FOOTER_BYTES}"}, expect=(206, 416), most=4_096)
        reply = await peer.ask(ask)
        size = reply.headers.get("content-range", "").rpartition("/")[2]
        if reply.status == 416 or not size.isascii() or not size.isdecimal() or len(size) > 16:
            raise ShareMissing
        return await read_range(peer, self._path, table_offset(reply.body, int(size), length), length)

    def _start(self) -> Buffer:
        return b"" if self._small else self._run(lambda: read_range(self._shard.peer, self._path, 0, SHARE_HEADER_BYTES))

    def _run(self, ask: Callable[[], Awaitable[bytes]]) -> bytes:
        try:
            return self._shard.network.run(ask)
        except ShardError as error:
            raise self._shard.failed(error) from None

    def close(self) -> None:
        """What is still on its way is of no use to anybody."""
        with self._lock:
            ahead, self._ahead = self._ahead, {}
        for pending in ahead.values():
            pending.cancel()


class HttpShareWriter:
    """A large share on its way in: parts go out while more are made, and all of them are there before it is finished."""

    def __init__(self, shard: Speaker, share: ShareId, namespace: NamespaceId, header: ShareHeader) -> None:
        self._shard = shard
        self._path = f"{shard.space}/uploads/{share_name(share)}?namespace={namespace.hex()}"
        self._read_path = f"{shard.space}/shares/{share_name(share)}"
        self._lock = threading.Lock()
        self._sent: deque[Pending[Reply]] = deque()
        self._over = False
        self._header = pack_share_header(header)
        self._put(0, self._header)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self._put(SHARE_HEADER_BYTES + offset, b"".join(buffers))

    def _put(self, offset: int, data: bytes) -> None:
        headers = self._shard.writing()
        for start in range(0, len(data), PART_BYTES_MAX):
            self._wait_for(PARTS_IN_FLIGHT - 1)
            part = data[start : start + PART_BYTES_MAX]
            ask = Ask("PUT", f"{self._path}&offset={offset + start}", part, {**headers, DIGEST: digest(part)})
            pending = self._shard.network.start(partial(self._shard.peer.ask, ask))
            with self._lock:
                self._sent.append(pending)

    def _wait_for(self, most: int) -> None:
        """Until at most so many parts are on their way."""
        while True:
            with self._lock:
                if len(self._sent) <= most:
                    return
                first = self._sent.popleft()
            self._answered(first)

    def _answered(self, pending: Pending[Reply]) -> None:
        try:
            pending.wait()
        except ShardError as error:
            raise self._shard.failed(error) from None
        except (ShareMissing, TimeoutError):
            raise self._shard.failed(ShardError("failed", f"{self._shard.peer.url} lost a share on its way in")) from None

    def finish(self, index: Buffer, blocks_length: int, table: Buffer) -> None:
        end = bytes(table) + bytes(index)
        length = SHARE_HEADER_BYTES + blocks_length + len(end)
        self._put(SHARE_HEADER_BYTES + blocks_length, end)
        self._wait_for(0)
        headers = self._shard.writing()
        ask = Ask("POST", f"{self._path}&length={length}", headers=headers, expect=(201,), durable=True, settles=length, safe=False)
        pending = self._shard.network.start(lambda: self._finish(ask, end, length))
        self._answered(pending)
        self._over = True

    async def _finish(self, ask: Ask, end: bytes, length: int) -> Reply:
        """Finish it, and look whether it is there: a server that only says so is found out at once."""
        peer = self._shard.peer
        reply = await peer.ask(ask)
        proof = end[-PROOF_BYTES:]
        found = await read_range(peer, self._read_path, length - len(proof), len(proof))
        if found != proof:
            raise ShardError("failed", f"{peer.url} says that it stored a share and does not have it")
        return reply

    def abort(self) -> None:
        if self._over:
            return
        self._over = True
        with self._lock:
            sent, self._sent = self._sent, deque()
        for pending in sent:  # a part that arrives behind the end would begin the share anew
            if self._shard.peer.broken is not None:
                pending.cancel()
            with suppress(ShardError, ShareMissing, TimeoutError):
                pending.wait()
        try:
            ask = Ask("DELETE", self._path, headers=self._shard.fenced())
            self._shard.network.run(lambda: self._shard.peer.ask(ask))
        except (ShardError, ShareMissing):
            pass  # the server forgets it when it is started again, or when the shard is opened again
