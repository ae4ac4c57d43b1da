"""The rooms of a space: for each namespace its number in the index, its name and quota, what it holds, its log."""

from __future__ import annotations

import json
import logging
import math
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from zstor_local.model.ids import NamespaceId, StoreId
from zstor_local.runtime import Runtime
from zstor_local.shards.base import Capacity, ScannedEntry
from zstor_local.shards.compacting import LogSegments
from zstor_local.shards.http.wire import parse_id
from zstor_local.shards.log import Log
from zstor_local.shards.log_index import LogIndex
from zstor_local.shardserver.disk import ABOUT, ROOMS, Directories, answering, read_file, write_file
from zstor_local.shardserver.refusal import Refusal, of_system

log = logging.getLogger("zstor.shardserver")

OPEN_LOGS: Final = 64  # logs of namespaces that are kept open for writing: each holds a segment, in part allocated
SUPERSEDED_MAX: Final = 2**19  # sequences of records that a space remembers as superseded, some 80 bytes each
ROOMS_MAX: Final = 2**16 - 1  # numbers that the index has room for
READ_LOGS: Final = 16  # logs that keep descriptors of segments open: each may take a part of all there are (segment_files.OPEN_PART)


@dataclass(slots=True, eq=False)
class Room:
    """What a space keeps for one namespace."""

    id: NamespaceId
    number: int  # in the index, from 1
    name: str | None = None
    issuer: str | None = None  # whose tokens call it so; None: the owner's own
    quota_bytes: int | None = None
    used_bytes: int = 0
    coming_bytes: int = 0  # of large shares on their way in
    shares: int = 0  # large ones
    log: Log | None = None
    writer: int = 0  # whose segments the log begins now; 0: nobody's yet
    in_vain: dict[int, int] = field(default_factory=dict)  # segments with too little dead in them: how many bytes of shares were alive
    superseded: Set[int] = frozenset()  # the sequences of records that its owner needs no more
    freed_bytes: float = math.inf  # of what says that shares were freed, since that was last looked at; first nobody knows


class Rooms:
    """All of them, open. Blocking; whoever calls sees to one change at a time."""

    def __init__(
        self, runtime: Runtime, root: str, store_id: StoreId, index: LogIndex, quota_bytes: int | None, directories: Directories
    ) -> None:  # fmt: skip
        """`root` is the space's directory, `quota_bytes` what all rooms together may hold. OSError."""
        self._runtime = runtime
        self._files = runtime.files
        self._root = root
        self._store_id = store_id
        self._index = index
        self._quota_bytes = quota_bytes
        self._directories = directories
        self._rooms: dict[NamespaceId, Room] = {}
        self._lock = threading.Lock()  # held for moments, around what several threads count
        self._making = threading.Lock()  # held while a room is made, or its log is opened: each is once
        self._unreadable: dict[NamespaceId, str] = {}  # why logs cannot be opened
        self._read: dict[NamespaceId, Log] = {}  # logs that may have segments open, the least recently asked for first
        self._numbered: dict[int, Room] = {}  # the same by their numbers, in their order
        found = []
        for name in self._files.list(f"{root}/{ROOMS}"):
            with suppress(FileNotFoundError):  # a crash came before its about.json: nothing lies there
                found.append(self._described(NamespaceId(parse_id(name))))
        numbers = Counter(room.number for room in found)
        self._last_number = max(numbers, default=0)
        self._unmade: dict[NamespaceId, int] = {}  # the numbers of rooms that could not be made so far
        anew = [room for room in found if room.number == 0 or numbers[room.number] > 1]
        for room in sorted(found, key=lambda room: room.number):
            if room not in anew:
                self._add(room)
        for room in anew:
            self._number_anew(room)
        for room in self:
            try:
                self.log(room)  # catches the index up with it
            except Refusal as refusal:  # it is no fault of the others
                log.error("%s; until it can be nothing is written to this shard", refusal.message)

    def __iter__(self) -> Iterator[Room]:
        """By their numbers."""
        return iter(list(self._numbered.values()))

    def _add(self, room: Room) -> None:
        self._rooms[room.id] = self._numbered[room.number] = room

    def _described(self, namespace: NamespaceId) -> Room:
        """The room as its about.json tells of it; without a number if that is damaged."""
        try:
            about = json.loads(read_file(self._runtime, f"{self._root}/{ROOMS}/{namespace.hex()}/{ABOUT}"))
            number, name, issuer, quota = (about[member] for member in ("number", "name", "issuer", "quota_bytes"))
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("what the namespace %s is called and may hold cannot be read (%s)", namespace.hex(), type(error).__name__)
            return Room(namespace, 0)
        valid = (
            type(number) is int and isinstance(name, str | None) and isinstance(issuer, str | None) and isinstance(quota, int | None)
        )
        return Room(namespace, number, name, issuer, quota) if valid else Room(namespace, 0)

    def _number_anew(self, room: Room) -> None:
        """Its log is indexed from the beginning. One that lost its about.json is told again by its owner what tokens call it."""
        room.number = self._next_number()
        self._index.forget(room.number)  # it may have been another one's
        self._write_about(room)
        self._add(room)

    def _next_number(self) -> int:
        """One that no room has, nor another one that could not be made. Refusal `full` if there is none left."""
        if self._last_number >= ROOMS_MAX:
            raise Refusal("full", f"the shard has had {ROOMS_MAX} namespaces, deleted ones among them, and takes no more: replace it")
        self._last_number += 1
        return self._last_number

    def find(self, namespace: NamespaceId | None) -> Room | None:
        """The room of a namespace, if there is one."""
        return None if namespace is None else self._rooms.get(namespace)

    def numbered(self, number: int) -> Room | None:
        """The room of that number, if there is one."""
        return self._numbered.get(number)

    def make(self, namespace: NamespaceId) -> Room:
        """The room of a namespace, made if it is new."""
        with self._making:
            room = self._rooms.get(namespace)
            if room is not None:
                return room
            at = f"{self._root}/{ROOMS}/{namespace.hex()}"
            for directory in (at, f"{at}/log"):
                with suppress(FileExistsError):
                    self._files.mkdir(directory)
            self._directories.sync(at)  # its log is there where its about.json is
            number = self._unmade[namespace] = self._unmade.get(namespace) or self._next_number()
            room = Room(namespace, number)
            self._write_about(room)
            self._directories.sync(f"{self._root}/{ROOMS}")
            del self._unmade[namespace]
            self._add(room)
            return room

    def describe(self, namespace: NamespaceId, name: str, issuer: str | None, quota_bytes: int | None) -> None:
        """What whose tokens call a namespace, and how much it may hold. A name goes to one room only: the last that was given it."""
        with answering():
            room = self.make(namespace)
            if (room.name, room.issuer, room.quota_bytes) == (name, issuer, quota_bytes):
                return  # all of a store's are told whenever one of them changes
            for other in self:
                if other.name == name and other is not room:
                    self._write_about(replace(other, name=None))
                    other.name = None
            self._write_about(replace(room, name=name, issuer=issuer, quota_bytes=quota_bytes))
            room.name, room.issuer, room.quota_bytes = name, issuer, quota_bytes

    def forget_name(self, room: Room) -> None:
        """No token allows anything there any more."""
        room.name = room.issuer = room.quota_bytes = None
        self._write_about(room)

    def empty(self, room: Room) -> None:
        """Remove its log, durably; its name and its large shares are gone already. Refusal `failed` where a sync in it failed before: a
        segment that was unlinked then is not seen any more, and may be back after a power loss.
        """
        if room.log is not None:
            if room.log.closed:
                raise Refusal(
                    "failed", f"a sync of the log of namespace {room.id.hex()} failed before; the shard server must be started again"
                )
            room.log.close()
            self._read.pop(room.id, None)
            room.log, room.writer = None, 0
        room.used_bytes = room.shares = 0  # what is left where this breaks off is counted when it is opened again
        self._index.forget(room.number)
        self._index.flush()  # to a start after a kill an empty log that it knows would look like an older copy
        at = f"{self._root}/{ROOMS}/{room.id.hex()}"
        for name in self._files.list(f"{at}/log"):
            self._files.unlink(f"{at}/log/{name}")
        self._directories.sync(f"{at}/log")
        room.superseded = frozenset()
        room.in_vain.clear()

    def log(self, room: Room) -> Log:
        """The room's log, open for reading. Refusal `failed` where it cannot be opened; it is tried again each time."""
        with self._making:
            if room.log is None:
                room.log = self._opened(room)
            self._read.pop(room.id, None)
            self._read[room.id] = room.log
            while len(self._read) > READ_LOGS:
                self._read.pop(next(iter(self._read))).close_idle()
            return room.log

    def _opened(self, room: Room) -> Log:
        """Its log opened, and counted."""
        directory = f"{self._root}/{ROOMS}/{room.id.hex()}/log"
        try:
            size = sum(self._files.path_status(f"{directory}/{name}").size for name in self._files.list(directory))
            opened = Log(self._files, directory, shard=room.number, store_id=self._store_id, index=self._index)
            size -= opened.unused  # what was allocated to one that was killed
        except OSError as error:
            fault = f"the log of namespace {room.id.hex()} cannot be read: {of_system(error).message}"
            self._unreadable = {**self._unreadable, room.id: fault}
            raise Refusal("failed", fault) from error
        self._unreadable = {other: fault for other, fault in self._unreadable.items() if other != room.id}
        self.account(room, size)
        return opened

    @property
    def unreadable(self) -> Mapping[NamespaceId, str]:
        """The namespaces whose logs could not be opened when that was last tried, each with the reason."""
        return self._unreadable

    def try_unreadable(self) -> None:
        """Open those logs if they can be by now; Refusal `failed` for the first that cannot."""
        for namespace in self._unreadable:
            self.log(self._rooms[namespace])

    def started(self, room: Room, writer: int) -> Log:
        """The room's log, open for writing by that life of the owner's daemon."""
        self._directories.check()
        log = self.log(room)
        if room.writer != writer:
            self._let_others_rest()
            log.rest()
            log.start(writer, self._runtime.randomness)
            room.writer = writer
        return log

    def alive(self) -> Iterator[tuple[int, int, int]]:
        """Of each small share the number of its room, the segment that it lies in, and its bytes. IndexDamaged."""
        for _, extents in self._index.versions():
            for (number, _), extent in extents.items():
                yield number, extent.segment, extent.length

    def sealed(self, room: Room) -> list[tuple[int, int]]:
        """The segments of its log that nothing is appended to any more, with their sizes."""
        log = self.log(room)
        return [(number, self._files.path_status(log.path(number)).size) for number in log.sealed()]

    def segments(self, room: Room, writer: int) -> LogSegments:
        """Its log for compaction, open for writing by that life of the owner's daemon."""
        return LogSegments(room.number, self.started(room, writer), self._index, answering)

    def _let_others_rest(self) -> None:
        """Not more than OPEN_LOGS logs hold a segment that is allocated."""
        writing = [room for room in self if room.log is not None and room.writer]
        for room in writing[: max(0, len(writing) - OPEN_LOGS + 1)]:
            if room.log is not None:
                room.log.rest()
                room.writer = 0

    def account(self, room: Room, size: int, *, shares: int = 0) -> None:
        """So much more is held: bytes, and large shares."""
        with self._lock:
            room.used_bytes += size
            room.shares += shares

    def supersede(self, room: Room, sequences: Collection[int]) -> None:
        """These records are left out when its log is compacted. As many as there is memory for."""
        most = SUPERSEDED_MAX - sum(len(other.superseded) for other in self)
        room.superseded = {*room.superseded, *islice(sequences, max(0, most))}
        room.in_vain.clear()

    def check_batch(self, entries: Sequence[ScannedEntry]) -> None:
        """Refusal `quota` if these do not fit. Shares count; records alone are let through, so that what is over its quota
        can still be deleted.
        """
        sizes: Counter[NamespaceId] = Counter()
        for scanned in entries:
            if scanned.entry.share:
                sizes[scanned.entry.envelope.namespace] += len(scanned.entry.share)
        with self._lock:
            if sizes:
                self._check_space(sizes.total())
            for namespace, size in sizes.items():
                self._check_room(self._rooms.get(namespace), size)

    @contextmanager
    def taking_in(self, room: Room, size: int) -> Iterator[None]:
        """While a part of a large share is written; it counts from now on, until `let_go`. Refusal `quota` if it does not fit."""
        with self._lock:
            self._check_space(size)
            self._check_room(room, size)
            room.coming_bytes += size
        try:
            yield
        except BaseException:
            self.let_go(room, size)
            raise

    def let_go(self, room: Room, size: int) -> None:
        """So many bytes of a large share are not on their way in any more."""
        with self._lock:
            room.coming_bytes -= size

    def capacity(self, disk: Capacity) -> Capacity:
        """What of the disk the space may have."""
        if self._quota_bytes is None:
            return disk
        return Capacity(min(disk.total, self._quota_bytes), max(0, min(disk.free, self._quota_bytes - self._used())))

    def _used(self) -> int:
        return sum(each.used_bytes + each.coming_bytes for each in self)

    def _check_space(self, more: int) -> None:
        """Refusal `quota` if all rooms together may not hold so many bytes more."""
        used = self._used()
        if self._quota_bytes is not None and used + more > self._quota_bytes:
            raise Refusal("quota", f"the shard holds {used} of the {self._quota_bytes} bytes that it may")

    def _check_room(self, room: Room | None, more: int) -> None:
        """The same of one of them; None: one that is not made yet, which has no quota."""
        if room is None or room.quota_bytes is None:
            return
        used = room.used_bytes + room.coming_bytes
        if used + more > room.quota_bytes:
            raise Refusal("quota", f"the namespace holds {used} of the {room.quota_bytes} bytes that it may")

    def close(self) -> None:
        for room in self._rooms.values():
            if room.log is not None:
                room.log.close()

    def _write_about(self, room: Room) -> None:
        at = f"{self._root}/{ROOMS}/{room.id.hex()}"
        members = {"number": room.number, "name": room.name, "issuer": room.issuer, "quota_bytes": room.quota_bytes}
        write_file(self._runtime, f"{at}/{ABOUT}.new", json.dumps(members).encode())
        self._files.rename(f"{at}/{ABOUT}.new", f"{at}/{ABOUT}")
        self._directories.sync(at)
