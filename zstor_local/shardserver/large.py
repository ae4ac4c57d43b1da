"""The large shares of a space: a file each, in parts on its way in, visible once all of it is durable."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from zstor_local.coding.share import SHARE_HEADER_BYTES
from zstor_local.model.ids import NamespaceId, ShareId
from zstor_local.runtime import Runtime, close_anyhow, read_exactly, write_all
from zstor_local.shards.http.wire import Fence, share_name
from zstor_local.shards.share_claims import claimed_header
from zstor_local.shardserver.disk import SHARES, TEMPORARY, Directories, answering, is_lost, reading_share
from zstor_local.shardserver.large_index import LargeIndex
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.rooms import Room, Rooms

INDEX: Final = "large.sqlite"
UPLOADS_MAX: Final = 256  # large shares on their way in at once, in a space
AHEAD_MAX: Final = 64  # parts of a share that came before the one that they follow; a daemon has four on their way
_UNKNOWN: Final = 0, NamespaceId(b"")

log = logging.getLogger("zstor.shardserver")


@dataclass(slots=True, eq=False)
class Upload:
    """A large share on its way in."""

    room: Room
    fd: int
    path: str
    end: int = 0  # the parts reach so far without a gap
    ahead: dict[int, int] = field(default_factory=dict)  # parts behind a gap: offset → length
    ending: bool = False
    given_up: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while its file is written, and when that is closed

    @property
    def size(self) -> int:
        """The bytes that came."""
        return self.end + sum(self.ahead.values())

    def is_new(self, offset: int, length: int) -> bool:
        """Whether such a part lacks: one may come again. Refusal `bad_request` where it lies over another one."""
        if offset + length <= self.end or self.ahead.get(offset) == length:
            return False
        over = any(start < offset + length and offset < start + other for start, other in self.ahead.items())
        if offset < self.end or over:
            raise Refusal("bad_request", "a part lies over another one of that share")
        if offset != self.end and len(self.ahead) >= AHEAD_MAX:
            raise Refusal("bad_request", f"{AHEAD_MAX} parts of that share came before the one that they follow")
        return True

    def came(self, offset: int, length: int) -> None:
        """A new part lies in the file."""
        self.ahead[offset] = length
        while self.end in self.ahead:
            self.end += self.ahead.pop(self.end)


class LargeShares:
    """Those of one space. Parts of different shares may come at once; `free` and `remove_all` are changes, one at a time."""

    def __init__(
        self, runtime: Runtime, root: str, rooms: Rooms, check_fence: Callable[[Fence], None], directories: Directories
    ) -> None:
        """`root` is the space's directory; `check_fence` refuses whoever may not write now. Counts what is there. OSError."""
        self._files = runtime.files
        self._root = root
        self._rooms = rooms
        self._check_fence = check_fence
        self._directories = directories
        self._uploads: dict[ShareId, Upload] = {}
        self._uncounted: set[str] = set()  # shares of which nothing could be known at the start
        self._lock = threading.Lock()  # held for moments, around what several threads change
        self._index = LargeIndex(f"{root}/{INDEX}")
        try:
            for directory in self._files.list(f"{root}/{SHARES}"):
                self._count(directory)
        except BaseException:
            self._index.close()
            raise

    def _count(self, directory: str) -> None:
        """Count what lies in one directory: what the index knows is not opened, which would take minutes where there are many."""
        known = self._index.known(directory)
        new = []
        for name in self._files.list(f"{self._root}/{SHARES}/{directory}"):
            about = known.pop(name, None)
            if about is None:
                about = self._look(name)
                if not about[1]:  # one that cannot be read now may be another time
                    self._uncounted.add(name)
                    continue
                new.append((name, *about))
            if (room := self._rooms.find(about[1])) is not None:
                self._rooms.account(room, about[0], shares=1)
        self._index.put(new)
        self._index.drop(known)

    def put_part(self, fence: Fence, namespace: NamespaceId, share: ShareId, offset: int, data: bytes) -> None:
        """A part of a large share, at its offset in the share's file; nothing is visible yet."""
        with answering():
            with self._lock:
                self._check_fence(fence)  # here: who takes over gives up all that has begun by then
                upload = self._uploads.get(share) or self._begin(namespace, share)
            if upload.room.id != namespace or upload.ending:
                raise Refusal("exists", "that share is on its way in already")
            with upload.lock:
                if upload.given_up or upload.ending:
                    raise Refusal("unfinished", "that share was given up, or finished")
                if not data:
                    return
                new = upload.is_new(offset, len(data))
                with self._rooms.taking_in(upload.room, len(data) if new else 0):
                    write_all(self._files, upload.fd, [data], offset)
                if new:
                    upload.came(offset, len(data))

    def _begin(self, namespace: NamespaceId, share: ShareId) -> Upload:
        if len(self._uploads) >= UPLOADS_MAX:
            raise Refusal("busy", f"{UPLOADS_MAX} shares are on their way in")
        room = self._rooms.make(namespace)
        path = f"{self._root}/{TEMPORARY}/{share_name(share)}"
        upload = Upload(room, self._files.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), path)
        self._uploads[share] = upload
        return upload

    def finish(self, fence: Fence, namespace: NamespaceId, share: ShareId, length: int) -> None:
        """Make a share whose parts are all here durable, then visible. Refusal `unfinished` if a part lacks."""
        self._check_fence(fence)
        with self._lock:
            upload = self._uploads.get(share)
            if upload is None or upload.room.id != namespace or upload.ending:
                raise Refusal("unfinished", "no part of that share is here")
            if upload.ahead or upload.end != length:
                raise Refusal("unfinished", f"{upload.size} bytes came, {length} were announced")
            upload.ending = True
        try:
            before = self._publish(upload, namespace, share)
        finally:
            self._give_up(share, upload)  # its name is another one now, if all went well
        self._rooms.account(upload.room, length - (before or 0), shares=before is None)

    def _publish(self, upload: Upload, namespace: NamespaceId, share: ShareId) -> int | None:
        """The share durable under its name. Returns the size of what lay there before, None where nothing did that was counted."""
        with answering(), upload.lock:  # a part that comes again is not to change what was looked at
            if upload.given_up:
                raise Refusal("unfinished", "that share was given up")
            self._check_header(upload, namespace, share)
            self._files.fsync(upload.fd)
            directory = os.path.dirname(self._path(share))
            with suppress(FileExistsError):
                self._files.mkdir(directory)
            self._directories.sync(os.path.dirname(directory))
            before = self._size(share)
            self._index.drop([share_name(share)])
            self._files.rename(upload.path, self._path(share))
            self._directories.sync(directory)
            self._index.put([(share_name(share), upload.end, namespace)])
        return None if self._was_uncounted(share) else before

    def _check_header(self, upload: Upload, namespace: NamespaceId, share: ShareId) -> None:
        """What a file says it is decides who may read it: it must be what it was let in as."""
        header = claimed_header(read_exactly(self._files, upload.fd, SHARE_HEADER_BYTES, 0))
        if header is None:
            raise Refusal("bad_request", "that is no share")
        if (header.namespace, header.version, header.index) != (namespace, share.version, share.index):
            raise Refusal("bad_request", "the share says that it is another one")

    def abort(self, share: ShareId, namespace: NamespaceId | None = None) -> None:
        """Give a share up that is on its way in, of this namespace if one is named; one that was there before stays.

        When this returns it is not on its way any more: one that is being finished is there, or will not be.
        """
        with self._lock:
            upload = self._uploads.get(share)
            if upload is None or namespace not in (None, upload.room.id):
                return
            finishing, upload.ending = upload.ending, True
        if not finishing:
            self._give_up(share, upload)
            return
        with upload.lock:
            upload.given_up = True

    def _give_up(self, share: ShareId, upload: Upload) -> None:
        """Close and remove its file, when nobody writes to it any more; only then the share may begin anew."""
        try:
            with upload.lock, answering(), suppress(FileNotFoundError):
                upload.given_up = True
                close_anyhow(self._files, upload.fd)
                self._files.unlink(upload.path)
        finally:
            with self._lock:
                del self._uploads[share]
            self._rooms.let_go(upload.room, upload.size)

    @contextmanager
    def open(self, namespace: NamespaceId | None, share: ShareId) -> Iterator[tuple[int, int]]:
        """A descriptor of a large share's file and its size; Refusal `not_found`, as where it is another namespace's or unreadable."""
        with answering(), reading_share():
            try:
                fd = self._files.open(self._path(share), os.O_RDONLY)
            except FileNotFoundError:
                raise Refusal("not_found", "that share is not here") from None
            try:
                if namespace is not None and self._namespace_of(fd) != namespace:
                    raise Refusal("not_found", "that share is not here")
                yield fd, self._files.status(fd).size
            finally:
                close_anyhow(self._files, fd)

    def free(self, fence: Fence, namespace: NamespaceId | None, shares: Sequence[ShareId]) -> None:
        """Remove large shares, durably, also those behind one that cannot be. What is not there is fine, but whoever removed it may not
        have made that last.
        """
        self._check_fence(fence)
        fault: OSError | None = None
        with answering():
            for share in shares:
                self.abort(share, namespace)
                try:
                    self._free(namespace, share)
                except OSError as error:
                    fault = fault or error
            for directory in sorted({os.path.dirname(self._path(share)) for share in shares}):
                with suppress(FileNotFoundError):
                    self._directories.sync(directory)
            if fault is not None:
                raise fault

    def _free(self, namespace: NamespaceId | None, share: ShareId) -> None:
        """Remove one, if it is there and may be removed by who is meant. OSError."""
        try:
            size, holder = self._about(share_name(share))
        except FileNotFoundError:
            return
        if namespace not in (None, holder):
            return
        self._files.unlink(self._path(share))
        self._index.drop([share_name(share)])
        room = self._rooms.find(holder)
        if not self._was_uncounted(share) and room is not None:
            self._rooms.account(room, -size, shares=-1)

    def _was_uncounted(self, share: ShareId) -> bool:
        """Whether what lies, or lay, there counts for nothing; what follows it does."""
        uncounted = share_name(share) in self._uncounted
        self._uncounted.discard(share_name(share))
        return uncounted

    def names(self, after: str, limit: int) -> list[str]:
        """The names of large shares in their order, behind one."""
        found: list[str] = []
        with answering():
            for directory in self._files.list(f"{self._root}/{SHARES}"):
                if directory < after[:2]:
                    continue
                found += [name for name in self._files.list(f"{self._root}/{SHARES}/{directory}") if name > after]
                if len(found) >= limit:
                    break
        return found[:limit]

    def _about(self, name: str) -> tuple[int, NamespaceId]:
        """The size and namespace of one, from the index where its file cannot tell, if that can. OSError."""
        about = self._look(name)
        return about if about[1] else self._index.known(name).get(name, _UNKNOWN)

    def _look(self, name: str) -> tuple[int, NamespaceId]:
        """What its file tells: no namespace where it cannot be read. OSError."""
        try:
            fd = self._files.open(f"{self._root}/{SHARES}/{name[:2]}/{name}", os.O_RDONLY)
            try:
                return self._files.status(fd).size, self._namespace_of(fd) or NamespaceId(b"")
            finally:
                close_anyhow(self._files, fd)
        except OSError as error:
            if not is_lost(error):
                raise
            log.warning("a share cannot be read: %s", error)
            return _UNKNOWN

    def remove_all(self, namespace: NamespaceId) -> None:
        """Remove a namespace's, also those on their way in, durably. OSError."""
        with self._lock:
            coming = [share for share, upload in self._uploads.items() if upload.room.id == namespace]
        for share in coming:
            self.abort(share)
        room = self._rooms.find(namespace)
        some = room is not None and (room.shares > 0 or self._uncounted)  # else nobody need look for them among all the others
        for directory in self._files.list(f"{self._root}/{SHARES}"):
            known = self._index.known(directory) if some else {}
            for name in self._files.list(f"{self._root}/{SHARES}/{directory}") if some else ():
                if known.get(name, (0, namespace))[1] == namespace and self._about(name)[1] == namespace:
                    self._files.unlink(f"{self._root}/{SHARES}/{directory}/{name}")
                    self._index.drop([name])
                    self._uncounted.discard(name)
            self._directories.sync(f"{self._root}/{SHARES}/{directory}")

    def close(self) -> None:
        """Give up whatever is on its way in: what cannot be removed of it is at the next start."""
        for share in [*self._uploads]:
            with suppress(Refusal):
                self.abort(share)
        self._index.close()

    def abort_all(self) -> None:
        """Give up whatever is on its way in."""
        with self._lock:
            coming = [*self._uploads]
        for share in coming:
            self.abort(share)

    def _namespace_of(self, fd: int) -> NamespaceId | None:
        try:
            header = claimed_header(read_exactly(self._files, fd, SHARE_HEADER_BYTES, 0))
        except OSError:  # a bad sector of one share is no fault of the others
            return None
        return None if header is None else header.namespace

    def _path(self, share: ShareId) -> str:
        name = share_name(share)
        return f"{self._root}/{SHARES}/{name[:2]}/{name}"

    def _size(self, share: ShareId) -> int | None:
        try:
            return self._files.path_status(self._path(share)).size
        except FileNotFoundError:
            return None
