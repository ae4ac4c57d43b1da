"""`log.*`: remote logs."""

from __future__ import annotations

from typing import Annotated, Final, Literal, NotRequired, TypedDict

import trio

from zstor_local import limits
from zstor_local.content.cas import Cas
from zstor_local.content.contents import content_id
from zstor_local.content.logs.appending import Appending, NewEntry
from zstor_local.content.logs.logs import Logs
from zstor_local.content.logs.opened import OpenLog
from zstor_local.content.logs.policy import DEFAULT_LOG, LogPolicy, head_name
from zstor_local.content.logs.reading import LogReading
from zstor_local.errors import (
    AlreadyExists,
    BadEncoding,
    Busy,
    Conflict,
    CorruptRecord,
    InvalidParams,
    NotFound,
    ShuttingDown,
    TooLarge,
)
from zstor_local.formats.remotelog import Entry
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.failures import COMMIT_ERRORS, READ_ERRORS, Failures
from zstor_local.rpc.methods.ns import WaitSeconds
from zstor_local.rpc.methods.pages import cursor_of, first_damaged, key_of, room_for_page
from zstor_local.rpc.methods.values import exactly_one, inline, text_of
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.schema import Length, Range
from zstor_local.rpc.strict_json import Base64

LogIn = Annotated[str, "the log; left out, the default one"]
LocalHash = Annotated[bytes, "the hash that writers and readers know the entry by (in MVDS the message id), up to 64 bytes"]
Seq = Annotated[int, "an entry's sequence number; the first entry has 1", Range(1)]

CHANGE_ERRORS: Final[Failures] = [*READ_ERRORS, Conflict, *COMMIT_ERRORS]

_ENTRY_BYTES: Final = 400  # about what an entry takes in a reply beside its value


class LogView(TypedDict):
    """A log. `name` has the newest page as its value, with the number `name_seq`; `head` is that page's id, once it is closed."""

    log: str
    entries: int
    head: str | None
    name: str
    name_seq: int
    page_size: int
    embed_last: int
    encoding: Literal["protobuf", "json"]
    messages: Literal["any", "mvds"]
    created_epoch: int | None


class LogsPage(TypedDict):
    """A part of the logs; `cursor` continues it, null at its end."""

    items: list[LogView]
    cursor: str | None


class LogAppended(TypedDict):
    """Where the entry is; `new` false: it was there already. `head` is the newest page's id then."""

    seq: int
    id: str
    head: str
    new: bool


class LogEntry(TypedDict):
    """An entry; `id` null: it was scrubbed. `size` alone: its value is too large for a reply, cas.fetch gives it."""

    seq: int
    local_hash_b64: Base64
    id: str | None
    size: NotRequired[int]
    value_b64: NotRequired[Base64]
    value: NotRequired[str]


class LogEntries(TypedDict):
    """Entries, the oldest first. `next` is the `since_seq` of the next call."""

    entries: list[LogEntry]
    next: int


class LogPageView(TypedDict):
    """A page: its bytes as they are stored and hashed, and the specification's view of them, `[[[h1, h2], …], next_page]`."""

    id: str
    head: bool
    first: int
    last: int
    value_b64: Base64
    view: list[object]


class LogHead(TypedDict):
    """A log and its newest page."""

    log: LogView
    page: LogPageView


class LogMissing(TypedDict):
    """What you need, the oldest first; hashes that the log does not have; `next` is the next call's `since_seq`, null at the end."""

    need: list[LogEntry]
    unknown_b64: list[Base64]
    next: int | None


def view(log: OpenLog) -> LogView:
    """A log as clients see it."""
    record, head = log.record, log.head
    return {
        "log": log.name,
        "entries": head.last,
        "head": str(head.cid) if head.last else None,
        "name": head_name(log.name),
        "name_seq": head.seq,
        "page_size": record.policy.page_size,
        "embed_last": record.policy.embed_last,
        "encoding": record.policy.encoding,
        "messages": record.policy.messages,
        "created_epoch": record.created or None,
    }


def register(registry: Registry, logs: Logs, cas: Cas) -> None:
    """Add the methods."""
    appending = Appending(logs)
    reading = LogReading(logs)

    @registry.method("log.create", errors=[AlreadyExists, *CHANGE_ERRORS])
    async def create(
        call: Call,
        /,
        log: LogIn = DEFAULT_LOG,
        page_size: Annotated[int, "entries in a page; 1 makes a linked list", Range(1, limits.LOG_PAGE_ENTRIES)] = 64,
        embed_last: Annotated[int, "of each page, how many of the newest entries carry their content", Range(0)] = 0,
        encoding: Annotated[Literal["protobuf", "json"], "how pages are written: 3/REMOTE-LOG, or JSON"] = "protobuf",
        messages: Annotated[Literal["any", "mvds"], "mvds: only MVDS messages, each under its message id"] = "any",
    ) -> LogView:
        """Make a log. Its policy stays as it is; the default log is there without being made, with the defaults."""
        call.begin_commit()
        return view(await logs.create(log, LogPolicy(page_size, embed_last, encoding, messages)))

    @registry.method("log.list", errors=READ_ERRORS)
    async def list_(
        call: Call,
        /,
        limit: Annotated[int, "logs in a page at most", Range(1, limits.LIST_ITEMS)] = 100,
        cursor: Annotated[str | None, "where the page before ended"] = None,
    ) -> LogsPage:
        """List the logs that were made or appended to."""
        names = list(logs.list(None if cursor is None else key_of(cursor), limit + 1))
        items: list[LogView] = []
        for name in names[:limit]:
            try:
                items.append(view(await logs.open(name)))
            except CorruptRecord as error:
                error.data["key"] = name
                if not items:
                    raise first_damaged(error) from None
                break
        return {"items": items, "cursor": cursor_of(names[len(items) - 1]) if len(names) > len(items) else None}

    @registry.method("log.append", errors=[TooLarge, *CHANGE_ERRORS])
    async def append(
        call: Call,
        /,
        log: LogIn = DEFAULT_LOG,
        local_hash_b64: LocalHash | None = None,
        value: Annotated[str | None, "the content as text, stored as UTF-8"] = None,
        value_b64: Annotated[bytes | None, "the content in standard base64"] = None,
        id: Annotated[str | None, "the id of content that is stored already"] = None,  # noqa: A002 (the wire's name)
        embed: Annotated[bool, "false: keep the content out of the pages, whatever the log's policy"] = True,
    ) -> LogAppended:
        """Add an entry to the end of a log. The reply means that it is durable; waiting log.read calls answer.

        Without a local hash it is the SHA-256 of the content, or in a log of MVDS messages the message id. The same hash with the same
        content again is the same entry: whoever got no answer may ask again. With other content it is `conflict`.
        """
        exactly_one(value=value, value_b64=value_b64, id=id)
        hint = "store it with cas.upload and give its id"
        content = content_id(id) if id is not None else inline(value, value_b64, hint=hint)
        appended = await appending.append(log, NewEntry(content, local_hash_b64, embed), call)
        return {"seq": appended.seq, "id": str(appended.cid), "head": str(appended.head), "new": appended.new}

    @registry.method("log.read", errors=[BadEncoding, Busy, ShuttingDown, *READ_ERRORS])
    async def read(
        call: Call,
        /,
        log: LogIn = DEFAULT_LOG,
        since_seq: Annotated[int | None, "only entries above this number", Range(0)] = None,
        since_hash_b64: Annotated[bytes | None, "instead of since_seq: the local hash of the last entry that is known"] = None,
        limit: Annotated[int, "entries at most", Range(1, limits.LIST_ITEMS)] = 100,
        values: Annotated[bool, "give the content too"] = False,
        encoding: Annotated[Literal["utf-8"] | None, "give the content as text"] = None,
        wait_seconds: WaitSeconds = 0,
        newest: Annotated[int | None, "instead of since_seq: this many of the newest entries", Range(0)] = None,
    ) -> LogEntries:
        """Read entries of a log, the oldest first, in as long as it takes to read their own pages.

        Nothing new is an empty answer. A scrubbed entry is there, without an id.
        """
        since = await _since(log, since_seq, since_hash_b64, newest)
        until = trio.current_time() + wait_seconds
        with logs.names.watch(head_name(log)) as watch:
            while True:
                news = watch.news()  # before looking, so that nothing is missed
                if values:
                    await room_for_page(call)  # its entries have their content with them, where pages embed it
                head, found = await reading.since(log, since, limit, embedded=values)
                if since > head.last:
                    raise InvalidParams(f"log {log!r} ends with entry {head.last}", hint="is it the same log?", parameter="since_seq")
                if found or trio.current_time() >= until:
                    break
                if values:
                    call.give_back(limits.LIST_BYTES)
                with call.long_poll(), trio.move_on_at(until):
                    await news.wait()
        try:
            entries = await _valued(found, encoding) if values else [_entry(each) for each in found]
        except NotFound:  # scrubbed since the page was read: now it says so
            _, found = await reading.since(log, since, limit, embedded=values)
            entries = await _valued(found, encoding)
        return {"entries": entries, "next": entries[-1]["seq"] if entries else since}

    @registry.method("log.head", errors=READ_ERRORS)
    async def head(call: Call, /, log: LogIn = DEFAULT_LOG) -> LogHead:
        """Tell of a log, and give its newest page."""
        return {"log": view(await logs.open(log)), "page": await _page(log)}

    @registry.method("log.page", errors=READ_ERRORS)
    async def page(
        call: Call,
        /,
        log: LogIn = DEFAULT_LOG,
        id: Annotated[str | None, "the page's id"] = None,  # noqa: A002 (the wire's name)
        seq: Annotated[int | None, "the number of an entry that it has", Range(1)] = None,
    ) -> LogPageView:
        """Give a page of a log; without id and seq the newest."""
        if id is not None and seq is not None:
            raise InvalidParams("id and seq stand for each other", hint="give one of them", parameter="seq")
        return await _page(log, id, seq)

    @registry.method("log.missing", errors=READ_ERRORS)
    async def missing(
        call: Call,
        /,
        have_b64: Annotated[list[Annotated[bytes, Length(1)]], "local hashes of the entries that you have"],
        log: LogIn = DEFAULT_LOG,
        since_seq: Annotated[int, "you have every entry up to this number", Range(0)] = 0,
        limit: Annotated[int, "entries at most", Range(1, limits.LIST_ITEMS)] = limits.LIST_ITEMS,
    ) -> LogMissing:
        """Turn what you have into what you need: the entries that are not among yours, but for scrubbed ones."""
        found = await reading.missing(log, dict.fromkeys(have_b64), since_seq, limit)
        more = found.reached < (await logs.open(log)).head.last
        return {
            "need": [_entry(each) for each in found.need],
            "unknown_b64": [Base64(each) for each in found.unknown],
            "next": found.reached if more else None,
        }

    async def _since(log: str, seq: int | None, local_hash: bytes | None, newest: int | None) -> int:
        given = [each for each in (seq, local_hash, newest) if each is not None]
        if len(given) > 1:
            raise InvalidParams("since_seq, since_hash_b64 and newest stand for each other", hint="give one", parameter="since_seq")
        if local_hash is not None:
            return await reading.number_of(log, local_hash)
        if newest is not None:
            return max(0, (await logs.open(log)).head.last - newest)
        return seq or 0

    async def _page(log: str, cid: str | None = None, seq: int | None = None) -> LogPageView:
        found = await reading.page(log, cid=None if cid is None else content_id(cid), seq=seq)
        return {
            "id": str(found.cid),
            "head": found.head,
            "first": found.page.first,
            "last": found.page.last,
            "value_b64": Base64(found.data),
            "view": found.page.view(),
        }

    async def _valued(found: list[Entry], encoding: str | None) -> list[LogEntry]:
        """As many of the entries as fit into a reply, with their content."""
        sizes = [0 if each.cid is None else len(each.data) or cas.contents.find(each.cid).size for each in found]
        room, fitting = limits.LIST_BYTES, 0
        escaped = 1 if encoding is None else 6  # a control character takes six bytes as JSON
        for size in sizes:
            room -= _ENTRY_BYTES + (escaped * size if size <= limits.INLINE_VALUE_BYTES else 0)
            if room < 0 and fitting:
                break
            fitting += 1
        return [await _with_value(each, size, encoding) for each, size in zip(found[:fitting], sizes, strict=False)]

    async def _with_value(entry: Entry, size: int, encoding: str | None) -> LogEntry:
        made = _entry(entry)
        if entry.cid is None:
            return made
        made["size"] = size
        if size <= limits.INLINE_VALUE_BYTES:
            data = entry.data or await cas.read(cas.contents.find(entry.cid))
            if encoding is None:
                made["value_b64"] = Base64(data)
            else:
                made["value"] = text_of(data)
        return made


def _entry(entry: Entry) -> LogEntry:
    return {
        "seq": entry.seq,
        "local_hash_b64": Base64(entry.local_hash),
        "id": None if entry.cid is None else str(entry.cid),
    }
