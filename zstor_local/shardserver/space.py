"""A space: one shard of one store, on this server's disk. Blocking; whoever calls sees to one change at a time.

about.json      issuer of the owner's tokens, format
marker          the shard's marker, as its owner wrote it; sealed, of no meaning here but for the store id in clear
fence           which life of the owner's daemon may write
index.sqlite    where small shares lie in the logs; made anew from them if it is lost
rooms/<namespace id>/log/…       a log for each namespace, of the same segments as a directory shard's
rooms/<namespace id>/about.json  its number in the index; its name and quota, once the owner told them
shares/ab/ab12…ef.3              large shares, of the same layout as a directory shard's
letters/<id>                     what the owner leaves for users, sealed to each
tmp/                             on their way in; a new start finds them of no use
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby, islice
from typing import Final

from zstor_local.coding.block import BadBlock
from zstor_local.coding.share import SHARE_HEADER_BYTES, parse_share_header
from zstor_local.model.ids import NamespaceId, ShareId, StoreId
from zstor_local.runtime import Runtime, read_exactly, sync_directory, write_all
from zstor_local.shards import marker
from zstor_local.shards.base import Entry, ScannedEntry
from zstor_local.shards.http.wire import Batch, Fence, parse_id, share_name
from zstor_local.shards.index import FLUSH_AT, IndexDamaged, LogIndex, Place, Progress
from zstor_local.shards.log import Log, LogClosed
from zstor_local.shards.marker import claimed_store
from zstor_local.shards.segment import entry_size
from zstor_local.shardserver.refusal import Refusal, of_system

FORMAT: Final = 1
UPLOADS_MAX: Final = 256  # large shares on their way in at once, in a space
LETTERS_MAX: Final = 10_000
OPEN_LOGS: Final = 64  # logs of namespaces that are kept open: each holds a segment of 8 MiB, allocated
LETTERS: Final = "letters"
ABOUT, FENCE, INDEX, MARKER, ROOMS, SHARES, TEMPORARY = "about.json", "fence", "index.sqlite", "marker", "rooms", "shares", "tmp"


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a reader of the logs has come: a room's number, a segment there, an offset in it."""

    room: int = 0
    segment: int = 0
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.room}.{self.segment}.{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        parts = text.split(".")
        if len(parts) != 3 or not all(part.isascii() and part.isdecimal() and len(part) <= 12 for part in parts):
            raise Refusal("bad_request", "that is no cursor of this server")
        return cls(*map(int, parts))


@dataclass(slots=True, eq=False)
class Room:
    """What a space keeps for one namespace."""

    id: NamespaceId
    number: int  # in the index, from 1
    name: str | None = None
    issuer: str | None = None  # whose tokens call it so; None: the owner's own
    quota_bytes: int | None = None
    used_bytes: int = 0
    shares: int = 0  # large ones
    log: Log | None = None
    writer: int = 0  # whose segments the log begins now; 0: nobody's yet


@dataclass(slots=True, eq=False)
class Upload:
    """A large share on its way in."""

    room: Room
    fd: int
    path: str
    parts: dict[int, int] = field(default_factory=dict)  # offset → length
    ending: bool = False
    closed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while its file is written, and when that is closed


class Space:
    """One, open."""

    def __init__(self, runtime: Runtime, root: str, quota_bytes: int | None = None) -> None:
        """`quota_bytes`: what the whole space may hold. Refusal `no_space_here` if there is none, `failed` if it cannot be read."""
        self._runtime = runtime
        self._files = runtime.files
        self._root = root
        self._quota_bytes = quota_bytes
        with _answering():
            about = json.loads(self._read(ABOUT))
            self.marker = self._read(MARKER)
            self.fence = Fence.parse(self._read(FENCE).decode())
        self.issuer: str = about["issuer"]
        self._store_id = claimed_store(self.marker) or StoreId(bytes(16))
        self._index = LogIndex(f"{root}/{INDEX}")
        self._rooms: dict[NamespaceId, Room] = {}
        self._uploads: dict[ShareId, Upload] = {}
        self._lock = threading.Lock()  # held for moments, around what several threads change
        self._done: tuple[str, int] = "", 0  # the last batch that was taken, so that asking again does nothing twice
        try:
            with _answering():
                self._open()
        except BaseException:
            self._index.close()
            raise

    @classmethod
    def create(cls, runtime: Runtime, root: str, issuer: str, data: bytes) -> None:
        """Make a space, durably and whole or not at all. Refusal `bad_request` if that is no marker."""
        if claimed_store(data) is None or len(data) > marker.MAX_BYTES:
            raise Refusal("bad_request", "the body is no marker of a shard")
        files = runtime.files
        temporary = f"{root}.new"
        with _answering():
            for directory in (temporary, *(f"{temporary}/{name}" for name in (ROOMS, SHARES, TEMPORARY))):
                with suppress(FileExistsError):
                    files.mkdir(directory)
            about = json.dumps({"format": FORMAT, "issuer": issuer}).encode()
            for name, content in ((ABOUT, about), (MARKER, data), (FENCE, str(Fence(0, 0, "0" * 32)).encode())):
                _write_file(runtime, f"{temporary}/{name}", content)
            sync_directory(files, temporary)
            files.rename(temporary, root)
            sync_directory(files, os.path.dirname(root))

    def _open(self) -> None:
        for name in self._files.list(f"{self._root}/{TEMPORARY}"):
            self._files.unlink(f"{self._root}/{TEMPORARY}/{name}")
        for name in self._files.list(f"{self._root}/{ROOMS}"):
            with suppress(FileNotFoundError):  # a crash came before its about.json: nothing lies there
                about = json.loads(self._read(f"{ROOMS}/{name}/{ABOUT}"))
                room = Room(NamespaceId(parse_id(name)), about["number"], about["name"], about["issuer"], about["quota_bytes"])
                self._rooms[room.id] = room
                room.used_bytes = self._log_bytes(room)
        for room in self._rooms.values():
            self._log(room)  # catches the index up with it
        for _, size, namespace in self._large_shares():
            if (owner := self._rooms.get(namespace)) is not None:
                owner.used_bytes += size
                owner.shares += 1

    # --- Who may write ---

    def raise_fence(self, fence: Fence) -> None:
        """From now on only this life writes, durably. Refusal `fenced` unless it is a later one than all before, or the same."""
        if fence == self.fence:
            return
        if not fence.follows(self.fence):
            raise Refusal("fenced", f"writer {self.fence.writer} has this space; a later one than that may take it over")
        with _answering():
            _write_file(self._runtime, f"{self._root}/{TEMPORARY}/{FENCE}", str(fence).encode())
            self._files.rename(f"{self._root}/{TEMPORARY}/{FENCE}", f"{self._root}/{FENCE}")
            sync_directory(self._files, self._root)
            self.fence = fence
            for share in [*self._uploads]:
                self.abort(share)

    def check_fence(self, fence: Fence) -> None:
        if fence != self.fence:
            raise Refusal("fenced", f"writer {self.fence.writer} has this space, not {fence.writer}: a later daemon took it over")

    # --- Letters ---

    def put_letter(self, name: bytes, body: bytes) -> None:
        """Keep a letter in place of an older one; durable when this returns."""
        directory = f"{self._root}/{LETTERS}"
        with suppress(FileExistsError):
            self._files.mkdir(directory)
            sync_directory(self._files, self._root)
        if len(self._files.list(directory)) >= LETTERS_MAX:
            raise Refusal("full", f"{LETTERS_MAX} letters lie here")
        temporary = f"{self._root}/{TEMPORARY}/{LETTERS}.{name.hex()}"
        _write_file(self._runtime, temporary, body)
        self._files.rename(temporary, f"{directory}/{name.hex()}")
        sync_directory(self._files, directory)

    def letter(self, name: bytes) -> bytes:
        try:
            return self._read(f"{LETTERS}/{name.hex()}")
        except FileNotFoundError:
            raise Refusal("not_found", "there is no such letter") from None

    # --- Logs ---

    def append(self, fence: Fence, number: int, batch: Batch) -> None:
        """Append and flush. `number` grows with each batch of a life: the last one is not done twice, when its answer was lost."""
        self.check_fence(fence)
        if (str(fence), number) == self._done:
            return
        self._check_quota(batch.entries)
        with _answering():
            try:
                self._append(batch)
            except LogClosed:
                raise Refusal("failed", "a flush of the log failed before; the shard server must be started again") from None
        self._done = str(fence), number

    def _append(self, batch: Batch) -> None:
        touched: dict[int, Log] = {}
        by_room: dict[NamespaceId, list[ScannedEntry]] = {}
        for scanned in batch.entries:
            by_room.setdefault(scanned.entry.envelope.namespace, []).append(scanned)
        for namespace, entries in by_room.items():
            room = self._room(namespace)
            log = touched[room.number] = self._started(room)
            for committed, group in groupby(entries, lambda scanned: scanned.committed):
                log.append([scanned.entry for scanned in group], committed)
            self._account(room, sum(entry_size(scanned.entry) for scanned in entries))
        freed: dict[NamespaceId, list[ShareId]] = {}
        for share in batch.freed:
            for room in self._holding(share):
                freed.setdefault(room.id, []).append(share)
        for namespace, shares in freed.items():
            room = self._rooms[namespace]
            log = touched[room.number] = self._started(room)
            log.free(shares)
        for log in touched.values():
            log.flush()
        if self._index.waiting >= FLUSH_AT:
            self._index.flush()

    def page(self, namespace: NamespaceId | None, cursor: Cursor, limit: int) -> tuple[Batch, Cursor]:
        """Entries behind the cursor, of one namespace or of all, some `limit` bytes of them, and where they end."""
        entries: list[ScannedEntry] = []
        size = 0
        rooms = sorted((room for room in self._rooms.values() if namespace in (None, room.id)), key=lambda room: room.number)
        with _answering():
            for room in rooms:
                if room.number < cursor.room:
                    continue
                at = cursor if room.number == cursor.room else Cursor(room.number)
                for scanned, segment, end in self._log(room).scan_after(at.segment, at.offset):
                    entries.append(scanned)
                    cursor = Cursor(room.number, segment, end)
                    size += entry_size(scanned.entry)
                    if size >= limit:
                        return Batch(entries), cursor
        return Batch(entries), cursor

    def unsettled(self) -> Batch:
        """What the logs hold behind the newest commit that they tell of."""
        committed = self.newest_committed
        with _answering():
            found = [envelope for room in self.rooms for envelope in self._log(room).unsettled() if envelope.sequence > committed]
        return Batch([ScannedEntry(Entry(envelope), committed) for envelope in found])

    @property
    def newest_committed(self) -> int:
        return max((self._index.progress(room.number).committed for room in self._rooms.values()), default=0)

    def small_share(self, namespace: NamespaceId | None, share: ShareId, offset: int, length: int) -> tuple[bytes, int]:
        """Bytes of a small share, and its size; Refusal `not_found`."""
        with _answering():
            for room in self._holding(share):
                place = self._index.find(room.number, share) if namespace in (None, room.id) else None
                if place is not None:
                    return bytes(self._log(room).read(place, offset, length, wait=True)), place.length
        raise Refusal("not_found", "that share is not here")

    def _holding(self, share: ShareId) -> Iterator[Room]:
        """Rooms whose log holds a small share."""
        try:
            yield from [room for room in list(self._rooms.values()) if self._index.find(room.number, share) is not None]
        except IndexDamaged as error:
            raise Refusal("failed", str(error)) from None

    # --- Large shares ---

    def put_part(self, fence: Fence, namespace: NamespaceId, share: ShareId, offset: int, data: bytes) -> None:
        """A part of a large share, at its offset in the share's file; nothing is visible yet."""
        self.check_fence(fence)
        with _answering():
            with self._lock:
                upload = self._uploads.get(share) or self._begin(namespace, share)
            if upload.room.id != namespace or upload.ending:
                raise Refusal("exists", "that share is on its way in already")
            with upload.lock:
                if upload.closed:
                    raise Refusal("unfinished", "that share was given up")
                self._check_room(upload.room, sum(upload.parts.values()) + len(data))
                write_all(self._files, upload.fd, [data], offset)
                upload.parts[offset] = len(data)

    def _begin(self, namespace: NamespaceId, share: ShareId) -> Upload:
        if len(self._uploads) >= UPLOADS_MAX:
            raise Refusal("busy", f"{UPLOADS_MAX} shares are on their way in")
        room = self._room(namespace)
        path = f"{self._root}/{TEMPORARY}/{share_name(share)}"
        upload = Upload(room, self._files.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), path)
        self._uploads[share] = upload
        return upload

    def finish(self, fence: Fence, namespace: NamespaceId, share: ShareId, length: int) -> None:
        """Make a share whose parts are all here durable, then visible. Refusal `unfinished` if a part lacks."""
        self.check_fence(fence)
        with self._lock:
            upload = self._uploads.get(share)
            if upload is None or upload.room.id != namespace or upload.ending:
                raise Refusal("unfinished", "no part of that share is here")
            if _covered(upload.parts) != length:
                raise Refusal("unfinished", f"{sum(upload.parts.values())} bytes came, {length} were announced")
            upload.ending = True
        try:
            before = self._publish(upload, namespace, share)
        finally:
            self._give_up(share, upload)  # its name is another one now, if all went well
        self._account(upload.room, length - (before or 0), shares=before is None)

    def _publish(self, upload: Upload, namespace: NamespaceId, share: ShareId) -> int | None:
        """The share durable under its name. Returns the size of what lay there before, None where nothing did."""
        with _answering():
            self._check_header(upload, namespace, share)
            self._files.fsync(upload.fd)
            directory = os.path.dirname(self._path(share))
            with suppress(FileExistsError):
                self._files.mkdir(directory)
            sync_directory(self._files, os.path.dirname(directory))
            before = self._size(share)
            self._files.rename(upload.path, self._path(share))
            sync_directory(self._files, directory)
        return before

    def _check_header(self, upload: Upload, namespace: NamespaceId, share: ShareId) -> None:
        """What a file says it is decides who may read it: it must be what it was let in as."""
        try:
            header = parse_share_header(read_exactly(self._files, upload.fd, SHARE_HEADER_BYTES, 0))
        except BadBlock:
            raise Refusal("bad_request", "that is no share") from None
        if (header.namespace, header.version, header.index) != (namespace, share.version, share.index):
            raise Refusal("bad_request", "the share says that it is another one")

    def abort(self, share: ShareId) -> None:
        """Give a share up that is on its way in; one that was there before stays."""
        with self._lock:
            upload = self._uploads.get(share)
            if upload is None or upload.ending:
                return
            upload.ending = True
        self._give_up(share, upload)

    def _give_up(self, share: ShareId, upload: Upload) -> None:
        """Close and remove its file, when nobody writes to it any more; only then the share may begin anew."""
        try:
            with upload.lock, _answering(), suppress(FileNotFoundError):
                upload.closed = True
                self._files.close(upload.fd)
                self._files.unlink(upload.path)
        finally:
            with self._lock:
                del self._uploads[share]

    @contextmanager
    def large_share(self, namespace: NamespaceId | None, share: ShareId) -> Iterator[tuple[int, int]]:
        """A descriptor of a large share's file and its size; Refusal `not_found`, also where it is another namespace's."""
        with _answering():
            try:
                fd = self._files.open(self._path(share), os.O_RDONLY)
            except FileNotFoundError:
                raise Refusal("not_found", "that share is not here") from None
            try:
                if namespace is not None and self._namespace_of(fd) != namespace:
                    raise Refusal("not_found", "that share is not here")
                yield fd, self._files.status(fd).size
            finally:
                self._files.close(fd)

    def free(self, fence: Fence, namespace: NamespaceId | None, shares: Sequence[ShareId]) -> None:
        """Remove large shares, durably. What is not there is fine."""
        self.check_fence(fence)
        directories = set()
        with _answering():
            for share in shares:
                self.abort(share)
                with suppress(Refusal), self.large_share(namespace, share) as (fd, size):
                    room = self._rooms.get(self._namespace_of(fd) or NamespaceId(b""))
                    self._files.unlink(self._path(share))
                    directories.add(os.path.dirname(self._path(share)))
                    if room is not None:
                        self._account(room, -size, shares=-1)
            for directory in sorted(directories):
                sync_directory(self._files, directory)

    def list_large(self, after: str, limit: int) -> list[str]:
        """The names of large shares in their order, behind one."""
        found: list[str] = []
        with _answering():
            for directory in self._files.list(f"{self._root}/{SHARES}"):
                if directory < after[:2]:
                    continue
                found += [name for name in self._files.list(f"{self._root}/{SHARES}/{directory}") if name > after]
                if len(found) >= limit:
                    break
        return found[:limit]

    def list_small(self, after: str, limit: int) -> list[str]:
        """The names of small shares in their order, behind one."""
        try:
            names = merge(*(map(share_name, self._index.shares(room.number)) for room in self.rooms))
            return [*islice((name for name in names if name > after), limit)]
        except IndexDamaged as error:
            raise Refusal("failed", str(error)) from None

    def _large_shares(self) -> Iterator[tuple[str, int, NamespaceId]]:
        after = ""
        while names := self.list_large(after, 1_000):
            for name in names:
                fd = self._files.open(f"{self._root}/{SHARES}/{name[:2]}/{name}", os.O_RDONLY)
                try:
                    yield name, self._files.status(fd).size, self._namespace_of(fd) or NamespaceId(b"")
                finally:
                    self._files.close(fd)
            after = names[-1]

    def _namespace_of(self, fd: int) -> NamespaceId | None:
        try:
            return parse_share_header(read_exactly(self._files, fd, SHARE_HEADER_BYTES, 0)).namespace
        except BadBlock:
            return None

    def _path(self, share: ShareId) -> str:
        name = share_name(share)
        return f"{self._root}/{SHARES}/{name[:2]}/{name}"

    def _size(self, share: ShareId) -> int | None:
        try:
            return self._files.path_status(self._path(share)).size
        except FileNotFoundError:
            return None

    # --- Namespaces ---

    @property
    def rooms(self) -> Sequence[Room]:
        return sorted(self._rooms.values(), key=lambda room: room.number)

    def named(self, name: str) -> Room | None:
        """The room of a namespace by the name that tokens call it."""
        return next((room for room in self._rooms.values() if room.name == name), None)

    def describe(self, namespace: NamespaceId, name: str, issuer: str | None, quota_bytes: int | None) -> None:
        """What whose tokens call a namespace, and how much it may hold. A name goes to one room only: the last that was given it."""
        with _answering():
            room = self._room(namespace)
            for other in self._rooms.values():
                if other.name == name and other is not room:
                    other.name = None
                    self._write_about(other)
            room.name, room.issuer, room.quota_bytes = name, issuer, quota_bytes
            self._write_about(room)

    def retire(self, namespace: NamespaceId) -> None:
        """Remove everything of a namespace. What a crash leaves of that is removed when it is asked again."""
        room = self._rooms.get(namespace)
        if room is None:
            return
        with _answering():
            for share in [share for share, upload in self._uploads.items() if upload.room is room]:
                self.abort(share)
            for name, _, owner in list(self._large_shares()):
                if owner == namespace:
                    self._files.unlink(f"{self._root}/{SHARES}/{name[:2]}/{name}")
            for directory in self._files.list(f"{self._root}/{SHARES}"):
                sync_directory(self._files, f"{self._root}/{SHARES}/{directory}")
            if room.log is not None:
                room.log.close()
                room.log, room.writer = None, 0
            gone: list[tuple[ShareId, Place | None]] = [(share, None) for share in self._index.shares(room.number)]
            self._index.record(room.number, gone, Progress())
            at = f"{self._root}/{ROOMS}/{namespace.hex()}"
            for name in self._files.list(f"{at}/log"):
                self._files.unlink(f"{at}/log/{name}")
            sync_directory(self._files, f"{at}/log")
            room.used_bytes = room.shares = 0
            room.name = room.issuer = room.quota_bytes = None
            self._write_about(room)

    def _room(self, namespace: NamespaceId) -> Room:
        """The room of a namespace, made if it is new."""
        room = self._rooms.get(namespace)
        if room is None:
            at = f"{self._root}/{ROOMS}/{namespace.hex()}"
            for directory in (at, f"{at}/log"):
                with suppress(FileExistsError):
                    self._files.mkdir(directory)
            room = Room(namespace, max((other.number for other in self._rooms.values()), default=0) + 1)
            self._write_about(room)
            sync_directory(self._files, f"{self._root}/{ROOMS}")
            self._rooms[namespace] = room
        return room

    def _write_about(self, room: Room) -> None:
        at = f"{self._root}/{ROOMS}/{room.id.hex()}"
        members = {"number": room.number, "name": room.name, "issuer": room.issuer, "quota_bytes": room.quota_bytes}
        _write_file(self._runtime, f"{at}/{ABOUT}.new", json.dumps(members).encode())
        self._files.rename(f"{at}/{ABOUT}.new", f"{at}/{ABOUT}")
        sync_directory(self._files, at)

    def _check_quota(self, entries: Sequence[ScannedEntry]) -> None:
        """Shares count; records alone are let through, so that what is over its quota can still be deleted."""
        sizes: dict[NamespaceId, int] = {}
        for scanned in entries:
            namespace = scanned.entry.envelope.namespace
            sizes[namespace] = sizes.get(namespace, 0) + len(scanned.entry.share)
        for namespace, size in sizes.items():
            if size and (room := self._rooms.get(namespace)) is not None:
                self._check_room(room, size)

    def _check_room(self, room: Room, more: int) -> None:
        used = sum(each.used_bytes for each in self.rooms)
        if self._quota_bytes is not None and used + more > self._quota_bytes:
            raise Refusal("quota", f"the shard holds {used} of the {self._quota_bytes} bytes that it may")
        if room.quota_bytes is not None and room.used_bytes + more > room.quota_bytes:
            raise Refusal("quota", f"the namespace holds {room.used_bytes} of the {room.quota_bytes} bytes that it may")

    def _log_bytes(self, room: Room) -> int:
        at = f"{self._root}/{ROOMS}/{room.id.hex()}/log"
        return sum(self._files.path_status(f"{at}/{name}").size for name in self._files.list(at))

    # --- Files ---

    def _log(self, room: Room) -> Log:
        """The room's log, open for reading."""
        if room.log is None:
            directory = f"{self._root}/{ROOMS}/{room.id.hex()}/log"
            room.log = Log(self._files, directory, shard=room.number, store_id=self._store_id, index=self._index)
        return room.log

    def _started(self, room: Room) -> Log:
        """The room's log, open for writing by the life that has the fence."""
        log = self._log(room)
        if room.writer != self.fence.writer:
            self._let_others_rest()
            log.rest()
            log.start(self.fence.writer, self._runtime.randomness)
            room.writer = self.fence.writer
        return log

    def _let_others_rest(self) -> None:
        """Not more than OPEN_LOGS logs hold a segment that is allocated."""
        writing = [room for room in self._rooms.values() if room.log is not None and room.writer]
        for room in writing[: max(0, len(writing) - OPEN_LOGS + 1)]:
            if room.log is not None:
                room.log.rest()
                room.writer = 0

    def _account(self, room: Room, size: int, *, shares: int = 0) -> None:
        with self._lock:
            room.used_bytes += size
            room.shares += shares

    def _read(self, name: str) -> bytes:
        fd = self._files.open(f"{self._root}/{name}", os.O_RDONLY)
        try:
            return bytes(read_exactly(self._files, fd, 1 << 20, 0))
        finally:
            self._files.close(fd)

    def close(self) -> None:
        for share in [*self._uploads]:
            self.abort(share)
        for room in self._rooms.values():
            if room.log is not None:
                room.log.close()
        self._index.close()


def _covered(parts: Mapping[int, int]) -> int:
    """How far the parts reach without a gap from the beginning, if none overlap; −1 otherwise."""
    end = 0
    for offset in sorted(parts):
        if offset != end:
            return -1
        end += parts[offset]
    return end


def _write_file(runtime: Runtime, path: str, data: bytes) -> None:
    files = runtime.files
    fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(files, fd, [data], 0)
        files.fsync(fd)
    finally:
        files.close(fd)


@contextmanager
def _answering() -> Iterator[None]:
    """The system's errors as refusals."""
    try:
        yield
    except OSError as error:
        raise of_system(error) from error
