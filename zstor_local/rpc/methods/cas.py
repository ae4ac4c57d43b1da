"""`cas.*`: content by its id."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Annotated, Final, Literal, NotRequired, TypedDict

from zstor_local import limits
from zstor_local.content.cas import Cas, Content, Expected, Owner
from zstor_local.content.contents import content_id
from zstor_local.content.logs.leftovers import Leftovers
from zstor_local.content.names import LOGS
from zstor_local.content.pins import USER, check_owner
from zstor_local.errors import (
    AlreadyExists,
    BadEncoding,
    Busy,
    Incomplete,
    InvalidParams,
    NotFound,
    PathRefused,
    TooLarge,
    Unreadable,
)
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.failures import COMMIT_ERRORS, FILE_ERRORS, METASTORE_ERRORS, READ_ERRORS
from zstor_local.rpc.methods.handover import Handover, Producer
from zstor_local.rpc.methods.objects import Count, Digest, Fd, Offset, Path, Size
from zstor_local.rpc.methods.pages import cursor_of, key_of, page_of
from zstor_local.rpc.methods.values import exactly_one, inline, text_of
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.schema import Length, Range
from zstor_local.rpc.strict_json import Base64
from zstor_local.store.paths import Mode, Paths
from zstor_local.store.reading import stretch
from zstor_local.store.sources import BytesSource
from zstor_local.store.store import Store
from zstor_local.store.writes import Source

Id = Annotated[str, "the content's id, as cas.upload answered it (in any base; CIDv0 too)"]
OwnerIn = Annotated[str, f"whose pin it is; “{USER}” if not given, and “{LOGS}…” are those of logs", Length(1, limits.REFERENCE_BYTES)]
Reason = Annotated[str, "why, for whoever wonders later", Length(0, limits.PIN_REASON_BYTES)]

_HINT: Final = "hand over a descriptor, or give a path"
_LIST_BYTES_OF_A_PIN: Final = 6 * (limits.REFERENCE_BYTES + limits.PIN_REASON_BYTES) + 60  # at most, escaped


class UploadedView(TypedDict):
    """`new`: the bytes were not there before."""

    id: str
    size: int
    new: bool


class ContentValue(TypedDict):
    """The bytes: `value` if an encoding was asked for, else `value_b64`; or how many were written to the descriptor or file."""

    value_b64: NotRequired[Base64]
    value: NotRequired[str]
    bytes: NotRequired[int]


class PinView(TypedDict):
    """Who keeps a content, why, and since when."""

    owner: str
    reason: str
    since_epoch: int


class ContentView(TypedDict):
    """A content. `kept_until_epoch`: without a pin it stays until then at least; null while it is pinned."""

    id: str
    size: int
    created_epoch: int
    pins: list[PinView]
    kept_until_epoch: int | None
    stored_size: int
    health: Literal["optimal", "valid"]
    owed: int


class ContentsPage(TypedDict):
    """A part of the contents; `cursor` continues it, null at its end."""

    items: list[ContentView]
    cursor: str | None


class Unpinned(TypedDict):
    """What is left of the content: null if it was deleted."""

    deleted: bool
    content: ContentView | None


class Verified(TypedDict):
    """The content whose bytes are those of its id."""

    id: str
    size: int
    verified: bool


class CollectedView(TypedDict):
    """How many contents were looked at, and how many of them nobody kept, of how many bytes. A dry run has only counted."""

    looked_at: int
    contents: int
    bytes: int
    dry_run: bool


def register(registry: Registry, store: Store, paths: Paths, cas: Cas, leftovers: Leftovers) -> None:
    """Add the methods."""
    handover = Handover(store.runtime, paths)

    @registry.method(
        "cas.upload",
        errors=[*COMMIT_ERRORS, Incomplete, PathRefused, TooLarge, Busy, Unreadable],
        long=True,
    )
    async def upload(
        call: Call,
        /,
        value: Annotated[str | None, "the content as text, stored as UTF-8"] = None,
        value_b64: Annotated[bytes | None, "the content in standard base64"] = None,
        fd: Annotated[Fd | None, "index of a descriptor sent with this message: a file, pipe or socket"] = None,
        path: Path | None = None,
        pin: Annotated[bool, "keep it until the owner unpins it; else it is kept for 7 days at least"] = True,
        owner: OwnerIn | None = None,
        reason: Reason = "",
        expected_size: Size | None = None,
        expected_digest: Digest | None = None,
        expected_id: Id | None = None,
    ) -> UploadedView:
        """Store bytes under the id that any IPFS tool computes for them (CIDv1, profile unixfs-v1-2025). The reply means durable.

        What is stored already is not stored again; a file is read first, and written only if it is new.
        """
        exactly_one(value=value, value_b64=value_b64, fd=fd, path=path)
        owned = _owner(owner, reason)
        if not pin and (owner is not None or reason):
            raise InvalidParams("without a pin there is no owner and no reason", hint="leave out pin: false", parameter="pin")
        expected = Expected(expected_size, expected_digest, None if expected_id is None else content_id(expected_id))

        async def put(source: Source) -> UploadedView:
            done = await cas.upload(source, owned if pin else None, Producer(call), expected=expected)
            return {"id": str(done.id), "size": done.size, "new": done.new}

        if fd is None and path is None:
            return await put(BytesSource(inline(value, value_b64, hint=_HINT)))
        opened: AbstractAsyncContextManager[Source]
        opened = handover.source(call, fd, stream=True) if fd is not None else handover.file(call, path or "")
        async with opened as source:
            return await put(source)

    @registry.method("cas.fetch", errors=[*READ_ERRORS, *FILE_ERRORS, TooLarge, BadEncoding, AlreadyExists], long=True)
    async def fetch(
        call: Call,
        /,
        id: Id,  # noqa: A002 (the name on the wire)
        fd: Annotated[Fd | None, "index of a descriptor sent with this message: a file, pipe or socket"] = None,
        path: Path | None = None,
        offset: Offset | None = None,
        length: Count | None = None,
        encoding: Annotated[Literal["utf-8"] | None, "give the bytes as text"] = None,
        mode: Annotated[Mode, "what to do with a file that is there"] = "truncate",
        sync: Annotated[bool, "make a file durable before the reply"] = True,
        verify: Annotated[bool, "compare the whole content with its id first; its seals are always checked"] = False,
    ) -> ContentValue:
        """Give a content's bytes, or a stretch of them: in the reply (8 MiB at most), into a descriptor or into a file."""
        cid = content_id(id)
        if fd is not None and path is not None:
            raise InvalidParams("fd and path exclude each other", hint="give one of them", parameter="path")
        if verify:
            await cas.verify(cas.contents.find(cid), call)
        if fd is not None or path is not None:
            cas.contents.find(cid)  # and what is wrong with it is told before anything is made
            async with handover.output(call, fd, path, mode, stream=True, sync=sync) as take:
                stored = cas.contents.find(cid).stored
                part = stretch(stored.record, offset, length)
                await take(store.objects, stored, part)
            return {"bytes": part.length}
        part = stretch(cas.contents.find(cid).stored.record, offset, length)
        if part.length > limits.INLINE_VALUE_BYTES:
            raise TooLarge(f"the content has {part.length} bytes", hint=_HINT, limit=limits.INLINE_VALUE_BYTES)
        await call.reply_room(part.length)
        data = await store.objects.read(cas.contents.find(cid).stored, part)  # it may have been collected meanwhile
        return {"value_b64": Base64(data)} if encoding is None else {"value": text_of(data)}

    @registry.method("cas.stat", errors=[NotFound, *METASTORE_ERRORS])
    async def stat(call: Call, /, id: Id) -> ContentView:  # noqa: A002
        """Tell what is known of a content, without reading it."""
        return _view(cas.contents.find(content_id(id)))

    @registry.method("cas.verify", errors=READ_ERRORS, long=True)
    async def verify_(call: Call, /, id: Id) -> Verified:  # noqa: A002
        """Read a content and compare it with its id. Every read checks the seals already; this says so by the id, which others know."""
        content = cas.contents.find(content_id(id))
        await cas.verify(content, call)
        return {"id": str(content.id), "size": content.size, "verified": True}

    @registry.method("cas.pin", errors=[NotFound, TooLarge, *COMMIT_ERRORS])
    async def pin_(call: Call, /, id: Id, owner: OwnerIn | None = None, reason: Reason = "") -> ContentView:  # noqa: A002
        """Keep a content until its owner unpins it. The same pin again changes its reason only."""
        return _view(await cas.keeping.pin(content_id(id), _owner(owner, reason), call))

    @registry.method("cas.unpin", errors=[NotFound, *COMMIT_ERRORS])
    async def unpin(
        call: Call,
        /,
        id: Id,  # noqa: A002
        owner: OwnerIn | None = None,
        forget: Annotated[bool, "delete it at once if nobody else pins it or has uploaded it unpinned in the last 7 days"] = False,
    ) -> Unpinned:
        """Let go of a content: take the owner's pin away, if there is one. What nobody pins is kept for 7 days, then collected."""
        content = await cas.keeping.unpin(content_id(id), _owner(owner, "").name, call, forget=forget)
        return {"deleted": content is None, "content": None if content is None else _view(content)}

    @registry.method("cas.list", errors=METASTORE_ERRORS)
    async def list_(
        call: Call,
        /,
        owner: Annotated[str | None, "only what this owner pins", Length(1, limits.REFERENCE_BYTES)] = None,
        limit: Annotated[int, "items in a page at most", Range(1, limits.LIST_ITEMS)] = limits.LIST_ITEMS,
        cursor: Annotated[str | None, "where the page before ended"] = None,
    ) -> ContentsPage:
        """List contents in the order of their ids' text, all of them or one owner's."""
        found = cas.contents.list(owner, None if cursor is None else key_of(cursor), limit + 1)
        page, more = await page_of(call, found, limit, lambda content: 500 + _LIST_BYTES_OF_A_PIN * len(content.pins))
        items = [_view(content) for content in page]
        return {"items": items, "cursor": cursor_of(items[-1]["id"]) if more else None}

    @registry.method("cas.collect", errors=COMMIT_ERRORS, long=True)
    async def collect(call: Call, /, dry_run: Annotated[bool, "only count what would be deleted"] = False) -> CollectedView:
        """Delete the contents that nobody keeps. Reads and writes go on meanwhile; what is pinned or uploaded before its turn stays."""
        if not dry_run:
            await leftovers.let_go()
        found = await cas.keeping.collect(call, dry_run=dry_run)
        return {"looked_at": found.looked_at, "contents": found.contents, "bytes": found.bytes, "dry_run": dry_run}


def _owner(name: str | None, reason: str) -> Owner:
    owner = check_owner(Owner(USER if name is None else name, reason))
    if owner.name.startswith(LOGS):
        raise InvalidParams(
            f"owners that begin with {LOGS} are logs, who pin for themselves", hint="use `zstor log scrub`", parameter="owner"
        )
    return owner


def _view(content: Content) -> ContentView:
    stored = content.stored
    return {
        "id": str(content.id),
        "size": content.size,
        "created_epoch": content.created,
        "pins": [{"owner": pin.owner, "reason": pin.reason, "since_epoch": pin.since} for pin in content.pins],
        "kept_until_epoch": None if content.pins else content.kept_until,
        "stored_size": stored.record.share_bytes * stored.record.policy.m,
        "health": "valid" if stored.shares_owed else "optimal",
        "owed": stored.owed,
    }
