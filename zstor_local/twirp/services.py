"""vac.cas.CAS and vac.ns.NS: what each route takes, does and gives. Messages in, messages out; no HTTP.

The ids of contents are binary CIDs here (36 bytes); the bare 32 bytes of a SHA-256, and an id as text, are understood too. Content is
pinned for the owner `user`, as by `cas.upload`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from zstor_local import limits
from zstor_local.content.cas import Cas, Owner
from zstor_local.content.contents import content_id
from zstor_local.content.names import Names
from zstor_local.content.pins import USER
from zstor_local.errors import InvalidParams, TooLarge
from zstor_local.formats import cid as cids
from zstor_local.formats.cid import DIGEST_BYTES, RAW, BadCid, Cid
from zstor_local.formats.messages import ADDRESS, CONTENT, NAME_CONTENT, NAME_UPDATE, QUERY, RESPONSE
from zstor_local.formats.protobuf import Message, Schema
from zstor_local.store.sources import BytesSource

PREFIX: Final = "/twirp/"


RoomFor = Callable[[int], Awaitable[None]]  # waits until so much of an answer may be held beside what other clients have yet to take


@dataclass(frozen=True, slots=True)
class Route:
    """A method: what it takes and what it does with it; a ZstorError if it refuses."""

    request: Schema
    run: Callable[[Message, RoomFor], Awaitable[Message]]


def routes(cas: Cas, names: Names) -> Mapping[str, Route]:
    """Every method by its path."""

    async def add(request: Message, _: RoomFor) -> Message:
        data = request.blob("data")
        if len(data) > limits.INLINE_VALUE_BYTES:
            raise TooLarge(f"the content has {len(data)} bytes", limit=limits.INLINE_VALUE_BYTES, hint="zstor cas put")
        stored = await cas.upload(BytesSource(data), Owner(USER, "twirp"))
        return ADDRESS.make(id=stored.id.binary)

    async def get(request: Message, room: RoomFor) -> Message:
        cid = _cid(request.blob("id"))
        size = cas.contents.find(cid).size
        if size > limits.INLINE_VALUE_BYTES:
            raise TooLarge(f"the content has {size} bytes", limit=limits.INLINE_VALUE_BYTES, hint="zstor cas get")
        await room(size)
        return CONTENT.make(data=await cas.read(cas.contents.find(cid)))  # it may have been collected meanwhile

    async def update(request: Message, _: RoomFor) -> Message:
        await names.update(request.text("name"), request.blob("content"))
        return RESPONSE.make(data=b"ok")

    async def fetch(request: Message, _: RoomFor) -> Message:
        return NAME_CONTENT.make(data=names.fetch(request.text("name")).value)

    return {
        f"{PREFIX}vac.cas.CAS/Add": Route(CONTENT, add),
        f"{PREFIX}vac.cas.CAS/Get": Route(ADDRESS, get),
        f"{PREFIX}vac.ns.NS/Update": Route(NAME_UPDATE, update),
        f"{PREFIX}vac.ns.NS/Fetch": Route(QUERY, fetch),
    }


def _cid(data: bytes) -> Cid:
    if len(data) == DIGEST_BYTES:
        return Cid(RAW, data)
    try:
        return cids.from_binary(data)
    except BadCid:
        pass
    if not data.isascii():
        raise InvalidParams("that is not a content id", hint="give the bytes that Add answered")
    return content_id(data.decode())
