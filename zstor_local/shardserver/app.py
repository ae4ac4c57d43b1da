"""The shard server's requests: paths and methods to what a space does; docs/shard-server.md.

Each request goes: bearer token → route → body, bounded and compared with its digest → the space, in a worker thread → answer. Errors
are JSON `{"type", "message"}`. Nothing of a token is ever logged.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Final, TypeVar, TypeVarTuple

import trio

from zstor_local import limits
from zstor_local.access.verify import TRUST_BYTES, TokenRefused, verify_trust
from zstor_local.errors import InvalidParams
from zstor_local.model.ids import ID_BYTES, NamespaceId, ShardUid, check_namespace
from zstor_local.shards import marker
from zstor_local.shards.http import wire
from zstor_local.shards.http.wire import BadWire, parse_id, parse_share_name
from zstor_local.shardserver.answer import SEND_BYTES, Answer, as_json, refused
from zstor_local.shardserver.connections import Give
from zstor_local.shardserver.guard import Guard, Guest
from zstor_local.shardserver.memory import Memory
from zstor_local.shardserver.metrics import Metrics
from zstor_local.shardserver.refusal import Refusal, of_system
from zstor_local.shardserver.request import Request, parse_range
from zstor_local.shardserver.space import Cursor, Space
from zstor_local.shardserver.trusting import TrustKeeper
from zstor_local.shardserver.volume import Volume

T = TypeVar("T")
Args = TypeVarTuple("Args")
WAIT_SECONDS: Final = 60  # a page that is waited for, at most
LIST_NAMES: Final = 10_000
LIST_BYTES: Final = limits.MIB  # that so many names take, in JSON
AT_ONCE_BYTES: Final = 64 * limits.KIB  # of a batch that is parsed in the event loop: up to that a worker thread takes longer
LETTER_BYTES: Final = 32 * limits.KIB

log = logging.getLogger("zstor.shardserver")


class App:
    """One server. Whoever waits for what comes is answered when `stop` is called."""

    def __init__(self, volume: Volume, guard: Guard, trust: TrustKeeper, metrics: Metrics) -> None:
        self._volume = volume
        self._guard = guard
        self._trust = trust
        self._metrics = metrics
        self._memory = Memory()
        self._news: dict[ShardUid, trio.Event] = {}  # set when the next batch was appended to a space
        self._stopping = False
        self._trusting = trio.Lock()  # one document at a time: an older one that is slower must not be the last

    def stop(self) -> None:
        """Let nobody wait any longer for what comes."""
        self._stopping = True
        for news in self._news.values():
            news.set()

    async def serve(self, request: Request, give: Give) -> None:
        """See connections.Application."""
        with self._metrics.counting(request.method) as outcome, request.held:
            try:
                answer = await self._answer(request)
            except Refusal as error:
                answer = refused(error)
            except BadWire as error:
                answer = refused(Refusal("bad_request", str(error)))
            except OSError as error:
                answer = refused(of_system(error))
            except Exception:
                log.exception("a request failed")
                answer = refused(Refusal("failed", "a fault of the shard server's; its log has more"))
            outcome(answer.status)
            await give(answer)

    async def _answer(self, request: Request) -> Answer:
        if request.path == ["health"] and request.method in ("GET", "HEAD"):
            return as_json({"status": "ok"})
        match request.method, request.path:
            case "GET", ["v1", uid, "letters", name]:  # sealed to whoever it is for: no token is asked, who has none comes for one
                space = await self._space(ShardUid(parse_id(uid)))
                return Answer(await self._in_space(space, space.letter, parse_id(name)))
        guest = self._guard.admit(request.headers.get("authorization"))
        match request.path:
            case ["metrics"] if request.method == "GET":
                return Answer(self._metrics.text(self._volume).encode(), kind="text/plain; version=0.0.4")
            case ["v1", "trust"] if request.method == "PUT":
                return await self._put_trust(request, guest)
            case ["v1", uid, *rest]:
                return await self._on_space(request, guest, ShardUid(parse_id(uid)), rest)
        raise Refusal("bad_request", "there is nothing of that name")

    async def _on_space(self, request: Request, guest: Guest, uid: ShardUid, rest: Sequence[str]) -> Answer:
        match request.method, rest:
            case "PUT", []:
                return await self._create(request, guest, uid)
            case "GET", []:
                return await self._describe(request, guest, uid)
            case "DELETE", []:
                return await self._remove(request, guest, uid)
            case "POST", ["writer"]:
                return await self._raise_fence(request, guest, uid)
            case "POST", ["log"]:
                return await self._append(request, guest, uid)
            case "GET", ["log"]:
                return await self._page(request, guest, uid)
            case "POST", ["superseded"]:
                return await self._supersede(request, guest, uid)
            case ("GET", ["unsettled"]):
                space = await self._space(uid)
                guest.check_owner(space)
                return Answer(await self._in_space(space, lambda: wire.pack_batch(space.unsettled())))
            case (("GET" | "HEAD"), ["shares", name]):
                return await self._read(request, guest, uid, name)
            case "GET", ["shares"]:
                return await self._list(request, guest, uid)
            case "PUT", ["uploads", name]:
                return await self._put_part(request, guest, uid, name)
            case "POST", ["uploads", name]:
                return await self._finish(request, guest, uid, name)
            case "DELETE", ["uploads", name]:
                return await self._abort(request, guest, uid, name)
            case "POST", ["free"]:
                return await self._free(request, guest, uid)
            case "PUT", ["letters"]:
                return await self._keep_letters(request, guest, uid)
            case "PUT", ["letters", name]:
                return await self._put_letter(request, guest, uid, parse_id(name))
            case "PUT", ["namespaces", name]:
                return await self._name(request, guest, uid, NamespaceId(parse_id(name)))
            case "DELETE", ["namespaces", name]:
                return await self._retire(request, guest, uid, NamespaceId(parse_id(name)))
        raise Refusal("method_not_allowed", "no such request")

    # --- Spaces ---

    async def _create(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        body = await request.body(marker.MAX_BYTES, self._memory, guest.bearer)
        if not guest.may_make(marker.claimed_shard(body)):
            raise Refusal("forbidden", "only the owner of a store may make its shards, each with a token for it")
        async with self._volume.lock(uid):
            await self._in_thread(self._volume.create, uid, guest.token.issuer, body)
        return Answer(status=204)

    async def _space(self, uid: ShardUid) -> Space:
        space = self._volume.spaces.get(uid)
        if space is None:
            async with self._volume.lock(uid):
                space = await self._in_thread(self._volume.find, uid)
        return space

    async def _describe(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._space(uid)
        guest.check_store(space)
        capacity = space.rooms.capacity(await self._in_thread(self._volume.capacity))
        return as_json(
            {
                "marker": space.marker.hex(),
                "writer": space.fence.writer,
                "committed": space.newest_committed,
                "total_bytes": capacity.total,
                "free_bytes": capacity.free,
                "used_bytes": sum(each.used_bytes for each in space.rooms),
                "namespaces": [
                    {
                        "id": each.id.hex(),
                        "name": each.name,
                        "quota_bytes": each.quota_bytes,
                        "used_bytes": each.used_bytes,
                        "large_shares": each.shares,
                        "unreadable": space.rooms.unreadable.get(each.id),
                    }
                    for each in (() if request.query.get("namespaces") == "0" else space.rooms)
                ],
            }
        )

    async def _remove(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._space(uid)
        guest.check_owner(space)
        async with self._volume.lock(uid):
            space.check_fence(request.fence())
            await self._in_thread(self._volume.remove, uid)
        return Answer(status=204)

    async def _raise_fence(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._space(uid)
        guest.check_owner(space)
        fence = request.fence()
        async with self._volume.lock(uid):
            await self._in_space(space, space.raise_fence, fence)
        return as_json({"writer": space.fence.writer, "committed": space.newest_committed})

    async def _put_trust(self, request: Request, guest: Guest) -> Answer:
        """A newer trust document of the bearer's issuer: it proves itself."""
        body = await request.body(TRUST_BYTES, self._memory, guest.bearer)
        async with self._trusting:
            try:
                known = self._guard.verifier.trusts[guest.token.issuer]
                trust = verify_trust(body.decode("ascii", "replace"), known)
            except TokenRefused as error:
                raise Refusal("bad_request", str(error)) from None
            await self._in_thread(self._trust.keep, trust.issuer, body)
            self._guard.verifier.trust(trust)
        return Answer(status=204)

    # --- Logs ---

    async def _append(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._space(uid)
        number = request.number("batch")
        fence = request.fence()
        guest.check_anywhere(space, "write")
        space.check_fence(fence)  # before anything is taken in: whoever has not taken the space over has nothing to send
        body = await request.body(wire.BATCH_BYTES_MAX, self._memory, guest.bearer)
        batch = wire.parse_batch(body) if len(body) <= AT_ONCE_BYTES else await self._in_thread(wire.parse_batch, body)
        for namespace in {scanned.entry.envelope.namespace for scanned in batch.entries}:
            guest.check(space, namespace, "write")
        if batch.freed:
            guest.check_owner(space)
        async with self._volume.lock(uid):
            await self._in_space(space, space.append, fence, number, batch)
        self._news.pop(uid, trio.Event()).set()
        return Answer(status=204)

    async def _page(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._space(uid)
        namespace = request.namespace()
        guest.check(space, namespace, "read")
        cursor = Cursor.parse(request.query.get("after", str(Cursor())))
        limit = request.number("limit", wire.PAGE_BYTES, most=wire.PAGE_BYTES)
        seconds = request.number("wait", 0, most=WAIT_SECONDS)
        deadline = trio.current_time() + seconds
        while True:
            news = self._news.setdefault(uid, trio.Event())
            with ExitStack() as looking:
                looking.enter_context(self._memory.holding(guest.bearer, limit))
                some, page, after = await self._in_space(space, _page, space, namespace, cursor, limit)
                if some or guest.expired or self._stopping or trio.current_time() >= deadline:
                    request.held.push(looking.pop_all())
                    return Answer(page, headers=[(wire.NEXT, str(after))])
            with request.waiting(), trio.move_on_at(deadline):
                await news.wait()
            guest.again().check(space, namespace, "read")  # it may have been revoked meanwhile

    async def _supersede(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space, namespace = await self._space(uid), request.must_namespace()
        guest.check_owner(space)
        space.check_fence(request.fence())
        sequences = wire.parse_sequences(await request.body(8 * wire.SUPERSEDED_MAX, self._memory, guest.bearer))
        async with self._volume.lock(uid):
            await self._in_space(space, space.supersede, namespace, sequences)
        return Answer(status=204)

    # --- Shares ---

    async def _read(self, request: Request, guest: Guest, uid: ShardUid, name: str) -> Answer:
        space, share = await self._space(uid), parse_share_name(name)
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
                return b"" if guest.expired else (await self._in_space(space, piece, at))[0]
            return b""

        first, offset, length, size = await self._in_space(space, piece, 0)
        if wanted is None:
            return Answer(first, pieces=pieces, length=length)
        if length == 0:
            return Answer(status=416, headers=[("content-range", f"bytes */{size}")])
        span = ("content-range", f"bytes {offset}-{offset + length - 1}/{size}")
        return Answer(first, 206, [span], pieces=pieces, length=length)

    async def _list(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._space(uid)
        guest.check_owner(space)
        limit = request.number("limit", 1_000, most=LIST_NAMES)
        names = space.list_small if request.query.get("small") == "1" else space.large.names
        request.held.enter_context(self._memory.holding(guest.bearer, LIST_BYTES))
        return as_json({"shares": await self._in_space(space, names, request.query.get("after", ""), limit)})

    async def _put_part(self, request: Request, guest: Guest, uid: ShardUid, name: str) -> Answer:
        space, share, namespace = await self._space(uid), parse_share_name(name), request.must_namespace()
        guest.check(space, namespace, "write")
        offset, fence = request.number("offset"), request.fence()
        space.check_fence(fence)
        body = await request.body(wire.PART_BYTES_MAX, self._memory, guest.bearer)
        await self._in_space(space, space.large.put_part, fence, namespace, share, offset, body)
        return Answer(status=204)

    async def _finish(self, request: Request, guest: Guest, uid: ShardUid, name: str) -> Answer:
        space, share, namespace = await self._space(uid), parse_share_name(name), request.must_namespace()
        guest.check(space, namespace, "write")
        await self._in_space(space, space.large.finish, request.fence(), namespace, share, request.number("length"))
        return Answer(status=201)

    async def _abort(self, request: Request, guest: Guest, uid: ShardUid, name: str) -> Answer:
        space, share = await self._space(uid), parse_share_name(name)
        guest.check(space, request.must_namespace(), "write")
        space.check_fence(request.fence())
        await self._in_space(space, space.large.abort, share, request.must_namespace())
        return Answer(status=204)

    async def _free(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space, namespace = await self._space(uid), request.namespace()
        guest.check(space, namespace, "delete")
        fence = request.fence()
        space.check_fence(fence)
        batch = await self._in_thread(wire.parse_batch, await request.body(wire.PART_BYTES_MAX, self._memory, guest.bearer))
        async with self._volume.lock(uid):
            await self._in_space(space, space.large.free, fence, namespace, batch.freed)
            await self._in_thread(self._volume.keep_room)
        return Answer(status=204)

    # --- Namespaces ---

    async def _name(self, request: Request, guest: Guest, uid: ShardUid, namespace: NamespaceId) -> Answer:
        space = await self._space(uid)
        guest.check_owner(space)
        try:
            members = json.loads(await request.body(4_096, self._memory, guest.bearer))
            name, issuer, quota = members["namespace"], members.get("issuer"), members.get("quota_bytes")
            check_namespace(name)
        except (ValueError, KeyError, TypeError, AttributeError, InvalidParams):
            raise Refusal("bad_request", "the body is JSON with namespace, and issuer and quota_bytes if there are any") from None
        if not isinstance(issuer, str | None) or not (quota is None or (type(quota) is int and quota >= 0)):
            raise Refusal("bad_request", "issuer is text, quota_bytes a number")
        async with self._volume.lock(uid):
            space.check_fence(request.fence())
            await self._in_space(space, space.rooms.describe, namespace, name, issuer, quota)
        return Answer(status=204)

    async def _retire(self, request: Request, guest: Guest, uid: ShardUid, namespace: NamespaceId) -> Answer:
        space = await self._space(uid)
        guest.check_owner(space)
        async with self._volume.lock(uid):
            space.check_fence(request.fence())
            await self._in_thread(space.retire, namespace)
        return Answer(status=204)

    # --- Letters ---

    async def _put_letter(self, request: Request, guest: Guest, uid: ShardUid, name: bytes) -> Answer:
        space = await self._space(uid)
        guest.check_owner(space)
        body = await request.body(LETTER_BYTES, self._memory, guest.bearer)
        async with self._volume.lock(uid):
            space.check_fence(request.fence())
            await self._in_space(space, space.put_letter, name, body)
        return Answer(status=204)

    async def _keep_letters(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._space(uid)
        guest.check_owner(space)
        names = wire.parse_ids(await request.body(ID_BYTES * wire.LETTERS_MAX, self._memory, guest.bearer))
        async with self._volume.lock(uid):
            space.check_fence(request.fence())
            await self._in_space(space, space.keep_letters, names)
        return Answer(status=204)

    # --- Worker threads ---

    async def _in_space(self, space: Space, work: Callable[[*Args], T], *args: *Args) -> T:
        """In a worker thread, while the space is there."""

        def done() -> T:
            with space.turns.using():
                return work(*args)

        return await self._in_thread(done)

    async def _in_thread(self, work: Callable[[*Args], T], *args: *Args) -> T:
        return await self._volume.runtime.threads.run(work, *args)


def _page(space: Space, namespace: NamespaceId | None, cursor: Cursor, limit: int) -> tuple[bool, bytes, Cursor]:
    """Whether there are entries behind a cursor, a page of them, and where they end."""
    batch, after = space.page(namespace, cursor, limit)
    return bool(batch.entries), wire.pack_batch(batch), after
