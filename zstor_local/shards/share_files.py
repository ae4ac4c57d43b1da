"""A directory shard's large shares: one file each, which has its name once it is whole and durable.

shares/ab/ab12…ef.3       share 3 of version ab12…ef (coding/share.py)
tmp/ab12…ef.3             the same on its way in; an intent in the metastore names it
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Final

from zstor_local.coding.share import FOOTER_BYTES, SHARE_HEADER_BYTES, ShareHeader, pack_share_header
from zstor_local.model.ids import ID_BYTES, ShareId, Version
from zstor_local.runtime import Buffer, Files, close_anyhow, read_exactly, sync_directory, write_all
from zstor_local.shards.disk import Disk
from zstor_local.shards.share_claims import Claiming, table_offset

SHARES: Final = "shares"
TEMPORARY: Final = "tmp"


class ShareFiles:
    """The files in one shard's directory. Errors are the disk's; those that only look up raise FileNotFoundError where nothing lies."""

    def __init__(self, files: Files, disk: Disk, root: str) -> None:
        self._files = files
        self._disk = disk
        self._root = root
        self._unlinked_in: set[str] = set()
        self._durable: set[str] = set()  # directories of shares that are known to survive a power loss

    def begin(self, header: ShareHeader) -> FileShareWriter:
        """A share that is to come."""
        return FileShareWriter(self, self._files, self._disk, ShareId(header.version, header.index), header)

    def open(self, share: ShareId) -> FileShareReader:
        return FileShareReader(self._disk, self._files, self._files.open(self.path(share), os.O_RDONLY))

    def held(self) -> Iterator[ShareId]:
        """Every share that lies here."""
        for part in self._files.list(f"{self._root}/{SHARES}"):
            try:
                names = self._files.list(f"{self._root}/{SHARES}/{part}")
            except NotADirectoryError:
                continue  # a file of somebody else's
            for name in names:
                if (share := _share_named(name)) is not None and name.startswith(part):
                    yield share

    def unlink(self, shares: Sequence[ShareId]) -> None:
        """Take shares away, whole or on their way in, also those behind one that cannot be; `settle` makes it last."""
        fault: OSError | None = None
        for share in shares:
            self._unlinked_in.add(os.path.dirname(self.path(share)))
            for path in (self.path(share), self.temporary(share)):
                try:
                    self._files.unlink(path)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    fault = fault or error
        if fault is not None:
            raise fault

    def settle(self) -> None:
        """What was unlinked stays away."""
        for directory in sorted(self._unlinked_in):
            with suppress(FileNotFoundError):
                sync_directory(self._files, directory)
        sync_directory(self._files, f"{self._root}/{TEMPORARY}")
        self._unlinked_in.clear()

    def clear_temporary(self) -> None:
        """Files that were on their way in when an earlier life ended: whole shares never lie here, and nobody is writing."""
        for name in self._files.list(f"{self._root}/{TEMPORARY}"):
            self._files.unlink(f"{self._root}/{TEMPORARY}/{name}")

    def path(self, share: ShareId) -> str:
        name = share.version.hex()
        return f"{self._root}/{SHARES}/{name[:2]}/{name}.{share.index}"

    def temporary(self, share: ShareId) -> str:
        return f"{self._root}/{TEMPORARY}/{share.version.hex()}.{share.index}"

    def make_durable(self, directory: str, *, anew: bool = False) -> None:
        """A directory of shares. One that is there may not be durable yet: another thread or a killed daemon made it."""
        if directory in self._durable and not anew:
            return
        with suppress(FileExistsError):
            self._files.mkdir(directory)
        with self._disk.failing(lasting=True):
            sync_directory(self._files, os.path.dirname(directory))
        self._durable.add(directory)


class FileShareWriter:
    """A large share on its way into its file: temporary name, fsync, rename, fsync of the directory."""

    def __init__(self, directory: ShareFiles, files: Files, disk: Disk, share: ShareId, header: ShareHeader) -> None:
        self._directory = directory
        self._files = files
        self._disk = disk
        self._temporary = directory.temporary(share)
        self._final = directory.path(share)
        self._fd = files.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            write_all(files, self._fd, [pack_share_header(header)], 0)
        except OSError:
            self.abort()
            raise

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        with self._disk.failing():
            write_all(self._files, self._fd, buffers, SHARE_HEADER_BYTES + offset)

    def finish(self, index: Buffer, blocks_length: int, table: Buffer) -> None:
        with self._disk.failing():
            write_all(self._files, self._fd, [table, index], SHARE_HEADER_BYTES + blocks_length)
            self._files.fsync(self._fd)
            self._disk.must_be_there()
            self._close()
            self._rename()

    def _rename(self) -> None:
        directory = os.path.dirname(self._final)
        for anew in (False, True):
            self._directory.make_durable(directory, anew=anew)
            try:
                self._files.rename(self._temporary, self._final)
                break
            except FileNotFoundError:  # somebody has removed the directory since
                if anew:
                    raise
        with self._disk.failing(lasting=True):
            sync_directory(self._files, directory)

    def abort(self) -> None:
        with suppress(OSError):
            self._close()
        with suppress(OSError):
            self._files.unlink(self._temporary)

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            self._files.close(fd)


class FileShareReader(Claiming):
    """A large share, open."""

    def __init__(self, disk: Disk, files: Files, fd: int) -> None:
        self._disk = disk
        self._files = files
        self._fd = fd

    def prefetch(self, offset: int, length: int) -> None:
        pass

    def read(self, offset: int, length: int, *, patient: bool = True) -> bytes:
        with self._disk.failing():
            return read_exactly(self._files, self._fd, length, SHARE_HEADER_BYTES + offset)

    def read_table(self, length: int) -> bytes:
        with self._disk.failing():
            size = self._files.status(self._fd).size
            footer = read_exactly(self._files, self._fd, min(size, FOOTER_BYTES), max(0, size - FOOTER_BYTES))
            return read_exactly(self._files, self._fd, length, table_offset(footer, size, length))

    def _start(self) -> Buffer:
        with self._disk.failing():
            return read_exactly(self._files, self._fd, SHARE_HEADER_BYTES, 0)

    def close(self) -> None:
        close_anyhow(self._files, self._fd)


def _share_named(name: str) -> ShareId | None:
    """The share whose file has this name; None for what is no share."""
    version, _, index = name.partition(".")
    try:
        share = ShareId(Version(bytes.fromhex(version)), int(index))
    except ValueError:
        return None
    return share if f"{share.version.hex()}.{share.index}" == name and len(share.version) == ID_BYTES else None
