"""`ns.*`: names for things that change."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated, Final, Literal, NotRequired, TypedDict

import trio

from zstor_local import limits
from zstor_local.content.names import Name, Names
from zstor_local.errors import BadEncoding, Busy, Conflict, CorruptRecord, NotFound, ShuttingDown, TooLarge
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.failures import COMMIT_ERRORS, METASTORE_ERRORS, Failures
from zstor_local.rpc.methods.pages import cursor_of, first_damaged, key_of
from zstor_local.rpc.methods.values import exactly_one, inline, text_of
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.schema import Range
from zstor_local.rpc.strict_json import Base64

NameIn = Annotated[str, "the name, 1 to 1,024 bytes of UTF-8; those that begin with log/ are the heads of logs"]
IfSeq = Annotated[int, "only while the name has this sequence number; 0: only while there is no such name", Range(0)]
Encoding = Annotated[Literal["utf-8"] | None, "give the bytes as text"]
WaitSeconds = Annotated[float, "wait so long for news, if there are none", Range(0, limits.LONG_POLL_SECONDS)]

CHANGE_ERRORS: Final[Failures] = [Conflict, TooLarge, *COMMIT_ERRORS]
POLL_ERRORS: Final[Failures] = [*METASTORE_ERRORS, BadEncoding, Busy, ShuttingDown]


class NameUpdated(TypedDict):
    """The name's sequence number now."""

    seq: int


class NameFetched(TypedDict):
    """A name: `value` if an encoding was asked for, else `value_b64`; neither where nothing is new or the name was deleted."""

    value_b64: NotRequired[Base64]
    value: NotRequired[str]
    seq: int
    updated_epoch: int | None
    deleted: NotRequired[bool]


class NameListed(TypedDict):
    """A name in a list; `size` is its value's, in bytes."""

    name: str
    seq: int
    size: int
    updated_epoch: int


class NamesPage(TypedDict):
    """A part of the names; `cursor` continues it, null at its end."""

    items: list[NameListed]
    cursor: str | None


class NameDeleted(TypedDict):
    """The number that the name ends with; should it come back, it goes on above."""

    deleted: bool
    seq: int


def register(registry: Registry, names: Names) -> None:
    """Add the methods."""

    @registry.method("ns.update", errors=CHANGE_ERRORS)
    async def update(
        call: Call,
        /,
        name: NameIn,
        value: Annotated[str | None, "the value as text, stored as UTF-8"] = None,
        value_b64: Annotated[bytes | None, "the value in standard base64"] = None,
        if_seq: IfSeq | None = None,
    ) -> NameUpdated:
        """Set the value of a name, which need not be there before. The reply means that it is durable; waiting ns.fetch calls answer.

        With if_seq nobody's change is lost: a stale one is `conflict`, and `data.current` has the number to fetch and decide anew.
        """
        exactly_one(value=value, value_b64=value_b64)
        data = inline(value, value_b64, hint="put the bytes into the content store (`zstor cas put`) and its id under the name")
        call.begin_commit()
        return {"seq": (await names.update(name, data, if_seq=if_seq)).seq}

    @registry.method("ns.fetch", errors=[NotFound, *POLL_ERRORS])
    async def fetch(
        call: Call,
        /,
        name: NameIn,
        after_seq: Annotated[int | None, "only a change above this number is news", Range(0)] = None,
        wait_seconds: WaitSeconds = 0,
        encoding: Encoding = None,
    ) -> NameFetched:
        """Give the value of a name and its sequence number; with after_seq and wait_seconds, wait for the next change.

        Nothing new is an answer without a value. Without after_seq a name that is not there is `not_found`.
        """
        if after_seq is None:
            return _fetched(names.fetch(name), encoding)
        until = trio.current_time() + wait_seconds
        with names.watch(name) as watch:
            while True:
                news = watch.news()  # before looking, so that nothing is missed
                found = names.find(name)
                if found is not None and found.seq > after_seq:
                    return _fetched(found, encoding)
                if trio.current_time() >= until:
                    return {"seq": 0, "updated_epoch": None} if found is None else {"seq": found.seq, "updated_epoch": found.updated}
                with call.long_poll(), trio.move_on_at(until):
                    await news.wait()

    @registry.method("ns.list", errors=METASTORE_ERRORS)
    async def list_(
        call: Call,
        /,
        prefix: Annotated[str, "only names that begin with it"] = "",
        limit: Annotated[int, "names in a page at most", Range(1, limits.LIST_ITEMS)] = limits.LIST_ITEMS,
        cursor: Annotated[str | None, "where the page before ended"] = None,
    ) -> NamesPage:
        """List names in the order of their bytes, the heads of logs (log/…) among them."""
        items: list[NameListed] = []
        try:
            async with aclosing(names.list(prefix, None if cursor is None else key_of(cursor), limit + 1)) as found:
                async for each in found:
                    if len(items) == limit:
                        return {"items": items, "cursor": cursor_of(items[-1]["name"])}
                    items.append({"name": each.name, "seq": each.seq, "size": len(each.value), "updated_epoch": each.updated})
        except CorruptRecord as error:
            if not items:
                raise first_damaged(error) from None
            return {"items": items, "cursor": cursor_of(items[-1]["name"])}
        return {"items": items, "cursor": None}

    @registry.method("ns.delete", errors=[NotFound, *CHANGE_ERRORS])
    async def delete(call: Call, /, name: NameIn, if_seq: IfSeq | None = None) -> NameDeleted:
        """Delete a name. Waiting ns.fetch calls are told; its sequence number is not used again."""
        call.begin_commit()
        return {"deleted": True, "seq": await names.delete(name, if_seq=if_seq)}


def _fetched(found: Name, encoding: str | None) -> NameFetched:
    if found.deleted:
        return {"seq": found.seq, "updated_epoch": found.updated, "deleted": True}
    if encoding is None:
        return {"value_b64": Base64(found.value), "seq": found.seq, "updated_epoch": found.updated}
    return {"value": text_of(found.value), "seq": found.seq, "updated_epoch": found.updated}
