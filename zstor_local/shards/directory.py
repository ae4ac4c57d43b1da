"""A shard that is a directory: a marker, the log of small shares and record copies, one file for each large share.

marker                    who it is; locked (flock) for as long as a daemon uses it
log/0000000001.log …      segments (shards/segment.py)
shares/ab/ab12…ef.3       share 3 of version ab12…ef (coding/share.py)
tmp/ab12…ef.3             the same on its way in; an intent in the metastore names it
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final

from zstor_local.coding.block import BadBlock
from zstor_local.coding.keys import NamespaceKeys
from zstor_local.coding.share import (
    FOOTER_BYTES,
    SHARE_HEADER_BYTES,
    ShareHeader,
    pack_share_header,
    parse_share_footer,
    parse_share_header,
)
from zstor_local.model.ids import ID_BYTES, NamespaceId, ShareId, StoreId, Version
from zstor_local.model.policy import Policy
from zstor_local.model.record import Envelope, ShardEntry
from zstor_local.runtime import Buffer, Files, FileStatus, FileSystem, Randomness, Runtime, read_exactly, sync_directory, write_all
from zstor_local.shards import marker
from zstor_local.shards.base import Entry, Notices, Room, ScannedEntry, ShardError, ShardState, ShareMissing, ShareReader
from zstor_local.shards.compacting import LogSegments
from zstor_local.shards.index import IndexDamaged, LogIndex, Place
from zstor_local.shards.log import Log, LogClosed, NothingAppended
from zstor_local.shards.marker import BadMarker, Marker

LOG: Final = "log"
SHARES: Final = "shares"
TEMPORARY: Final = "tmp"


def create_directory_shard(runtime: Runtime, root: str, identity: Marker, keys: NamespaceKeys) -> None:
    """Make a directory a shard, durably. What an interrupted earlier try left is completed; another shard's marker is refused.

    The parent of `root` must be there and is synced; raises OSError or BadMarker.
    """
    files = runtime.files
    for directory in (root, f"{root}/{LOG}", f"{root}/{SHARES}", f"{root}/{TEMPORARY}"):
        with suppress(FileExistsError):
            files.mkdir(directory)
    existing = _read_marker(files, root)
    if existing is not None:
        found = Marker.parse(existing, keys, identity.store_id)
        if found.uid != identity.uid:
            raise BadMarker("it is already another shard of this store")
    else:
        temporary, final = f"{root}/{TEMPORARY}/{marker.NAME}", f"{root}/{marker.NAME}"
        fd = files.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(files, fd, [identity.pack(keys, runtime.randomness.bytes(32))], 0)
            files.fsync(fd)
        finally:
            files.close(fd)
        files.rename(temporary, final)
    sync_directory(files, root)
    sync_directory(files, os.path.dirname(root))


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
        self, runtime: Runtime, entry: ShardEntry, root: str, *, store_id: StoreId, keys: NamespaceKeys, index: LogIndex
    ) -> None:
        """Open it and take its lock; ShardError (`missing`, `failed`) with the reason if it is not the shard that `entry` names."""
        self._files = runtime.files
        self._entry = entry
        self._root = root
        self._error: str | None = None
        self._broken: ShardState | None = None
        self._was_gone = False
        self._open = True
        self._passing, self._lasting = _Failing(self, lasting=False), _Failing(self, lasting=True)
        try:
            self._lock_fd = self._files.open(f"{root}/{marker.NAME}", os.O_RDONLY)
        except OSError as error:
            raise ShardError("missing", f"{root} has no marker ({_name(error)}): the disk may not be mounted") from None
        try:
            self._identity = self._verify(store_id, keys)
            self.log = Log(self._files, f"{root}/{LOG}", shard=entry.number, store_id=store_id, index=index)
        except OSError as error:
            self._files.close(self._lock_fd)
            raise ShardError("failed", f"{root}: {_name(error)}") from None
        except BaseException:
            self._files.close(self._lock_fd)
            raise
        self._index = index
        self._system = self.file_system()
        self._unlinked_in: set[str] = set()
        self._seen: ShardState = "ok"
        self._durable: set[str] = set()  # directories of shares that are known to survive a power loss

    def _verify(self, store_id: StoreId, keys: NamespaceKeys) -> FileStatus:
        data = bytes(read_exactly(self._files, self._lock_fd, marker.MAX_BYTES, 0))
        try:
            found = Marker.parse(data, keys, store_id)
        except BadMarker as error:
            raise ShardError("missing", f"{self._root}: {error}") from None
        if found.uid != self._entry.uid:
            raise ShardError("missing", f"{self._root} is shard {found.number}, not {self._entry.number}")
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
        return self._entry.group or f"fs-{os.major(self._system.device)}-{os.minor(self._system.device)}"

    @property
    def on_disk(self) -> DirectoryShard:
        return self

    def start(self, writer: int, randomness: Randomness) -> None:
        try:
            with self._failing():
                self._must_be_there()
                self._clear_temporary()
                self.log.start(writer, randomness)
        except ShardError as error:
            if error.state != "full":
                self._broken = error.state

    def _clear_temporary(self) -> None:
        """Files that were on their way in when an earlier life ended: whole shares never lie here, and nobody is writing."""
        for name in self._files.list(f"{self._root}/{TEMPORARY}"):
            self._files.unlink(f"{self._root}/{TEMPORARY}/{name}")

    def newest_writer(self) -> int:
        with self._failing():
            return self.log.newest_writer()

    def newest_committed(self) -> int:
        return self._index.progress(self.number).committed

    def unsettled(self) -> Sequence[Envelope]:
        with self._failing():
            return self.log.unsettled()

    def check(self) -> ShardState:
        if self._broken is None and self._look() is None:
            self._broken = "missing"
        self._seen = self._broken or "ok"
        return self._seen

    def recent_state(self) -> ShardState:
        return self._seen if self._seen == "ok" and self._broken is None else self.check()

    def may_return(self) -> bool:
        """After a failed flush only from another mount: what the kernel has of this one may not be what lies on the disk."""
        return self._broken in ("missing", "readonly") or self._look() is None or self._was_gone

    def _look(self) -> FileStatus | None:
        """The marker that was there when the shard was opened; None if it is not to be seen any more."""
        try:
            seen = self._files.path_status(f"{self._root}/{marker.NAME}")
        except OSError as error:
            self._error, self._was_gone = f"the marker cannot be seen ({_name(error)}): unmounted or emptied", True
            return None
        if (seen.device, seen.inode) != (self._identity.device, self._identity.inode):
            self._error, self._was_gone = "another marker lies where this shard's was", True
            return None
        return seen

    def room(self) -> Room:
        with self._failing():
            system = self.file_system()
            return Room(system.total, system.free)

    def file_system(self) -> FileSystem:
        return self._files.file_system(self._lock_fd)

    @property
    def file_system_key(self) -> tuple[int, str]:
        return self._system.device, self._system.kind

    def last_error(self) -> str | None:
        return self._error

    def append(self, entries: Sequence[Entry], committed: int) -> None:
        with self._failing():
            self._must_be_there()
            self.log.append(entries, committed)

    def start_flush(self) -> None:
        pass  # the disk is waited for in `flush`

    def flush(self) -> None:
        with self._failing(lasting=True):
            self.log.flush()

    def flushed_by_file_system(self) -> None:
        self.log.flushed_by_file_system()

    def segments(self) -> LogSegments:
        return LogSegments(self.number, self.log, self._index, self._failing)

    def _place(self, share: ShareId) -> Place:
        """Where a small share lies; ShareMissing if it does not."""
        try:
            place = self._index.find(self.number, share)
        except IndexDamaged as error:
            raise ShardError("failed", str(error)) from error
        if place is None:
            raise ShareMissing
        return place

    def flush_file_system(self) -> None:
        with self._failing(lasting=True):
            self._files.syncfs(self.log.current_fd)

    def close_for_good(self, reason: str) -> None:
        self.log.close_for_good()
        self._broken, self._error = "failed", reason

    def scan(self) -> Iterator[ScannedEntry]:
        with self._failing():
            yield from self.log.scan()

    def begin(self, share: ShareId, namespace: NamespaceId, policy: Policy) -> FileShareWriter:
        with self._failing():
            self._must_be_there()
            header = ShareHeader(share.index, policy.k, policy.m, policy.padding, share.version, namespace)
            return FileShareWriter(self, self._files, self._temporary(share), self._path(share), header)

    def open_share(self, share: ShareId, *, small: bool) -> ShareReader:
        if small:
            return _LogShareReader(self, share)
        try:
            with self._failing():
                return _FileShareReader(self, self._files, self._files.open(self._path(share), os.O_RDONLY))
        except ShardError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise ShareMissing from None
            raise

    def tell(self, notices: Notices) -> None:
        pass

    def has(self, share: ShareId, *, small: bool) -> bool:
        try:
            self.open_share(share, small=small).close()
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
        with self._failing():
            for part in self._files.list(f"{self._root}/{SHARES}"):
                for name in self._files.list(f"{self._root}/{SHARES}/{part}"):
                    if (share := _share_named(name)) is not None and name.startswith(part):
                        yield share

    def free(self, shares: Sequence[ShareId], *, small: bool) -> None:
        with self._failing():
            self._must_be_there()
            if small:
                self.log.free(shares)
                return
            for share in shares:
                for path in (self._path(share), self._temporary(share)):
                    with suppress(FileNotFoundError):
                        self._files.unlink(path)
                self._unlinked_in.add(os.path.dirname(self._path(share)))

    def settle(self, *, small: bool) -> None:
        if small:
            self.flush()
            return
        with self._failing():
            self._must_be_there()
            for directory in sorted(self._unlinked_in):
                with suppress(FileNotFoundError):
                    sync_directory(self._files, directory)
            sync_directory(self._files, f"{self._root}/{TEMPORARY}")
            self._unlinked_in.clear()

    def close(self) -> None:
        if not self._open:
            return
        self._open, self._broken = False, self._broken or "missing"
        self.log.close()
        self._files.close(self._lock_fd)

    def _path(self, share: ShareId) -> str:
        name = share.version.hex()
        return f"{self._root}/{SHARES}/{name[:2]}/{name}.{share.index}"

    def _temporary(self, share: ShareId) -> str:
        return f"{self._root}/{TEMPORARY}/{share.version.hex()}.{share.index}"

    def _make_durable(self, directory: str) -> None:
        """A directory of shares. One that is there may not be durable yet: another thread or a killed daemon made it."""
        if directory in self._durable:
            return
        with suppress(FileExistsError):
            self._files.mkdir(directory)
        with self._failing(lasting=True):
            sync_directory(self._files, os.path.dirname(directory))
        self._durable.add(directory)

    def _must_be_there(self) -> None:
        state = self.check()
        if state != "ok":
            raise ShardError(state, self._error or state, untouched=True)

    def _failing(self, *, lasting: bool = False) -> _Failing:
        """Around work on the disk: the system's errors as ShardErrors.

        After a lasting one the shard takes nothing more in this process. Failed syncs of what is to stay are lasting: no later one of
        the same file or directory can be believed.
        """
        return self._lasting if lasting else self._passing

    def _fail(self, error: BaseException, *, lasting: bool) -> None:
        if isinstance(error, LogClosed):
            self._broken = "failed"
            raise ShardError("failed", str(error)) from error
        if isinstance(error, OSError) and not isinstance(error, BlockingIOError):
            state = _state(error)
            self._error = f"{_name(error)}: {error.strerror}"
            if (lasting and error.errno not in (errno.EMFILE, errno.ENFILE)) or self.log.closed:
                self._broken = state = "failed"
            raise ShardError(state, self._error, untouched=isinstance(error, NothingAppended)) from error


class _Failing:
    """What `DirectoryShard._failing` gives: two for a shard, entered again and again, as every read of a small share does it twice."""

    __slots__ = ("_lasting", "_shard")

    def __init__(self, shard: DirectoryShard, *, lasting: bool) -> None:
        self._shard = shard
        self._lasting = lasting

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is not None:
            self._shard._fail(error, lasting=self._lasting)


def _share_named(name: str) -> ShareId | None:
    """The share whose file has this name; None for what is no share."""
    version, _, index = name.partition(".")
    try:
        share = ShareId(Version(bytes.fromhex(version)), int(index))
    except ValueError:
        return None
    return share if f"{share.version.hex()}.{share.index}" == name and len(share.version) == ID_BYTES else None


def _state(error: OSError) -> ShardState:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "full"
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "readonly"
    return "missing" if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ESTALE) else "failed"


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "unknown error")


class FileShareWriter:
    """A large share on its way into its file: temporary name, fsync, rename, fsync of the directory."""

    def __init__(self, shard: DirectoryShard, files: Files, temporary: str, final: str, header: ShareHeader) -> None:
        self._shard = shard
        self._files = files
        self._temporary = temporary
        self._final = final
        self._fd = files.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(files, self._fd, [pack_share_header(header)], 0)
        except OSError:
            self.abort()
            raise

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        with self._shard._failing():
            write_all(self._files, self._fd, buffers, SHARE_HEADER_BYTES + offset)

    def finish(self, index: Buffer, blocks_length: int, table: Buffer) -> None:
        with self._shard._failing():
            write_all(self._files, self._fd, [table, index], SHARE_HEADER_BYTES + blocks_length)
            self._files.fsync(self._fd)
            self._shard._must_be_there()
            self._close()
            self._rename()

    def _rename(self) -> None:
        directory = os.path.dirname(self._final)
        self._shard._make_durable(directory)
        self._files.rename(self._temporary, self._final)
        with self._shard._failing(lasting=True):
            sync_directory(self._files, directory)

    def abort(self) -> None:
        self._close()
        with suppress(OSError):
            self._files.unlink(self._temporary)

    def _close(self) -> None:
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1


class _FileShareReader:
    def __init__(self, shard: DirectoryShard, files: Files, fd: int) -> None:
        self._shard = shard
        self._files = files
        self._fd = fd

    def prefetch(self, offset: int, length: int) -> None:
        pass

    def read(self, offset: int, length: int, *, patient: bool = True) -> bytearray:
        with self._shard._failing():
            return read_exactly(self._files, self._fd, length, SHARE_HEADER_BYTES + offset)

    def read_nowait(self, offset: int, length: int) -> bytearray:
        with self._shard._failing():
            buffer = bytearray(length)
            if length and self._files.preadv_nowait(self._fd, [buffer], SHARE_HEADER_BYTES + offset) < length:
                raise BlockingIOError
            return buffer

    def read_table(self, length: int) -> bytearray:
        with self._shard._failing():
            size = self._files.status(self._fd).size
            try:
                footer = parse_share_footer(read_exactly(self._files, self._fd, FOOTER_BYTES, size - FOOTER_BYTES), size)
            except BadBlock as error:
                raise ShareMissing from error
            if footer.table_length != length:
                raise ShareMissing
            return read_exactly(self._files, self._fd, length, footer.table_offset)

    def claimed_version(self) -> Version | None:
        header = self._header()
        return None if header is None else header.version

    def claimed_namespace(self) -> NamespaceId | None:
        header = self._header()
        return None if header is None else header.namespace

    def _header(self) -> ShareHeader | None:
        with self._shard._failing():
            try:
                return parse_share_header(read_exactly(self._files, self._fd, SHARE_HEADER_BYTES, 0))
            except BadBlock:
                return None

    def close(self) -> None:
        self._files.close(self._fd)


class _LogShareReader:
    def __init__(self, shard: DirectoryShard, share: ShareId) -> None:
        self._shard = shard
        self._share = share
        self._place = shard._place(share)

    def prefetch(self, offset: int, length: int) -> None:
        pass

    def read(self, offset: int, length: int, *, patient: bool = True) -> bytearray:
        return self._read(offset, length, wait=True)

    def read_nowait(self, offset: int, length: int) -> bytearray:
        return self._read(offset, length, wait=False)

    def _read(self, offset: int, length: int, *, wait: bool) -> bytearray:
        while True:
            try:
                with self._shard._failing():
                    return self._shard.log.read(self._place, offset, length, wait=wait)
            except ShardError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
            before, self._place = self._place, self._shard._place(self._share)
            if self._place == before:
                raise ShareMissing  # else compaction has moved it since it was looked up

    def read_table(self, length: int) -> bytearray:
        raise ShareMissing  # a small share's table is always in its record

    def claimed_version(self) -> Version | None:
        return None  # the index of the logs finds entries by their version

    def claimed_namespace(self) -> NamespaceId | None:
        return None  # its record lies beside it

    def close(self) -> None:
        pass
