"""Requests to a space as a whole: made, described, taken over, removed; its namespaces, and the letters that its owner leaves there."""

from __future__ import annotations

import json
from typing import Final

from zstor_local import limits
from zstor_local.errors import InvalidParams
from zstor_local.model.ids import ID_BYTES, NamespaceId, ShardUid, check_namespace
from zstor_local.shards import marker
from zstor_local.shards.http import wire
from zstor_local.shardserver.answer import JSON, Answer, as_json
from zstor_local.shardserver.guard import Guest
from zstor_local.shardserver.memory import Memory
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.request import Request
from zstor_local.shardserver.rooms import Room
from zstor_local.shardserver.space import Space
from zstor_local.shardserver.spaces import Spaces
from zstor_local.shardserver.volume import Volume

LETTER_BYTES: Final = 32 * limits.KIB


class SpaceRequests:
    """What the owner alone asks for; letters are read by whoever knows their names."""

    def __init__(self, spaces: Spaces, memory: Memory) -> None:
        self._spaces = spaces
        self._memory = memory

    async def create(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        body = await request.body(marker.MAX_BYTES, self._memory, guest.bearer)
        if not guest.may_make(marker.claimed_shard(body)):
            raise Refusal("forbidden", "only the owner of a store may make its shards, each with a token for it")
        async with self._spaces.lock(uid):
            await self._spaces.in_thread(self._spaces.volume.create, uid, guest.token.issuer, body)
        return Answer(status=204)

    async def describe(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._spaces.find(uid)
        guest.check_store(space)
        namespaces = request.query.get("namespaces") != "0"
        return await self._spaces.use(space, _description, space, self._spaces.volume, namespaces)

    async def remove(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._spaces.find(uid)
        guest.check_owner(space)
        async with self._spaces.lock(uid):
            space.check_fence(request.fence())
            await self._spaces.in_thread(self._spaces.volume.remove, uid)
        return Answer(status=204)

    async def raise_fence(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._spaces.find(uid)
        guest.check_owner(space)
        fence = request.fence()
        async with self._spaces.lock(uid):
            await self._spaces.use(space, space.raise_fence, fence)
        return as_json({"writer": space.fence.writer, "committed": space.newest_committed})

    # --- Namespaces ---

    async def name(self, request: Request, guest: Guest, uid: ShardUid, namespace: NamespaceId) -> Answer:
        space = await self._spaces.find(uid)
        guest.check_owner(space)
        try:
            members = json.loads(await request.body(4_096, self._memory, guest.bearer))
            name, issuer, quota = members["namespace"], members.get("issuer"), members.get("quota_bytes")
            check_namespace(name)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidParams):
            raise Refusal("bad_request", "the body is JSON with namespace, and issuer and quota_bytes if there are any") from None
        if not isinstance(issuer, str | None) or not (quota is None or (type(quota) is int and quota >= 0)):
            raise Refusal("bad_request", "issuer is text, quota_bytes a number")
        async with self._spaces.lock(uid):
            space.check_fence(request.fence())
            await self._spaces.use(space, space.rooms.describe, namespace, name, issuer, quota)
        return Answer(status=204)

    async def retire(self, request: Request, guest: Guest, uid: ShardUid, namespace: NamespaceId) -> Answer:
        space = await self._spaces.find(uid)
        guest.check_owner(space)
        async with self._spaces.lock(uid):
            space.check_fence(request.fence())
            await self._spaces.in_thread(space.retire, namespace)
        return Answer(status=204)

    # --- Letters ---

    async def letter(self, uid: ShardUid, name: bytes) -> Answer:
        """Sealed to whoever it is for."""
        space = await self._spaces.find(uid)
        return Answer(await self._spaces.use(space, space.letter, name))

    async def put_letter(self, request: Request, guest: Guest, uid: ShardUid, name: bytes) -> Answer:
        space = await self._spaces.find(uid)
        guest.check_owner(space)
        body = await request.body(LETTER_BYTES, self._memory, guest.bearer)
        async with self._spaces.lock(uid):
            space.check_fence(request.fence())
            await self._spaces.use(space, space.put_letter, name, body)
        return Answer(status=204)

    async def keep_letters(self, request: Request, guest: Guest, uid: ShardUid) -> Answer:
        space = await self._spaces.find(uid)
        guest.check_owner(space)
        names = wire.parse_ids(await request.body(ID_BYTES * wire.LETTERS_MAX, self._memory, guest.bearer))
        async with self._spaces.lock(uid):
            space.check_fence(request.fence())
            await self._spaces.use(space, space.keep_letters, names)
        return Answer(status=204)


def _description(space: Space, volume: Volume, namespaces: bool) -> Answer:
    """What a space is and holds. In a worker thread: there may be tens of thousands of namespaces, each worded by itself, for a thread
    lets nobody else go on while it words them all at once.
    """
    capacity = space.rooms.capacity(volume.capacity())
    whole = {
        "marker": space.marker.hex(),
        "writer": space.fence.writer,
        "committed": space.newest_committed,
        "total_bytes": capacity.total,
        "free_bytes": capacity.free,
        "used_bytes": sum(each.used_bytes for each in space.rooms),
    }
    each = [json.dumps(_of_room(space, room)) for room in space.rooms] if namespaces else []
    return Answer(f'{json.dumps(whole)[:-1]}, "namespaces": [{", ".join(each)}]}}'.encode(), kind=JSON)


def _of_room(space: Space, room: Room) -> dict[str, object]:
    return {
        "id": room.id.hex(),
        "name": room.name,
        "quota_bytes": room.quota_bytes,
        "used_bytes": room.used_bytes,
        "large_shares": room.shares,
        "unreadable": space.rooms.unreadable.get(room.id),
    }
