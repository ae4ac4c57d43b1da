"""What goes to the logs of a shard server: entries and freed shares wait for a flush, which sends them as one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from zstor_local.model.ids import ShareId
from zstor_local.runtime import Pending
from zstor_local.shards.base import Entry, ScannedEntry, ShardError, ShareMissing
from zstor_local.shards.http.ask import Ask
from zstor_local.shards.http.share import Speaker, read_range
from zstor_local.shards.http.wire import DIGEST, Batch, digest, pack_batch, share_name


class Outgoing:
    """Of one opening of a shard. `prove` tells of which batches a share is read back: a server that only says that it stored something
    is found out.
    """

    def __init__(self, shard: Speaker, prove: Callable[[], bool]) -> None:
        self._shard = shard
        self._prove = prove
        self._entries: list[ScannedEntry] = []
        self._freed: list[ShareId] = []
        self._sent: Pending[None] | None = None
        self._fresh: dict[ShareId, bytes] = {}  # small shares that were appended and not flushed
        self._batches = 0
        self.committed = 0  # how far all is committed, as the newest record that was flushed tells

    def append(self, entries: Sequence[Entry], committed: int) -> None:
        self._entries += [ScannedEntry(entry, committed) for entry in entries]
        for entry in entries:
            if entry.share_index is not None:
                self._fresh[_share_of(entry)] = entry.share

    def free(self, shares: Sequence[ShareId]) -> None:
        self._freed += shares

    def fresh(self, share: ShareId) -> bytes | None:
        """A small share that was not flushed yet. Asked by readers in other threads."""
        return self._fresh.get(share)  # one look: the committer's thread takes it away meanwhile

    @property
    def under_way(self) -> bool:
        """Whether a batch was sent and not waited for."""
        return self._sent is not None

    def send(self) -> None:
        """Begin to send what waits."""
        if self._sent is None and (self._entries or self._freed):
            batch, self._entries, self._freed = Batch(self._entries, self._freed), [], []
            body = pack_batch(batch)  # here, and not in the event loop: there may be much of it
            named = digest(body)
            self._sent = self._shard.network.start(lambda: self._send(batch, body, named))

    def wait(self) -> None:
        """Until what was sent is flushed; ShardError where that is not known."""
        sent, self._sent = self._sent, None
        if sent is None:
            return
        try:
            sent.wait()
        except ShardError as error:
            raise self._shard.failed(error) from None
        except (ShareMissing, TimeoutError):
            lie = ShardError("failed", f"{self._shard.peer.url} says that it stored shares and does not have them")
            raise self._shard.failed(lie) from None
        finally:
            self._fresh.clear()

    async def _send(self, batch: Batch, body: bytes, named: str) -> None:
        self._batches += 1
        headers = {**self._shard.fenced(), DIGEST: named}
        path = f"{self._shard.space}/log?batch={self._batches}"
        await self._shard.peer.ask(Ask("POST", path, body, headers, durable=True))
        for scanned in batch.entries:
            if scanned.entry.envelope.sequence > scanned.committed:  # not one that was owed: of those a server remembers less
                self.committed = max(self.committed, scanned.committed)
        freed = {*batch.freed}
        shares = [each.entry for each in batch.entries if each.entry.share and _share_of(each.entry) not in freed]
        if shares and self._prove():
            await self._read_back(shares[0])

    async def _read_back(self, entry: Entry) -> None:
        peer, name = self._shard.peer, share_name(_share_of(entry))
        found = await read_range(peer, f"{self._shard.space}/shares/{name}?small=1", 0, len(entry.share))
        if found != entry.share:
            raise ShardError("failed", f"{peer.url} says that it stored a share and has another one")

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        if self._sent is not None:
            self._sent.cancel()


class FreshShare:
    """A small share that is on its way to the server, as a reader has it."""

    def __init__(self, share: bytes) -> None:
        self._share = share

    def prefetch(self, offset: int, length: int) -> None:
        pass

    def read(self, offset: int, length: int, *, patient: bool = True) -> bytes:
        return self._share[offset : offset + length]

    def read_table(self, length: int) -> bytes:
        raise ShareMissing

    def claimed_version(self) -> None:
        return None

    def claimed_namespace(self) -> None:
        return None

    def close(self) -> None:
        pass


def _share_of(entry: Entry) -> ShareId:
    """The small share that comes with an entry which has one."""
    return ShareId(entry.envelope.version, entry.share_index or 0)
