"""Pages of long lists: cursors, and how much fits into one reply."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Final, TypeVar

from zstor_local import limits
from zstor_local.errors import CorruptRecord, InvalidParams
from zstor_local.model.ids import ObjectName
from zstor_local.rpc.call import Call
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored

T = TypeVar("T")
_LITTLE_BYTES: Final = limits.SMALL_REPLY_BYTES // 8  # of a record: what it tells is a small reply
_METADATA_MEMBERS_BYTES: Final = 1_500  # what metadata takes in a reply beside references, user and shards


def reply_bytes(stored: Stored) -> int:
    """About what an item of a list takes in the reply."""
    record = stored.record
    texts = [record.key, record.key, *record.references]
    return (
        _METADATA_MEMBERS_BYTES
        + 6 * sum(len(text) + 1 for text in texts)
        + 2 * len(stored.envelope.sealed)
        + 40 * len(record.placement)
    )


def much_known(stored: Stored) -> int:
    """About what is known of an object takes in a reply, no more than a page; 0 for nearly all objects, of which that is little."""
    return _of_record(len(stored.envelope.sealed))


def much_changed(store: Store, name: ObjectName, given: Sequence[str] = (), *, kept: bool) -> int:
    """The same of what a change leaves: the texts that are given, and if they are kept those that the object has."""
    size = sum(map(len, given))
    if kept and (namespace := store.namespaces.find(name.namespace)) is not None:
        with suppress(CorruptRecord):  # the change itself says so
            envelope = store.reading.get(namespace.id, name.key)
            size += 0 if envelope is None else len(envelope.sealed)
    return _of_record(size)


def _of_record(size: int) -> int:
    return min(8 * size, limits.LIST_BYTES) if size > _LITTLE_BYTES else 0  # each character may be escaped in six, beside the seal


async def room_for_page(call: Call) -> None:
    """Wait until the largest page has room beside the replies that this client has yet to take. Ask before the page is made."""
    await call.reply_room(limits.LIST_BYTES)


async def page_of(call: Call, found: AsyncGenerator[T, None], limit: int, size: Callable[[T], int]) -> tuple[list[T], bool]:
    """As much of what is found as fits into one reply, one at least, and whether there is more. `size`: what an item takes in it.

    A record that does not open ends the page before it. Where it comes first it is raised, as `first_damaged` has it.
    """
    await room_for_page(call)
    items: list[T] = []
    room = limits.LIST_BYTES
    more = False
    try:
        async with aclosing(found) as each:
            async for item in each:
                weight = size(item)
                if len(items) == limit or (items and weight > room):
                    more = True
                    break
                room -= weight
                items.append(item)
    except CorruptRecord as error:
        if not items:
            raise first_damaged(error) from None
        more = True
    call.give_back(max(0, room))
    return items, more


def short_page_of(found: Iterable[T], limit: int) -> tuple[list[T], bool]:
    """The same of what takes little room in a reply."""
    items: list[T] = []
    try:
        for item in found:
            if len(items) == limit:
                return items, True
            items.append(item)
    except CorruptRecord as error:
        if not items:
            raise first_damaged(error) from None
        return items, True
    return items, False


def first_damaged(error: CorruptRecord) -> CorruptRecord:
    """What a page answers that begins with a record that does not open: `data.cursor` goes on behind the one of `data.key`."""
    key = error.data.get("key")
    if not isinstance(key, str):
        return error
    return CorruptRecord(f"{key!r}: {error.message}", hint=error.hint, **{"cursor": cursor_of(key), **error.data})


def cursor_of(key: str) -> str:
    """A cursor that names the last key of a page."""
    return base64.urlsafe_b64encode(key.encode()).decode()


def key_of(cursor: str) -> str:
    """The reverse, or InvalidParams."""
    try:
        return base64.b64decode(cursor, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidParams("that cursor is not one of a list", hint="give it as the page before had it", parameter="cursor") from None
