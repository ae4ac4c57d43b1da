"""A shard on a shard server, one opening of it: whatever goes wrong ends the opening, and the shard is opened anew when it is back."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from zstor_local.coding.share import ShareHeader
from zstor_local.model.ids import NamespaceId, ShareId
from zstor_local.model.policy import Policy
from zstor_local.model.record import Envelope
from zstor_local.model.storewide import ShardEntry
from zstor_local.runtime import Buffer, Network, Randomness
from zstor_local.shards.base import (
    Capacity,
    Entry,
    Flushable,
    Notices,
    ScannedEntry,
    Segments,
    ShardError,
    ShardState,
    ShareMissing,
    ShareReader,
)
from zstor_local.shards.http.about import ABOUT_BYTES, About, ask_about
from zstor_local.shards.http.ask import Ask
from zstor_local.shards.http.outgoing import FreshShare, Outgoing
from zstor_local.shards.http.pages import read_batch, read_log, read_names
from zstor_local.shards.http.peer import Peer
from zstor_local.shards.http.share import HttpShareReader, HttpShareWriter, has_share
from zstor_local.shards.http.wire import (
    API,
    DIGEST,
    FENCE,
    SUPERSEDED_MAX,
    UNSETTLED_BYTES_MAX,
    Batch,
    Fence,
    digest,
    pack_batch,
    pack_sequences,
    share_name,
)

T = TypeVar("T")


class HttpShard:
    """See the laws of shards.base.Shard."""

    on_disk: Flushable | None = None

    def __init__(
        self, entry: ShardEntry, url: str, peer: Peer, space: str, network: Network, about: About, opened: Fence,
        prove: Callable[[], bool],
    ) -> None:  # fmt: skip
        """`about` is what its server has said of it, `opened` the fence of this opening but for the writer; `prove` tells what to read
        back.
        """
        self.entry = entry
        self.url = url
        self.peer = peer
        self.space = space
        self.network = network
        self._opened = opened
        self._fence: Fence | None = None
        self._lost: tuple[ShardState, str] | None = None
        self._outgoing = Outgoing(self, prove)
        self._writer, self._committed = about.writer, about.committed

    @property
    def number(self) -> int:
        return self.entry.number

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def group(self) -> str:
        return self.entry.group or self.peer.server.host

    # --- How it is ---

    def start(self, writer: int, randomness: Randomness) -> None:
        self._fence = fence = replace(self._opened, writer=writer)
        ask = Ask("POST", f"{self.space}/writer", headers={FENCE: str(fence)}, expect=(200,), most=ABOUT_BYTES)
        try:
            self.network.run(lambda: self.peer.ask(ask))
        except ShardError as error:
            self.failed(error)
        except ShareMissing:
            self.failed(ShardError("failed", f"{self.url} knows no writers"))

    def segments(self) -> Segments | None:
        return None  # its server sees to its log

    def newest_writer(self) -> int:
        return self._writer

    def newest_committed(self) -> int:
        return max(self._committed, self._outgoing.committed)

    def recent_state(self) -> ShardState:
        return self.check()

    def unsettled(self) -> Sequence[Envelope]:
        ask = Ask("GET", f"{self.space}/unsettled", expect=(200,), most=UNSETTLED_BYTES_MAX)
        try:
            return [each.entry.envelope for each in read_batch(self.url, self._run(lambda: self.peer.ask(ask))).entries]
        except ShardError as error:
            raise self.failed(error) from None

    def check(self) -> ShardState:
        if self._lost is None and self.peer.broken is not None:
            self._lost = "missing", self.peer.broken
        return "ok" if self._lost is None else self._lost[0]

    def may_return(self) -> bool:
        return self.peer.broken is None

    def capacity(self) -> Capacity:
        known = self.newest_committed()
        about = self._run(lambda: ask_about(self.peer, self.space))
        if about.committed < known:  # it was started again, and nobody has noticed
            raise self.failed(ShardError("failed", f"{self.url} does not hold what was written there"))
        return about.capacity

    def last_error(self) -> str | None:
        return None if self._lost is None else self._lost[1]

    def failed(self, error: ShardError) -> ShardError:
        """What a request met; anything but a full server ends this opening."""
        if error.state != "full" and self._lost is None:
            self._lost = error.state, str(error)
        return error

    def writing(self) -> dict[str, str]:
        self._must_be_there()
        return self.fenced()

    def fenced(self) -> dict[str, str]:
        if self._fence is None:
            raise ShardError("failed", f"{self.url} was never started", untouched=True)
        return {FENCE: str(self._fence)}

    def _must_be_there(self) -> None:
        state = self.check()
        if state != "ok":
            raise ShardError(state, self.last_error() or state, untouched=True)

    # --- The log ---

    def append(self, entries: Sequence[Entry], committed: int) -> None:
        self.writing()
        self._outgoing.append(entries, committed)

    def start_flush(self) -> None:
        if self._lost is None:
            self._outgoing.send()

    def flush(self) -> None:
        if not self._outgoing.under_way:  # what is on its way already may arrive, whatever became of the shard since
            self._must_be_there()
            self._outgoing.send()  # also if another thread loses the shard just now: nothing that waits may pass for flushed
        self._outgoing.wait()

    def scan(self) -> Iterator[ScannedEntry]:
        try:
            yield from read_log(self.url, f"{self.space}/log?", lambda ask: self._run(lambda: self.peer.ask(ask)))
        except ShardError as error:
            raise self.failed(error) from None

    def records(self) -> Iterator[bytes]:
        return (scanned.entry.envelope.pack() for scanned in self.scan())

    # --- Shares ---

    def begin(self, share: ShareId, namespace: NamespaceId, policy: Policy) -> HttpShareWriter:
        header = ShareHeader(share.index, policy.k, policy.m, policy.padding, share.version, namespace)
        return HttpShareWriter(self, share, namespace, header)

    def open_share(self, share: ShareId, *, small: bool) -> ShareReader:
        fresh = self._outgoing.fresh(share) if small else None
        return HttpShareReader(self, share, small=small) if fresh is None else FreshShare(fresh)

    def peek(self, share: ShareId, offset: int, length: int) -> Buffer | None:
        fresh = self._outgoing.fresh(share)
        return None if fresh is None else fresh[offset : offset + length]

    def tell(self, notices: Notices) -> bool:
        any(map(self._takes, notices.trust))  # if none it has this document already, or a newer one
        self._run(lambda: ask_about(self.peer, self.space))  # with a token that it took before, unless that counts no more
        headers = self.writing()
        for notice in notices.namespaces:
            members = {"namespace": notice.name, "issuer": notice.issuer}
            body = json.dumps(members).encode()
            ask = Ask("PUT", f"{self.space}/namespaces/{notice.id.hex()}", body, {**headers, DIGEST: digest(body)})
            self._run(partial(self.peer.ask, ask))
        return not self.peer.behind

    def _takes(self, document: str) -> bool:
        """Whether it takes the document, signed as this one is."""
        body = document.encode()
        try:
            self.network.run(lambda: self.peer.ask(Ask("PUT", f"{API}/trust", body, {DIGEST: digest(body)})))
        except ShardError as error:
            if error.code != "bad_request":
                raise self.failed(error) from None
            return False
        except ShareMissing:
            raise self.failed(ShardError("failed", f"{self.url} answers something else than was asked")) from None
        return True

    def retire(self, namespace: NamespaceId) -> None:
        ask = Ask("DELETE", f"{self.space}/namespaces/{namespace.hex()}", headers=self.writing(), durable=True)
        self._run(lambda: self.peer.ask(ask))

    def supersede(self, namespace: NamespaceId, sequences: Sequence[int]) -> None:
        path = f"{self.space}/superseded?namespace={namespace.hex()}"
        for start in range(0, len(sequences), SUPERSEDED_MAX):
            body = pack_sequences(sequences[start : start + SUPERSEDED_MAX])
            self._run(partial(self.peer.ask, Ask("POST", path, body, {**self.writing(), DIGEST: digest(body)})))

    def has(self, share: ShareId, *, small: bool) -> bool:
        path = f"{self.space}/shares/{share_name(share)}{'?small=1' if small else ''}"
        return self._run(lambda: has_share(self.peer, path))

    def held(self, *, small: bool) -> Iterator[ShareId]:
        try:
            path = f"{self.space}/shares?{'small=1&' if small else ''}"
            yield from read_names(self.url, path, lambda ask: self._run(lambda: self.peer.ask(ask)))
        except ShardError as error:
            raise self.failed(error) from None

    def free(self, shares: Sequence[ShareId], *, small: bool) -> None:
        headers = self.writing()
        if small:
            self._outgoing.free(shares)
            return
        body = pack_batch(Batch((), shares))
        ask = Ask("POST", f"{self.space}/free", body, {**headers, DIGEST: digest(body)}, durable=True)
        self._run(lambda: self.peer.ask(ask))

    def settle(self, *, small: bool) -> None:
        self._must_be_there()
        if small:
            self.flush()

    def _run(self, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            return self.network.run(ask)
        except ShardError as error:
            raise self.failed(error) from None
        except ShareMissing:
            raise self.failed(ShardError("failed", f"{self.url} answers something else than was asked")) from None

    def close(self) -> None:
        self._lost = self._lost or ("missing", f"{self.url} was closed")
        self._outgoing.cancel()
