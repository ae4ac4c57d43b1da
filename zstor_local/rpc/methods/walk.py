"""`object.walk`: along linked objects, in pages or as a stream."""

from __future__ import annotations

import base64
import binascii
from contextlib import aclosing
from typing import Annotated, Final, Literal, NotRequired, TypedDict

from zstor_local import limits
from zstor_local.errors import Conflict, InvalidParams, ZstorError
from zstor_local.model.ids import ObjectName, check_key
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.epochs import Epoch, microseconds
from zstor_local.rpc.methods.failures import READ_ERRORS, Failures
from zstor_local.rpc.methods.names import Namespace, Naming
from zstor_local.rpc.methods.pages import reply_bytes, room_for_page
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.schema import Range
from zstor_local.rpc.streams import Opened, Outgoing, Streams
from zstor_local.rpc.strict_json import Base64, decode, encode
from zstor_local.store.caller import Caller
from zstor_local.store.metadata import Metadata, describe
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.walk import Position, Route, Walk

Direction = Literal["forward", "backward"]

ERRORS: Final[Failures] = [*READ_ERRORS, Conflict]


class WalkItem(TypedDict):
    """One object of a walk; `value_b64` only where values were asked for, and never over 8 MiB: read those by their key."""

    key: str
    metadata: Metadata
    references: list[str]
    value_b64: NotRequired[Base64]


class WalkPage(TypedDict):
    """A part of a walk; `cursor` continues it, null at its end."""

    items: list[WalkItem]
    cursor: str | None


def register(registry: Registry, store: Store) -> None:
    """Add the method."""
    names = Naming(store)
    use = Walk(store.core, store.namespaces)
    streams = Streams(store.runtime.randomness)

    @registry.method("object.walk", errors=ERRORS)
    async def walk(
        call: Call,
        /,
        start_key: Annotated[str, "the object to begin with; its list is walked from there"],
        start_epoch: Annotated[Epoch | None, "only objects created at this time or later"] = None,
        end_epoch: Annotated[Epoch | None, "only objects created at this time or earlier"] = None,
        direction: Annotated[Direction, "to those that follow, or to those before"] = "forward",
        values: Annotated[bool, "with the objects' bytes"] = False,
        limit: Annotated[int, "items in a page at most", Range(1, limits.LIST_ITEMS)] = limits.LIST_ITEMS,
        cursor: Annotated[str | None, "where the page before ended"] = None,
        stream: Annotated[bool, "answer {stream} and send the items one by one, as object.read_stream does"] = False,
        namespace: Namespace | None = None,
    ) -> WalkPage | Opened:
        """Walk along linked objects, by the time of their creation.

        Objects outside the range are passed over. Where a link is broken the walk ends with `corrupt_record`, whose data.key says at
        which key; what came before it has been given. In a stream each `stream.data` has an `item`, and the result counts the items.
        """
        route = Route(direction == "forward", microseconds(start_epoch, "start_epoch"), microseconds(end_epoch, "end_epoch"))
        if route.start is not None and route.end is not None and route.start > route.end:
            raise InvalidParams("start_epoch is later than end_epoch", parameter="start_epoch")
        name = ObjectName(names.namespace(namespace), check_key(start_key))
        position = None if cursor is None else _position(cursor, direction)
        if stream:
            if position is None:
                store.objects.find(name)  # what is wrong with it is told at once

            async def send(sink: Outgoing, caller: Caller) -> dict[str, int]:
                count, here = 0, position
                while True:
                    await sink.ready()  # who waits holds nothing: each item is found anew, behind the place of the last one
                    stored = await _next(name, route, here)
                    if stored is not None and not sink.call.take_reply_room(room := _message_bytes(stored, values=values)):
                        del stored
                        await sink.call.reply_room(room)
                        stored = await _next(name, route, here)
                    if stored is None:
                        return {"items": count}
                    here = Position.at(stored, route)
                    item = await _item(stored, values=values)
                    del stored
                    try:
                        await sink.send({"item": item})
                    finally:
                        sink.call.replied()
                    count += 1
                    if here is None:
                        return {"items": count}

            return streams.read(call, send)
        await room_for_page(call)
        return await _page(name, route, position, direction, limit, values=values)

    async def _page(
        name: ObjectName, route: Route, position: Position | None, direction: Direction, limit: int, *, values: bool
    ) -> WalkPage:
        items: list[WalkItem] = []
        last: Position | None = None
        room = limits.LIST_BYTES
        try:
            async with aclosing(use.along(name, route, position)) as found:
                async for stored in found:
                    room -= reply_bytes(stored) + (_encoded_bytes(stored) if values else 0)
                    if len(items) == limit or (room < 0 and items):
                        return {"items": items, "cursor": _cursor(last, direction)}
                    items.append(await _item(stored, values=values))
                    last = Position.at(stored, route)
        except ZstorError:
            if not items or last is None:
                raise
            return {"items": items, "cursor": _cursor(last, direction)}  # the next page begins with the error
        return {"items": items, "cursor": None}

    async def _next(name: ObjectName, route: Route, position: Position | None) -> Stored | None:
        async with aclosing(use.along(name, route, position)) as found:
            return await anext(found, None)

    async def _item(stored: Stored, *, values: bool) -> WalkItem:
        record = stored.record
        item: WalkItem = {"key": record.key, "metadata": describe(stored, store.pool), "references": list(record.references)}
        if values and record.size <= limits.INLINE_VALUE_BYTES:
            item["value_b64"] = Base64(await store.objects.read(stored))
        return item


def _message_bytes(stored: Stored, *, values: bool) -> int:
    return min(reply_bytes(stored) + (_encoded_bytes(stored) if values else 0), limits.MESSAGE_BYTES)


def _encoded_bytes(stored: Stored) -> int:
    size = stored.record.size
    return 4 * size // 3 if size <= limits.INLINE_VALUE_BYTES else 0


def _cursor(position: Position | None, direction: Direction) -> str | None:
    if position is None:
        return None
    return base64.urlsafe_b64encode(encode([direction, position.key, position.created, position.ahead])).decode()


def _position(cursor: str, direction: Direction) -> Position:
    try:
        plain = decode(base64.b64decode(cursor, altchars=b"-_", validate=True))
        if not isinstance(plain, list):
            raise ValueError
        came, key, created, ahead = plain
        if came != direction or type(created) is not int or not isinstance(key, str) or not isinstance(ahead, str):
            raise ValueError
        return Position(check_key(key), created, check_key(ahead))
    except (binascii.Error, ValueError, ZstorError):
        raise InvalidParams(
            f"that cursor is not one of a {direction} walk", hint="give it as the page before had it", parameter="cursor"
        ) from None
