"""Requests to the logs of a space: batches that come, pages that go, and what of them need not be kept."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final
from weakref import WeakValueDictionary

import trio

from zstor_local import limits
from zstor_local.model.ids import NamespaceId, ShardUid
from zstor_local.shards.http import wire
from zstor_local.shardserver.answer import Answer
from zstor_local.shardserver.guard import Guest
from zstor_local.shardserver.memory import Memory
from zstor_local.shardserver.request import Request
from zstor_local.shardserver.space import Cursor, Space
from zstor_local.shardserver.spaces import Spaces

WAIT_SECONDS: Final = 60  # a page that is waited for, at most
AT_ONCE_BYTES: Final = 64 * limits.KIB  # of a batch that is parsed in the event loop: up to that a worker thread takes longer


class LogRequests:
    """Whoever waits for what comes is answered when `stop` is called."""

    def __init__(self, spaces: Spaces, memory: Memory) -> None:
        self._spaces = spaces
        self._memory = memory
        # Set when the next batch was appended to a space that has something of a namespace (None: of any), while somebody waits for it.
        self._news: WeakValueDictionary[tuple[ShardUid, NamespaceId | None], trio.Event] = WeakValueDictionary()
        self._stopping = False

    def stop(self) -> None:
        """Let nobody wait any longer for what comes."""
        self._stopping = True
        for news in [*self._news.values()]:
            news.set()

    async def append(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._spaces.find(uid)
        number = request.number("batch")
        fence = request.fence()
        guest.check_anywhere(space, "write")
        space.check_fence(fence)  # before anything is taken in: whoever has not taken the space over has nothing to send
        body = await request.body(wire.BATCH_BYTES_MAX, self._memory, guest.bearer)
        request.held.enter_context(self._memory.holding(guest.bearer, wire.parsed_bytes(body)))
        batch = wire.parse_batch(body) if len(body) <= AT_ONCE_BYTES else await self._spaces.in_thread(wire.parse_batch, body)
        namespaces = {scanned.entry.envelope.namespace for scanned in batch.entries}
        for namespace in namespaces:
            guest.check(space, namespace, "write")
        if batch.freed:
            guest.check_owner(space)
        async with self._spaces.lock(uid):
            await self._spaces.use(space, space.append, fence, number, batch)
        for changed in (*namespaces, None):
            if (news := self._news.pop((uid, changed), None)) is not None:
                news.set()
        return Answer(status=204)

    async def page(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._spaces.find(uid)
        namespace = request.namespace()
        guest.check(space, namespace, "read")
        cursor = Cursor.parse(request.query.get("after", str(Cursor())))
        limit = request.number("limit", wire.PAGE_BYTES, most=wire.PAGE_BYTES)
        seconds = request.number("wait", 0, most=WAIT_SECONDS)
        deadline = trio.current_time() + seconds
        while True:
            news = self._news.setdefault((uid, namespace), trio.Event())
            with ExitStack() as looking:
                looking.enter_context(self._memory.holding(guest.bearer, limit))
                some, page, after = await self._spaces.use(space, _page, space, namespace, cursor, limit)
                if some or guest.expired or self._stopping or trio.current_time() >= deadline:
                    request.held.push(looking.pop_all())
                    return Answer(page, headers=[(wire.NEXT, str(after))])
            with request.waiting(), trio.move_on_at(deadline):
                await news.wait()
            guest.again().check(space, namespace, "read")  # it may have been revoked meanwhile

    async def unsettled(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._spaces.find(uid)
        guest.check_owner(space)
        request.held.enter_context(self._memory.holding(guest.bearer, wire.UNSETTLED_BYTES_MAX))
        return Answer(await self._spaces.use(space, lambda: wire.pack_batch(space.unsettled())))

    async def supersede(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space, namespace = await self._spaces.find(uid), request.must_namespace()
        guest.check_owner(space)
        fence = request.fence()
        space.check_fence(fence)
        sequences = wire.parse_sequences(await request.body(8 * wire.SUPERSEDED_MAX, self._memory, guest.bearer))
        async with self._spaces.lock(uid):
            space.check_fence(fence)  # a later life may have taken it over while these came
            await self._spaces.use(space, space.supersede, namespace, sequences)
        return Answer(status=204)


def _page(space: Space, namespace: NamespaceId | None, cursor: Cursor, limit: int) -> tuple[bool, bytes, Cursor]:
    """Whether there are entries behind a cursor, a page of them, and where they end."""
    batch, after = space.page(namespace, cursor, limit)
    return bool(batch.entries), wire.pack_batch(batch), after
