"""Requests for shares: read, listed, taken in part by part, freed."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from zstor_local import limits
from zstor_local.model.ids import ShardUid
from zstor_local.shards.http import wire
from zstor_local.shards.http.wire import parse_share_name
from zstor_local.shardserver.answer import SEND_BYTES, Answer, as_json
from zstor_local.shardserver.guard import Guest
from zstor_local.shardserver.memory import Memory
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.request import Request, parse_range
from zstor_local.shardserver.spaces import Spaces

LIST_NAMES: Final = 10_000
LIST_BYTES: Final = limits.MIB  # that so many names take, in JSON


class ShareRequests:
    """Large shares, and small ones that lie in logs."""

    def __init__(self, spaces: Spaces, memory: Memory) -> None:
        self._spaces = spaces
        self._memory = memory

    async def read(self, request: Request, guest: Guest, uid: ShardUid, name: str) -> Answer:
        space, share = await self._spaces.find(uid), parse_share_name(name)
        namespace = request.namespace()
        guest.check(space, namespace, "read")
        wanted, small = request.headers.get("range"), request.query.get("small") == "1"
        most = SEND_BYTES if request.method == "GET" else 0
        request.held.enter_context(self._memory.holding(guest.bearer, most))

        def piece(at: int) -> tuple[bytes, int, int, int]:
            """Some of what was asked for, `at` bytes in it; where that begins in the share, its length, and the share's."""
            with space.opened(namespace, share, small=small) as (size, read):
                offset, length = (0, size) if wanted is None else parse_range(wanted, size)
                return read(offset + at, min(length - at, most)), offset, length, size

        async def pieces(at: int) -> bytes:
            """While a long answer goes out the token may expire or be revoked, and the share may be freed."""
            with suppress(Refusal):
                guest.again().check(space, namespace, "read")
                return b"" if guest.expired else (await self._spaces.use(space, piece, at))[0]
            return b""

        first, offset, length, size = await self._spaces.use(space, piece, 0)
        if wanted is None:
            return Answer(first, pieces=pieces, length=length)
        if length == 0:
            return Answer(status=416, headers=[("content-range", f"bytes */{size}")])
        span = ("content-range", f"bytes {offset}-{offset + length - 1}/{size}")
        return Answer(first, 206, [span], pieces=pieces, length=length)

    async def list(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._spaces.find(uid)
        guest.check_owner(space)
        limit = request.number("limit", 1_000, most=LIST_NAMES)
        names = space.list_small if request.query.get("small") == "1" else space.large.names
        request.held.enter_context(self._memory.holding(guest.bearer, LIST_BYTES))
        return as_json({"shares": await self._spaces.use(space, names, request.query.get("after", ""), limit)})

    async def put_part(self, request: Request, guest: Guest, uid: ShardUid, name: str) -> Answer:
        space, share, namespace = await self._spaces.find(uid), parse_share_name(name), request.must_namespace()
        guest.check(space, namespace, "write")
        offset, fence = request.number("offset"), request.fence()
        space.check_fence(fence)
        body = await request.body(wire.PART_BYTES_MAX, self._memory, guest.bearer)
        await self._spaces.use(space, space.large.put_part, fence, namespace, share, offset, body)
        return Answer(status=204)

    async def finish(self, request: Request, guest: Guest, uid: ShardUid, name: str) -> Answer:
        space, share, namespace = await self._spaces.find(uid), parse_share_name(name), request.must_namespace()
        guest.check(space, namespace, "write")
        await self._spaces.use(space, space.large.finish, request.fence(), namespace, share, request.number("length"))
        return Answer(status=201)

    async def abort(self, request: Request, guest: Guest, uid: ShardUid, name: str) -> Answer:
        space, share = await self._spaces.find(uid), parse_share_name(name)
        guest.check(space, request.must_namespace(), "write")
        space.check_fence(request.fence())
        await self._spaces.use(space, space.large.abort, share, request.must_namespace())
        return Answer(status=204)

    async def free(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space, namespace = await self._spaces.find(uid), request.namespace()
        guest.check(space, namespace, "delete")
        fence = request.fence()
        space.check_fence(fence)
        body = await request.body(wire.PART_BYTES_MAX, self._memory, guest.bearer)
        request.held.enter_context(self._memory.holding(guest.bearer, wire.parsed_bytes(body)))
        batch = await self._spaces.in_thread(wire.parse_batch, body)
        async with self._spaces.lock(uid):
            await self._spaces.use(space, space.large.free, fence, namespace, batch.freed)
            await self._spaces.in_thread(self._spaces.volume.keep_room)
        return Answer(status=204)
