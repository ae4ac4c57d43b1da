"""Appending to logs: content first, then the pages that were closed, then the name.

What waits to be appended to a log is published together, in the order in which it came: appends neither conflict nor get lost, and many
of them cost one change of the name.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace

import trio

from zstor_local import limits
from zstor_local.content.logs.held import ENTRY
from zstor_local.content.logs.logs import Logs
from zstor_local.content.logs.opened import OpenLog
from zstor_local.content.logs.paging import Closed, embedded, grow
from zstor_local.content.logs.policy import LogPolicy
from zstor_local.errors import Conflict, InvalidParams, NotFound, OutcomeUnknown, TooLarge, ZstorError
from zstor_local.formats import unixfs
from zstor_local.formats.cid import Cid
from zstor_local.formats.mvds import logged_message_id
from zstor_local.formats.protobuf import Malformed
from zstor_local.formats.remotelog import Entry
from zstor_local.store.caller import Caller


@dataclass(frozen=True, slots=True)
class NewEntry:
    """What is to be appended: content by its bytes or id, and the hash that its writer knows it by (None: made from the content).

    `embed` False: never in a page, whatever the log's policy.
    """

    content: bytes | Cid
    local_hash: bytes | None = None
    embed: bool = True


@dataclass(frozen=True, slots=True)
class Appended:
    """Where an entry is. `new` is False if it was there already; `head` is the id of the newest page then."""

    seq: int
    cid: Cid
    head: Cid
    new: bool


@dataclass(slots=True, eq=False)
class _Waiting:
    entry: Entry
    pinned_at: int  # the log's `let_go_times` when its content was pinned
    outcome: Appended | ZstorError | None = None
    gone: bool = False  # its content is not there any more, and has to be put there again


class Appending:
    """The use case; one for a store, as what waits is here."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs
        self._queues: defaultdict[str, list[_Waiting]] = defaultdict(list)

    async def append(self, name: str, new: NewEntry, caller: Caller) -> Appended:
        """Add an entry to the end of a log; durable when this returns.

        The same local hash with the same content again is the same entry, so whoever got no answer may ask again. A local hash that
        stands for other content, or whose entry was scrubbed, is Conflict.
        """
        log = await self._logs.open(name)
        data = new.content if isinstance(new.content, bytes) else await self._content(log, new.content)
        local_hash = _local_hash(new, data, log.record.policy)
        cid = new.content if isinstance(new.content, Cid) else unixfs.content_id(new.content)
        found = log.look(local_hash)
        if found is not None:
            if found.cid != cid:
                raise _taken(log.name, local_hash, scrubbed=found.cid is None)
            return Appended(found.seq, cid, log.head.cid, new=False)
        kept = embedded(data, log.record.policy) if data is not None and new.embed else b""
        caller.begin_commit()
        while True:
            pinned_at = log.let_go_times
            if isinstance(new.content, bytes):
                await log.held.put(new.content, ENTRY)
            else:
                await log.held.hold(cid, ENTRY)
            appended = await self._publish(log, _Waiting(Entry(0, local_hash, cid, kept), pinned_at))
            if appended is not None:
                return appended

    async def _content(self, log: OpenLog, cid: Cid) -> bytes | None:
        """The bytes of content that is there already, where the policy needs them; None for content that is large."""
        return await log.held.get(cid) if log.held.find(cid).size <= limits.LOG_EMBED_BYTES else None

    async def _publish(self, log: OpenLog, own: _Waiting) -> Appended | None:
        """Wait for the log, and publish what waits by then, unless somebody did it meanwhile. None: its content is gone again."""
        self._queues[log.name].append(own)
        with trio.CancelScope(shield=True):
            async with log.lock:
                while own.outcome is None and not own.gone:
                    await self._publish_some(log)
        if isinstance(own.outcome, ZstorError):
            raise own.outcome
        return own.outcome

    async def _publish_some(self, log: OpenLog) -> None:
        queue = self._queues.pop(log.name)
        batch, rest = queue[: limits.LOG_APPENDS], queue[limits.LOG_APPENDS :]
        if rest:
            self._queues[log.name] = rest
        closed: list[Closed] = []
        try:
            await log.load()
            await self._logs.ensure_row(log)
            for each in batch:
                await _keep_pinned(log, each)
            numbers: dict[bytes, int] = {}  # by the local hashes of entries that are there, or come now
            fresh = _new_ones(log, batch, numbers)
            if fresh:
                first = log.head.last + 1
                numbered = [replace(each.entry, seq=first + position) for position, each in enumerate(fresh)]
                numbers.update((entry.local_hash, entry.seq) for entry in numbered)
                closed, head = grow(log.head.page, numbered, log.record.policy)
                await log.publish(closed, head)
            for each in batch:  # nothing is looked for behind the change, which nobody is to call refused
                if each.outcome is None and each.entry.cid is not None and not each.gone:
                    each.outcome = Appended(numbers[each.entry.local_hash], each.entry.cid, log.head.cid, new=each in fresh)
        except ZstorError as error:
            _conclude(batch, error)
        except BaseException:
            _conclude(batch, OutcomeUnknown("the daemon cannot tell whether the entry was appended", hint="append it again"))
            raise
        await _let_go_of_refused(log, batch, closed)


async def _let_go_of_refused(log: OpenLog, batch: list[_Waiting], closed: list[Closed]) -> None:
    """Unpin what was put there for entries that did not come in. What cannot be unpinned now stays: rather too much than too little."""
    refused = [each.entry.cid for each in batch if isinstance(each.outcome, ZstorError) and each.entry.cid is not None]
    if not refused:
        return
    with suppress(ZstorError):
        await log.let_go([*refused, *(each.cid for each in closed)])


def _conclude(batch: list[_Waiting], error: ZstorError) -> None:
    for each in batch:
        each.outcome = each.outcome or error


async def _keep_pinned(log: OpenLog, each: _Waiting) -> None:
    """Pin the content again if the log let go of some since: the same content may have been a scrubbed entry's."""
    if each.pinned_at == log.let_go_times or each.entry.cid is None:
        return
    try:
        await log.held.hold(each.entry.cid, ENTRY)
    except NotFound:
        each.gone = True


def _new_ones(log: OpenLog, batch: list[_Waiting], numbers: dict[bytes, int]) -> list[_Waiting]:
    """Those of the batch that the log does not have. It tells the numbers of others; those with other content than it has get their
    error.
    """
    fresh: dict[bytes, _Waiting] = {}
    for each in batch:
        if each.gone:
            continue
        entry = each.entry
        first = fresh.get(entry.local_hash)
        known = log.look(entry.local_hash) if first is None else first.entry
        if known is None:
            fresh[entry.local_hash] = each
        elif known.cid != entry.cid:
            each.outcome = _taken(log.name, entry.local_hash, scrubbed=known.cid is None)
        else:
            numbers[entry.local_hash] = known.seq
    return [*fresh.values()]


def _local_hash(new: NewEntry, data: bytes | None, policy: LogPolicy) -> bytes:
    """The hash that the entry is known by; in a log of MVDS messages none but the message id."""
    if policy.messages == "mvds":
        if data is None:
            raise TooLarge("that is too large for an MVDS message", hint="send its id in one", limit=limits.LOG_EMBED_BYTES)
        try:
            message_id = logged_message_id(data)
        except Malformed as error:
            raise InvalidParams(f"the content is no MVDS message for a log: {error}", parameter="value") from None
        if new.local_hash not in (None, message_id):
            raise InvalidParams(
                f"the local hash is not the message id {message_id.hex()}",
                hint="leave it out: it is computed",
                parameter="local_hash_b64",
            )
        return message_id
    if new.local_hash is not None:
        if not 0 < len(new.local_hash) <= limits.LOCAL_HASH_BYTES:
            raise InvalidParams(f"a local hash has 1 to {limits.LOCAL_HASH_BYTES} bytes", parameter="local_hash_b64")
        return new.local_hash
    if isinstance(new.content, bytes):
        return hashlib.sha256(new.content).digest()
    raise InvalidParams("content by its id needs a local hash", parameter="local_hash_b64")


def _taken(log: str, local_hash: bytes, *, scrubbed: bool) -> Conflict:
    if scrubbed:
        return Conflict(f"entry {local_hash.hex()} of log {log!r} was scrubbed", hint="it does not come back under this hash")
    return Conflict(f"log {log!r} has other content under the local hash {local_hash.hex()}", hint="one hash stands for one content")
