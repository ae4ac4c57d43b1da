"""The master key on the disk: read with its guards, written so that a power loss leaves the whole file or none."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Final

from zstor_local.errors import errno_name
from zstor_local.model.masterkey import MAX_FILE_BYTES, NEXT, UNFINISHED, BadKeyFile, MasterKey
from zstor_local.runtime import Files, FileStatus, read_exactly, settle_file, sync_directory, write_all
from zstor_local.store.faults import StoreFault

_ROOT: Final = 0  # who may do as they like anyway


def key_exists(files: Files, path: str) -> bool:
    try:
        files.path_status(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_key(files: Files, path: str) -> MasterKey:
    """The key; StoreFault if it cannot be read, others may read or replace it, or it is no key file."""
    try:
        return _read(files, path)
    except BadKeyFile as error:
        raise StoreFault(f"{path} is not a master key: {error}", "restore it with `zstor key restore`") from None


def _read(files: Files, path: str) -> MasterKey:
    try:
        fd = files.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise StoreFault(
            f"the master key {path} cannot be read: {errno_name(error)}",
            "bring the file back, or restore it with `zstor key restore` from the words of `zstor key backup`",
        ) from None
    try:
        status = files.status(fd)
        if not status.is_regular:
            raise StoreFault(f"the master key {path} is not a regular file", "put the key file in its place")
        if status.mode & 0o077:
            raise StoreFault(
                f"the master key {path} can be read by others (mode {status.mode & 0o777:o})",
                f"if nobody else has seen it: chmod 600 {path}",
            )
        _must_be_guarded(files, path, status)
        return MasterKey.from_text(bytes(read_exactly(files, fd, MAX_FILE_BYTES, 0)).decode("utf-8", "replace"))
    finally:
        files.close(fd)


def _must_be_guarded(files: Files, path: str, status: FileStatus) -> None:
    """StoreFault if somebody else made the key, or anybody may put another one in its place."""
    if status.uid not in (files.own_uid(), _ROOT):
        raise StoreFault(
            f"the master key {path} belongs to another user (uid {status.uid})",
            f"run zstor as that user; or, if it is the key of this store: chown {files.own_uid()} {path}",
        )
    directory = os.path.dirname(path)
    mode = files.path_status(directory).mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:  # a group may be of one user alone
        raise StoreFault(
            f"the master key {path} can be taken away by anybody: all may write to its directory (mode {stat.S_IMODE(mode):o})",
            f"chmod o-w {directory}",
        )


def unfinished_key(files: Files, path: str, suffix: str = UNFINISHED) -> MasterKey | None:
    """The key of an init (or with NEXT of a rotation) that was interrupted; None if there is none, or none whole: then nothing was
    sealed with it yet.
    """
    if not key_exists(files, path + suffix):
        return None
    try:
        return _read(files, path + suffix)
    except BadKeyFile:
        return None


def write_unfinished_key(files: Files, path: str, key: MasterKey, suffix: str = UNFINISHED) -> None:
    """The key under its unfinished name, durable when this returns. A beginning of one that lies there is replaced."""
    temporary = path + suffix
    with suppress(FileNotFoundError):
        files.unlink(temporary)
    fd = files.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_all(files, fd, [key.to_text().encode()], 0)
    finally:
        files.close(fd)
    settle_unfinished_key(files, path, suffix)


def settle_unfinished_key(files: Files, path: str, suffix: str = UNFINISHED) -> None:
    """Make the key under its unfinished name durable: that it can be read does not mean that it is. One that a failed sync did not
    write is none then.
    """
    settle_file(files, path + suffix)
    sync_directory(files, os.path.dirname(path))


def finish_key(files: Files, path: str, suffix: str = UNFINISHED) -> None:
    """The key gets its name: from this moment the store exists, or has the next key."""
    files.rename(path + suffix, path)
    sync_directory(files, os.path.dirname(path))


def drop_next_key(files: Files, path: str) -> None:
    """The key of a rotation that did not come to its commit goes: nothing was sealed with it."""
    with suppress(FileNotFoundError):
        files.unlink(path + NEXT)


def make_directories(files: Files, path: str) -> None:
    """A directory and its missing parents, all 0700 and durable. The first one that is there may be what a killed start made."""
    missing = []
    while True:
        try:
            files.path_status(path)
            break
        except FileNotFoundError:
            missing.append(path)
            path = os.path.dirname(path)
    with suppress(PermissionError):  # a directory that we may not read is not one that we made
        sync_directory(files, os.path.dirname(path))
    for directory in reversed(missing):
        with suppress(FileExistsError):
            files.mkdir(directory)
        sync_directory(files, os.path.dirname(directory))
