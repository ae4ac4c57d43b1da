"""A shard that is a directory: a marker, the log of small shares and record copies, one file for each large share.

marker                    who it is; locked (flock) for as long as a daemon uses it
log/0000000001.log …      segments (shards/segment.py)
shares/, tmp/             large shares (shards/share_files.py)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from zstor_local.coding.keys import SALT_BYTES, NamespaceKeys
from zstor_local.coding.share import ShareHeader
from zstor_local.errors import errno_name
from zstor_local.model.ids import NamespaceId, ShareId, StoreId, Version
from zstor_local.model.policy import Policy
from zstor_local.model.record import Envelope
from zstor_local.model.storewide import ShardEntry
from zstor_local.runtime import (
    Device,
    DiskStalled,
    Files,
    FileStatus,
    FileSystem,
    Randomness,
    close_anyhow,
    read_exactly,
    sync_directory,
    write_all,
)
from zstor_local.shards import marker
from zstor_local.shards.base import Capacity, Entry, Notices, ScannedEntry, ShardError, ShardState, ShareMissing, ShareReader
from zstor_local.shards.compacting import LogSegments
from zstor_local.shards.disk import STALLED, Disk
from zstor_local.shards.log import Log
from zstor_local.shards.log_index import Extent, IndexDamaged, LogIndex
from zstor_local.shards.marker import BadMarker, Marker
from zstor_local.shards.share_files import SHARES, TEMPORARY, FileShareWriter, ShareFiles

LOG: Final = "log"


def create_directory_shard(
    files: Files, randomness: Randomness, root: str, identity: Marker, keys: NamespaceKeys, made: list[str]
) -> None:
    """Make a directory a shard, durably. What an interrupted earlier try left is completed; another shard's marker is refused.

    The parent of `root` must be there and is synced; raises OSError or BadMarker. What was made is taken back where it cannot be made
    durable: after a sync that failed the next one says nothing of what that one was to sync, so the next try makes it again. After
    DiskStalled it lies in `made`, and is to be taken back before the next try.
    """
    for directory in (root, f"{root}/{LOG}", f"{root}/{SHARES}", f"{root}/{TEMPORARY}"):
        with suppress(FileExistsError):
            files.mkdir(directory)
            made.append(directory)
    existing = _read_marker(files, root)
    if existing is not None:
        found = Marker.parse(existing, keys, identity.store_id)
        if found.uid != identity.uid:
            raise BadMarker("it is already another shard of this store")
    else:
        temporary, final = f"{root}/{TEMPORARY}/{marker.NAME}", f"{root}/{marker.NAME}"
        fd = files.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(files, fd, [identity.pack(keys, randomness.bytes(SALT_BYTES))], 0)
            files.fsync(fd)
        finally:
            files.close(fd)
        made.append(final)
        files.rename(temporary, final)
    try:
        sync_directory(files, root)
        sync_directory(files, os.path.dirname(root))
    except OSError:
        with suppress(DiskStalled):
            take_back(files, made)
        raise


def take_back(files: Files, made: list[str]) -> None:
    """Take away what was made of a shard, the last first, as far as nothing lies in it. What DiskStalled keeps there stays."""
    while made:
        try:
            files.unlink(made[-1]) if made[-1].endswith(f"/{marker.NAME}") else files.rmdir(made[-1])
        except DiskStalled:
            raise
        except OSError:
            pass
        made.pop()


def marker_store(files: Files, root: str) -> StoreId | None:
    """The store whose marker lies in a directory, unauthenticated; None if there is none."""
    try:
        data = _read_marker(files, root)
    except OSError:
        return None
    return None if data is None else marker.claimed_store(data)


def read_identity(files: Files, root: str, keys: NamespaceKeys, store_id: StoreId) -> Marker | None:
    """The marker in a directory, authenticated; None if there is none, BadMarker if it is not one of this store."""
    data = _read_marker(files, root)
    return None if data is None else Marker.parse(data, keys, store_id)


def _read_marker(files: Files, root: str) -> bytes | None:
    try:
        fd = files.open(f"{root}/{marker.NAME}", os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return bytes(read_exactly(files, fd, marker.MAX_BYTES, 0))
    finally:
        files.close(fd)


class DirectoryShard:
    """See the laws of shards.base.Shard."""

    def __init__(
        self, device: Device, entry: ShardEntry, root: str, *, store_id: StoreId, keys: NamespaceKeys, index: LogIndex
    ) -> None:
        """Open it and take its lock; ShardError (`missing`, `failed`) with the reason if it is not the shard that `entry` names."""
        self._device = device
        self._files = device.files
        self._entry = entry
        self._root = root
        self._open = True
        try:
            self._lock_fd = self._files.open(f"{root}/{marker.NAME}", os.O_RDONLY)
        except DiskStalled:
            raise ShardError("failed", f"{root}: {STALLED}") from None
        except OSError as error:
            raise ShardError("missing", f"{root} has no marker ({errno_name(error)}): the disk may not be mounted") from None
        try:
            self._disk = Disk(device, root, self._lock_fd, self._verify(store_id, keys))
            self.log = Log(self._files, f"{root}/{LOG}", shard=entry.number, store_id=store_id, index=index)
        except OSError as error:
            close_anyhow(self._files, self._lock_fd)
            raise ShardError("failed", f"{root}: {errno_name(error)}") from None
        except IndexDamaged as error:
            close_anyhow(self._files, self._lock_fd)
            raise ShardError("failed", str(error)) from None
        except BaseException:
            close_anyhow(self._files, self._lock_fd)
            raise
        self._disk.log_closed = lambda: self.log.closed
        self._shares = ShareFiles(self._files, self._disk, root)
        self._index = index
        self._flushing: Callable[[], None] | None = None  # waits for what start_flush began

    def _verify(self, store_id: StoreId, keys: NamespaceKeys) -> FileStatus:
        data = bytes(read_exactly(self._files, self._lock_fd, marker.MAX_BYTES, 0))
        try:
            found = Marker.parse(data, keys, store_id)
        except BadMarker as error:
            raise ShardError("missing", f"{self._root}: {error}") from None
        if found.uid != self._entry.uid:
            raise ShardError("missing", f"{self._root} is another shard of this store than {self._entry.id}")
        if not self._files.lock(self._lock_fd):
            raise ShardError("failed", f"{self._root} is in use by another process")
        return self._files.status(self._lock_fd)

    @property
    def number(self) -> int:
        return self._entry.number

    @property
    def entry(self) -> ShardEntry:
        return self._entry

    @property
    def id(self) -> str:
        return self._entry.id

    @property
    def url(self) -> str:
        return self._root

    @property
    def group(self) -> str:
        return self._entry.group or f"fs-{os.major(self._disk.system.device)}-{os.minor(self._disk.system.device)}"

    @property
    def on_disk(self) -> DirectoryShard:
        return self

    def start(self, writer: int, randomness: Randomness) -> None:
        try:
            with self._disk.failing():
                self._disk.must_be_there()
                self._shares.clear_temporary()
                self.log.start(writer, randomness)
        except ShardError as error:
            if error.state != "full":
                self._disk.broken = error.state

    def newest_writer(self) -> int:
        with self._disk.failing():
            return self.log.newest_writer()

    def newest_committed(self) -> int:
        return self._index.progress(self.number).committed

    def unsettled(self) -> Sequence[Envelope]:
        with self._disk.failing():
            return [*self.log.unsettled()]

    def check(self) -> ShardState:
        return self._disk.check()

    def recent_state(self) -> ShardState:
        return self._disk.recent_state()

    def may_return(self) -> bool:
        return self._disk.may_return()

    def capacity(self) -> Capacity:
        with self._disk.failing():
            system = self.file_system()
            return Capacity(system.total, system.free)

    def file_system(self) -> FileSystem:
        return self._disk.file_system()

    @property
    def file_system_key(self) -> tuple[int, str]:
        return self._disk.system.device, self._disk.system.kind

    def last_error(self) -> str | None:
        return self._disk.error

    def append(self, entries: Sequence[Entry], committed: int) -> None:
        with self._disk.failing():
            self._disk.must_be_there()
            self._flushing = None  # one that nobody waited for says nothing of what comes now
            self.log.append(entries, committed)

    def start_flush(self) -> None:
        self._flushing = None
        if (fd := self.log.written_fd) is not None:
            with suppress(OSError):  # `flush` will say so
                self._flushing = self._device.begin_fdatasync(fd)

    def flush(self) -> None:
        flushing, self._flushing = self._flushing, None
        with self._disk.failing(lasting=True):
            self.log.flush(flushing)

    def flushed_by_file_system(self) -> None:
        self.log.flushed()

    def segments(self) -> LogSegments:
        return LogSegments(self.number, self.log, self._index, self._disk.failing)

    def _extent(self, share: ShareId) -> Extent:
        """Where a small share lies; ShareMissing if it does not."""
        try:
            extent = self._index.find(self.number, share)
        except IndexDamaged as error:
            raise ShardError("failed", str(error)) from error
        if extent is None:
            raise ShareMissing
        return extent

    def flush_file_system(self) -> None:
        with self._disk.failing(lasting=True):
            self._files.syncfs(self.log.current_fd)

    def close_for_good(self, reason: str) -> None:
        self.log.close_for_good()
        self._disk.give_up(reason)

    def scan(self) -> Iterator[ScannedEntry]:
        with self._disk.failing():
            yield from self.log.scan()

    def records(self) -> Iterator[bytes]:
        with self._disk.failing():
            yield from self.log.records()

    def begin(self, share: ShareId, namespace: NamespaceId, policy: Policy) -> FileShareWriter:
        with self._disk.failing():
            self._disk.must_be_there()
            header = ShareHeader(share.index, policy.k, policy.m, policy.padding, share.version, namespace)
            return self._shares.begin(header)

    def open_share(self, share: ShareId, *, small: bool) -> ShareReader:
        if small:
            return _LogShareReader(self._disk, self.log, lambda: self._extent(share))
        try:
            with self._disk.failing():
                return self._shares.open(share)
        except ShardError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise ShareMissing from None
            raise

    def peek(self, share: ShareId, offset: int, length: int) -> bytearray | None:
        try:
            extent = self._index.find(self.number, share)
        except IndexDamaged:
            return None
        return None if extent is None else self.log.peek(extent, offset, length)

    def tell(self, notices: Notices) -> bool:
        return True

    def retire(self, namespace: NamespaceId) -> None:
        pass

    def supersede(self, namespace: NamespaceId, sequences: Sequence[int]) -> None:
        pass

    def has(self, share: ShareId, *, small: bool) -> bool:
        try:
            if small:
                self._extent(share)
            else:
                self.open_share(share, small=False).close()
        except ShareMissing:
            return False
        return True

    def held(self, *, small: bool) -> Iterator[ShareId]:
        if small:
            try:
                yield from self._index.shares(self.number)
            except IndexDamaged as error:
                raise ShardError("failed", str(error)) from error
            return
        with self._disk.failing():
            yield from self._shares.held()

    def free(self, shares: Sequence[ShareId], *, small: bool) -> None:
        with self._disk.failing():
            self._disk.must_be_there()
            if small:
                self._flushing = None
                self.log.free(shares)
                return
            self._shares.unlink(shares)

    def settle(self, *, small: bool) -> None:
        if small:
            self.flush()
            return
        with self._disk.failing(lasting=True):
            self._disk.must_be_there()
            self._shares.settle()

    def close(self) -> None:
        if not self._open:
            return
        self._open, self._disk.broken = False, self._disk.broken or "missing"
        self.log.close()
        close_anyhow(self._files, self._lock_fd)


class _LogShareReader:
    """A small share, open. `find` tells where it lies now, or raises ShareMissing."""

    def __init__(self, disk: Disk, log: Log, find: Callable[[], Extent]) -> None:
        self._disk = disk
        self._log = log
        self._find = find
        self._extent = find()

    def prefetch(self, offset: int, length: int) -> None:
        pass

    def read(self, offset: int, length: int, *, patient: bool = True) -> bytes:
        while True:
            try:
                with self._disk.failing():
                    return self._log.read(self._extent, offset, length)
            except ShardError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
            before, self._extent = self._extent, self._find()
            if self._extent == before:
                raise ShareMissing  # else compaction has moved it since it was looked up

    def read_table(self, length: int) -> bytes:
        raise ShareMissing  # a small share's table is always in its record

    def claimed_version(self) -> Version | None:
        return None  # the index of the logs finds entries by their version

    def claimed_namespace(self) -> NamespaceId | None:
        return None  # its record lies beside it

    def close(self) -> None:
        pass
