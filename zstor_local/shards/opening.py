"""Opening shards: the scheme of a shard's URL picks the engine, and nothing above knows which kinds of shards there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from zstor_local.coding.keys import NamespaceKeys
from zstor_local.model.ids import StoreId
from zstor_local.model.record import Envelope, Kind
from zstor_local.model.storewide import ShardEntry
from zstor_local.runtime import Device, DiskStalled, Files, Randomness, sync_directory
from zstor_local.shards.base import NoPlace, Shard, ShardError
from zstor_local.shards.directory import LOG, DirectoryShard, create_directory_shard, read_identity, take_back
from zstor_local.shards.disk import said
from zstor_local.shards.log import Log
from zstor_local.shards.log_index import LogIndex
from zstor_local.shards.marker import NAME, BadMarker, Marker
from zstor_local.shards.share_files import SHARES, TEMPORARY

FILE: Final = "file"
_OWN: Final = {LOG, SHARES, TEMPORARY, NAME, "lost+found"}


@dataclass(frozen=True, slots=True)
class Identified:
    """Whose marker lies at a place. `where` is equal for two URLs that lead to one place."""

    marker: Marker
    where: Hashable


class ShardEngine(Protocol):
    """One kind of shards. Calls may block; each raises ShardError where the place cannot be reached."""

    def open(self, entry: ShardEntry, url: str) -> Shard:
        """The shard that the entry names, if it lies there: `missing` otherwise, with the reason."""
        ...

    def identify(self, url: str) -> Identified | None:
        """The marker that lies there, authenticated; None if there is none, BadMarker if it is none of this store."""
        ...

    def older_keys(self, url: str) -> Iterator[Envelope]:
        """The records of older master keys that lie there, unopened: a marker may open with one of those alone."""
        ...

    def create(self, url: str, identity: Marker) -> None:
        """Make an empty place, or one where this was begun before, a shard, durably. BadMarker or `failed` if others are there."""
        ...

    def retire(self, entry: ShardEntry, url: str) -> None:
        """If that shard lies there, it is none any more: nothing of it is needed. As far as that is possible; what was not is logged.

        The same again does nothing, nor where another shard lies there by now. Never raises.
        """
        ...


class ShardOpener:
    """All engines of a daemon. A URL without a scheme is a directory's path."""

    def __init__(self, engines: Mapping[str, ShardEngine]) -> None:
        self._engines = engines

    @property
    def schemes(self) -> list[str]:
        return sorted(self._engines)

    def open(self, entry: ShardEntry, url: str) -> Shard:
        return self._engine(url).open(entry, url)

    def identify(self, url: str) -> Identified | None:
        return self._engine(url).identify(url)

    def older_keys(self, url: str) -> Iterator[Envelope]:
        return self._engine(url).older_keys(url)

    def create(self, url: str, identity: Marker) -> None:
        self._engine(url).create(url, identity)

    def retire(self, entry: ShardEntry, url: str) -> None:
        with suppress(ShardError):  # of a kind that this version has not
            self._engine(url).retire(entry, url)

    def _engine(self, url: str) -> ShardEngine:
        scheme = url.partition("://")[0] if "://" in url else FILE
        engine = self._engines.get(scheme)
        if engine is None:
            raise NoPlace(f"{url}: this version has no shards of the kind {scheme!r}, but {', '.join(self.schemes)}")
        return engine


def directory_of(url: str) -> str:
    """The path of a directory shard; NoPlace if it is not absolute."""
    path = url.removeprefix("file://").rstrip("/")
    if not path.startswith("/"):
        raise NoPlace(f"{url} is not an absolute path")
    return path


DeviceOf = Callable[[str], Device]  # what a directory, there or not, lies on
Against = Callable[[str], str | None]  # why no shard can be in a directory: what is there is hidden, or what is written thrown away


def nothing_against(root: str) -> None:
    """Any directory may become a shard."""


class DirectoryEngine:
    """Shards that are directories: `/path` or `file:///path`. `device_of` tells what a directory lies on."""

    def __init__(
        self,
        device_of: DeviceOf,
        randomness: Randomness,
        store_id: StoreId,
        keys: NamespaceKeys,
        index: LogIndex,
        against: Against = nothing_against,
    ) -> None:
        self._device_of = device_of
        self._randomness = randomness
        self._store_id = store_id
        self._keys = keys
        self._index = index
        self._against = against
        self._left: dict[str, tuple[Marker, list[str]]] = {}  # by root: what `create` made, is not durable, and could not take back

    def open(self, entry: ShardEntry, url: str) -> Shard:
        root = directory_of(url)
        try:
            return DirectoryShard(self._device_of(root), entry, root, store_id=self._store_id, keys=self._keys, index=self._index)
        except ShardError as error:
            if error.state == "missing" and (reason := self._against(root)) is not None:
                raise ShardError("missing", reason) from None
            raise

    def identify(self, url: str) -> Identified | None:
        root = directory_of(url)
        files = self._device_of(root).files
        try:
            found = read_identity(files, root, self._keys, self._store_id)
            if found is None:
                return None
            status = files.path_status(f"{root}/{NAME}")
        except OSError as error:
            raise ShardError("missing", f"{root}: {said(error)}") from error
        return Identified(found, (status.device, status.inode))

    def older_keys(self, url: str) -> Iterator[Envelope]:
        root = directory_of(url)
        files, log_directory = self._device_of(root).files, f"{root}/{LOG}"
        try:
            with (
                closing(LogIndex(":memory:")) as index,
                closing(Log(files, log_directory, shard=0, store_id=self._store_id, index=index)) as log,
            ):
                yield from (Envelope.parse(record) for record in log.records() if record[0] == Kind.KEYS)
        except OSError as error:
            raise ShardError("missing", f"{log_directory}: {said(error)}") from error

    def create(self, url: str, identity: Marker) -> None:
        root = directory_of(url)
        if (reason := self._against(root)) is not None:
            raise ShardError("failed", reason)
        files = self._device_of(root).files
        made: list[str] = []
        try:
            self._take_back(files, root)
            if not self._is_begun(files, root, identity):
                _must_be_vacant(files, root)
            create_directory_shard(files, self._randomness, root, identity, self._keys, made)
        except BadMarker:
            raise
        except FileNotFoundError as error:
            raise ShardError("failed", f"{root}: there is no {os.path.dirname(root)}; its disk may not be mounted") from error
        except OSError as error:
            if isinstance(error, DiskStalled) and made:
                self._left[root] = identity, made
            raise ShardError("failed", f"{root}: {said(error)}") from error

    def _take_back(self, files: Files, root: str) -> None:
        """What an earlier `create` had to leave there, unless another shard has come to that place."""
        if root not in self._left:
            return
        identity, made = self._left[root]
        with suppress(BadMarker):
            found = read_identity(files, root, self._keys, self._store_id)
            if found is None or found.uid == identity.uid:
                take_back(files, made)
        del self._left[root]

    def _is_begun(self, files: Files, root: str, identity: Marker) -> bool:
        """Whether an interrupted `create` of this very shard came to its marker, and the first start perhaps further."""
        with suppress(BadMarker, FileNotFoundError):
            found = read_identity(files, root, self._keys, self._store_id)
            return found is not None and found.uid == identity.uid
        return False

    def retire(self, entry: ShardEntry, url: str) -> None:
        """Its marker is put aside; what else lies there is left to whoever owns the disk."""
        with suppress(OSError, ShardError, BadMarker):
            found = self.identify(url)
            if found is None or found.marker.uid != entry.uid:
                return
            root = directory_of(url)
            files = self._device_of(root).files
            files.rename(f"{root}/{NAME}", f"{root}/{NAME}.removed")
            sync_directory(files, root)


def _must_be_vacant(files: Files, root: str) -> None:
    """Nothing lies there but what an interrupted `create` may leave: its marker is taken away."""
    try:
        names = files.list(root)
    except FileNotFoundError:
        return
    inner = [name for part in (LOG, SHARES) if part in names for name in files.list(f"{root}/{part}")]
    if inner or not {*names} <= _OWN:
        raise ShardError("failed", f"{root} is not empty")
    if NAME in names:
        files.unlink(f"{root}/{NAME}")  # for good, once the one that follows has its name
