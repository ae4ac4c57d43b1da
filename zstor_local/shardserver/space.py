"""A space: one shard of one store, on this server's disk. Blocking; whoever calls sees to one change at a time.

about.json      issuer of the owner's tokens, format
marker          the shard's marker, as its owner wrote it; sealed, of no meaning here but for the store id in clear
fence           which life of the owner's daemon may write
index.sqlite    where small shares lie in the logs; made anew from them if it is lost
large.sqlite    sizes and namespaces of the large shares; made anew from them if it is lost
rooms/<namespace id>/log/…       a log for each namespace, of the same segments as a directory shard's
rooms/<namespace id>/about.json  its number in the index; its name and quota, once the owner told them
shares/ab/ab12…ef.3              large shares, of the same layout as a directory shard's
letters/<id>                     what the owner leaves for users, sealed to each
tmp/                             on their way in; a new start finds them of no use
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Final

from zstor_local.model.ids import NamespaceId, ShareId, StoreId
from zstor_local.runtime import Runtime, read_exactly
from zstor_local.shards import marker
from zstor_local.shards.base import Entry, ScannedEntry
from zstor_local.shards.http import wire
from zstor_local.shards.http.wire import LETTERS_MAX, Batch, Fence, parse_share_name, share_name
from zstor_local.shards.log import Log, LogClosed
from zstor_local.shards.log_index import IndexDamaged, LogIndex
from zstor_local.shards.marker import claimed_shard, claimed_store
from zstor_local.shards.segment import BEGINNING, ENTRY_HEADER_BYTES, Position, entry_size
from zstor_local.shardserver.disk import ABOUT, ROOMS, SHARES, TEMPORARY, Directories, answering, read_file, reading_share, write_file
from zstor_local.shardserver.large import LargeShares
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.rooms import Room, Rooms
from zstor_local.shardserver.turns import Turns

FORMAT: Final = 1
LETTERS: Final = "letters"
FENCE: Final = "fence"
INDEX: Final = "index.sqlite"
MARKER: Final = "marker"


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a reader of the logs has come: a room's number, and where in its log."""

    room: int = 0
    at: Position = BEGINNING

    def __str__(self) -> str:
        return f"{self.room}.{self.at.segment}.{self.at.offset}.{self.at.segment_id.hex()}" if self.room else wire.BEGINNING

    @classmethod
    def parse(cls, text: str) -> Cursor:
        if not (numbers := wire.cursor(text)):
            raise Refusal("bad_request", "that is no cursor of this server")
        room, segment, offset = numbers
        return cls(room, Position(segment, offset, bytes.fromhex(text.split(".")[3]))) if room else cls()


class Space:
    """One, open."""

    def __init__(self, runtime: Runtime, root: str, quota_bytes: int | None = None, make_room: Callable[[], bool] = bool) -> None:
        """`quota_bytes`: what the whole space may hold. `make_room` is called on a full disk, by what must go on there.

        Refusal `no_space_here` if there is none, `failed` if it cannot be read.
        """
        self._runtime = runtime
        self._files = runtime.files
        self._root = root
        self._make_room = make_room
        try:
            with answering():
                about = json.loads(self._read(ABOUT))
                self.marker = self._read(MARKER)
                self.fence = Fence.parse(self._read(FENCE).decode())
            self.issuer: str = about["issuer"]
        except (ValueError, KeyError, TypeError):
            raise Refusal("failed", f"the shard's {ABOUT} or {FENCE} is damaged") from None
        self.shard = claimed_shard(self.marker)
        store_id = claimed_store(self.marker) or StoreId(bytes(16))
        self._index = LogIndex(f"{root}/{INDEX}")
        self.turns = Turns()  # what is done with a space is done within `using()`, but for what takes things away
        self.freed = True  # small shares or records, since its logs were looked at for what compaction would bring
        self._done: tuple[Fence | None, int] = None, 0  # the last batch that was taken, so that asking again does nothing twice
        self._directories = Directories(self._files)
        with answering(), ExitStack() as opened:
            opened.callback(self._index.close)
            for name in self._files.list(f"{root}/{TEMPORARY}"):
                with suppress(OSError):  # it is in nobody's way but its own
                    self._files.unlink(f"{root}/{TEMPORARY}/{name}")
            self.rooms = Rooms(runtime, root, store_id, self._index, quota_bytes, self._directories)
            opened.callback(self.rooms.close)
            self.large = LargeShares(runtime, root, self.rooms, self.check_fence, self._directories)
            opened.pop_all()

    @classmethod
    def create(cls, runtime: Runtime, root: str, issuer: str, data: bytes, directories: Directories) -> None:
        """Make a space, whole or not at all; its name is the caller's to sync. Refusal `bad_request` if that is no marker."""
        if claimed_store(data) is None or len(data) > marker.MAX_BYTES:
            raise Refusal("bad_request", "the body is no marker of a shard")
        files = runtime.files
        temporary = f"{root}.new"
        with answering():
            for directory in (temporary, *(f"{temporary}/{name}" for name in (ROOMS, SHARES, TEMPORARY))):
                with suppress(FileExistsError):
                    files.mkdir(directory)
            about = json.dumps({"format": FORMAT, "issuer": issuer}).encode()
            for name, content in ((ABOUT, about), (MARKER, data), (FENCE, str(Fence(0, 0, "0" * 32)).encode())):
                write_file(runtime, f"{temporary}/{name}", content)
            directories.sync(temporary)
            files.rename(temporary, root)

    # --- Who may write ---

    def raise_fence(self, fence: Fence) -> None:
        """From now on only this life writes, durably. Refusal `fenced` unless it is a later one than all before, or the same."""
        if fence == self.fence:
            return
        if not fence.follows(self.fence):
            raise Refusal("fenced", f"writer {self.fence.writer} has this space; a later one than that may take it over")
        with suppress(Refusal):
            self.rooms.try_unreadable()
        self._check_writable()
        with answering():
            self.large.abort_all()  # nobody is to finish them, and a full disk needs the room
            self._needed(lambda: write_file(self._runtime, f"{self._root}/{TEMPORARY}/{FENCE}", str(fence).encode()))
            self._files.rename(f"{self._root}/{TEMPORARY}/{FENCE}", f"{self._root}/{FENCE}")
            self._directories.sync(self._root)
            self.fence = fence
            self.large.abort_all()

    def _needed(self, work: Callable[[], None]) -> None:
        """Do it on a full disk too, as long as there is something in reserve: without it nothing could be deleted there."""
        try:
            work()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._make_room():
                raise
            work()

    def check_fence(self, fence: Fence) -> None:
        if fence != self.fence:
            raise Refusal("fenced", f"writer {self.fence.writer} has this space, not {fence.writer}: a later daemon took it over")
        self._check_writable()

    def _check_writable(self) -> None:
        """Refusal `readonly` where a log cannot be read: its owner could not be told what lies there unsettled, and what is written to
        the others would say that all is.
        """
        for fault in self.rooms.unreadable.values():
            raise Refusal("readonly", f"{fault}; until it can be this shard is only read")

    # --- Letters ---

    def put_letter(self, name: bytes, body: bytes) -> None:
        """Keep a letter in place of an older one; durable when this returns."""
        directory = f"{self._root}/{LETTERS}"
        with suppress(FileExistsError):
            self._files.mkdir(directory)
        self._directories.sync(self._root)  # each time: that it is there says nothing of an earlier sync, which may not have come about
        if not self._has_letter(name) and len(self._files.list(directory)) >= LETTERS_MAX:
            raise Refusal("full", f"{LETTERS_MAX} letters lie here; its owner has to say which of them are needed no more")
        temporary = f"{self._root}/{TEMPORARY}/{LETTERS}.{name.hex()}"
        write_file(self._runtime, temporary, body)
        self._files.rename(temporary, f"{directory}/{name.hex()}")
        self._directories.sync(directory)

    def _has_letter(self, name: bytes) -> bool:
        try:
            self._files.path_status(f"{self._root}/{LETTERS}/{name.hex()}")
        except FileNotFoundError:
            return False
        return True

    def keep_letters(self, names: Collection[bytes]) -> None:
        """Remove all others. Any that a power loss brings back is removed the next time."""
        kept = {name.hex() for name in names}
        with suppress(FileNotFoundError):
            for name in self._files.list(f"{self._root}/{LETTERS}"):
                if name not in kept:
                    self._files.unlink(f"{self._root}/{LETTERS}/{name}")

    def letter(self, name: bytes) -> bytes:
        try:
            return self._read(f"{LETTERS}/{name.hex()}")
        except FileNotFoundError:
            raise Refusal("not_found", "there is no such letter") from None

    # --- Logs ---

    def append(self, fence: Fence, number: int, batch: Batch) -> None:
        """Append and flush. `number` grows with each batch of a life: the last one is not done twice, when its answer was lost.

        One from before the last came late, by a connection that was given up: what it says may have been taken back since.
        """
        self.check_fence(fence)
        if (fence, number) == self._done:
            return
        if fence == self._done[0] and number < self._done[1]:
            raise Refusal("bad_request", f"batch {number} comes after batch {self._done[1]}")
        self.rooms.check_batch(batch.entries)
        with answering():
            try:
                if any(scanned.entry.share for scanned in batch.entries):
                    self._append(batch)
                else:  # deletions, and what keeps the house; entries that lie there twice are one
                    self._needed(lambda: self._append(batch))
            except LogClosed:
                raise Refusal("failed", "a flush of the log failed before; the shard server must be started again") from None
        self._done = fence, number

    def _append(self, batch: Batch) -> None:
        touched: dict[int, Log] = {}
        by_room: dict[NamespaceId, list[ScannedEntry]] = {}
        for scanned in batch.entries:
            by_room.setdefault(scanned.entry.envelope.namespace, []).append(scanned)
        for namespace, entries in by_room.items():
            room = self.rooms.make(namespace)
            log = touched[room.number] = self.rooms.started(room, self.fence.writer)
            for committed, group in groupby(entries, lambda scanned: scanned.committed):
                appended = [scanned.entry for scanned in group]
                log.append(appended, committed)
                self.rooms.account(room, sum(map(entry_size, appended)))  # it lies there whatever becomes of the others
        for log in touched.values():
            log.flush()
        self._append_freed(batch)
        if self._index.is_due:
            self._index.flush()

    def _append_freed(self, batch: Batch) -> None:
        """Append and flush what says which shares are gone; some may have come with the entries."""
        freed: dict[NamespaceId, list[ShareId]] = {}
        with _answering_damage():
            for share in batch.freed:
                for room in self._holding(share):
                    freed.setdefault(room.id, []).append(share)
        for namespace, shares in freed.items():
            room = self.rooms.make(namespace)
            log = self.rooms.started(room, self.fence.writer)
            log.free(shares)
            self.rooms.account(room, ENTRY_HEADER_BYTES * len(shares))
            room.freed_bytes += ENTRY_HEADER_BYTES * len(shares)
            self.freed = True
            log.flush()

    def supersede(self, namespace: NamespaceId, sequences: Sequence[int]) -> None:
        """Their owner needs these records no more. Nothing of that lasts: it tells so again what it finds here."""
        room = self.rooms.find(namespace)
        if room is not None:
            self.rooms.supersede(room, sequences)
            self.freed = True

    def page(self, namespace: NamespaceId | None, cursor: Cursor, limit: int) -> tuple[Batch, Cursor]:
        """Entries behind the cursor, of one namespace or of all, some `limit` bytes of memory, and where they end. Refusal `gone` for a
        cursor of what does not lie here any more.
        """
        entries: list[ScannedEntry] = []
        size = 0
        rooms = [room for room in self.rooms if namespace in (None, room.id)]
        with answering():
            if cursor.room and not any(room.number == cursor.room and self.rooms.log(room).has_had(cursor.at) for room in rooms):
                raise Refusal("gone", "an older copy of that log was put back, or its namespace was deleted: begin again")
            for room in rooms:
                if room.number < cursor.room:
                    continue
                after = cursor.at if room.number == cursor.room else BEGINNING
                for scanned, position in self.rooms.log(room).written_after(after.segment, after.offset):
                    entries.append(scanned)
                    cursor = Cursor(room.number, position)
                    size += _memory_of(scanned)
                    if size >= limit:
                        return Batch(entries), cursor
        return Batch(entries), cursor

    def unsettled(self) -> Batch:
        """What the logs hold behind the newest commit that they tell of. Refusal `too_large` where that is more than a daemon leaves,
        which commits group by group; `readonly` where something may lie that the disk cannot read: what is written from then on, to
        other logs too, would say that it was committed.
        """
        committed, found, size = self.newest_committed, [], 0
        with answering():
            for room in self.rooms:
                log, unread = self.rooms.log(room), self.rooms.log(room).unread
                for envelope in log.unsettled():
                    if envelope.sequence > committed:
                        found.append(ScannedEntry(Entry(envelope), committed))
                        size += _memory_of(found[-1])
                    if size > wire.UNSETTLED_BYTES_MAX:
                        raise Refusal("too_large", "more records lie here that nothing says were committed than can be told")
                if log.unread != unread:
                    fault = f"the disk cannot read the end of the log of namespace {room.id.hex()}"
                    raise Refusal("readonly", f"{fault}; until it can this shard is only read")
        return Batch(found)

    @property
    def newest_committed(self) -> int:
        return max((self._index.progress(room.number).committed for room in self.rooms), default=0)

    @contextmanager
    def opened(
        self, namespace: NamespaceId | None, share: ShareId, *, small: bool
    ) -> Iterator[tuple[int, Callable[[int, int], bytes]]]:
        """A share's size, and what reads so many bytes from an offset; Refusal `not_found`, as where it is another namespace's."""
        if not small:
            with self.large.open(namespace, share) as (fd, size):
                yield size, lambda offset, length: read_exactly(self._files, fd, length, offset)
            return
        with answering(), reading_share(), _answering_damage():
            for room in self._holding(share):
                extent = self._index.find(room.number, share) if namespace in (None, room.id) else None
                if extent is not None:
                    yield extent.length, partial(self.rooms.log(room).read, extent)
                    return
        self._check_known(namespace)
        raise Refusal("not_found", "that share is not here")

    def _check_known(self, namespace: NamespaceId | None) -> None:
        """Refusal `failed` where the namespace's log (None: any) cannot be read: what the index knows of it may not be all."""
        for unreadable, fault in self.rooms.unreadable.items():
            if namespace in (None, unreadable):
                raise Refusal("failed", fault)

    def _holding(self, share: ShareId) -> Iterator[Room]:
        """Rooms whose log holds a small share. IndexDamaged."""
        for number, index in sorted(self._index.held([share.version]).get(share.version, ())):
            if index == share.index and (room := self.rooms.numbered(number)) is not None:
                yield room

    def list_small(self, after: str, limit: int) -> list[str]:
        """The names of small shares in their order, behind one."""
        self._check_known(None)
        first = parse_share_name(after).version if after else b""
        with _answering_damage():
            names = (
                name
                for version, held in self._index.versions(first)
                for name in sorted({share_name(ShareId(version, index)) for number, index in held if self.rooms.numbered(number)})
                if name > after
            )
            return [*islice(names, limit)]

    # --- Namespaces ---

    def retire(self, namespace: NamespaceId) -> None:
        """Remove everything of a namespace. What a crash leaves of that is removed when it is asked again."""
        room = self.rooms.find(namespace)
        if room is None:
            return
        with answering():
            with self.turns.alone():  # then no share of it is being finished, nor will another one be: nobody has a name for it
                self.rooms.forget_name(room)
            with self.turns.using():  # others go on: there may be many, and whoever reads one has it open
                self.large.remove_all(namespace)
            with self.turns.alone():
                self.rooms.empty(room)

    def _read(self, name: str) -> bytes:
        return read_file(self._runtime, f"{self._root}/{name}")

    def close(self) -> None:
        """When nobody uses it any more; whoever comes later is refused: `no_space_here`."""
        with self.turns.alone(), ExitStack() as closing:  # all of it, also where the disk fails in the middle
            self.turns.end()
            closing.callback(self._index.close)
            closing.callback(self.rooms.close)
            closing.callback(self.large.close)


def owner_of(runtime: Runtime, root: str) -> str | None:
    """The issuer of the owner's tokens, of a space that need not be open; None where that cannot be read."""
    try:
        return str(json.loads(read_file(runtime, f"{root}/{ABOUT}"))["issuer"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _memory_of(scanned: ScannedEntry) -> int:
    """Bytes that an entry takes, its own and those of the objects that it is made of."""
    return entry_size(scanned.entry) + wire.ENTRY_MEMORY


@contextmanager
def _answering_damage() -> Iterator[None]:
    """A damaged index as a refusal."""
    try:
        yield
    except IndexDamaged as error:
        raise Refusal("failed", str(error)) from None
