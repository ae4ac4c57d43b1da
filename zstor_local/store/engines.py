"""Which engines hold the metastore and the index of the logs: SQLite files, or what a simulated world brings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import count
from typing import Final, Protocol

from zstor_local import limits
from zstor_local.coding.keys import NamespaceKeys
from zstor_local.errors import errno_text
from zstor_local.metastore.base import Metastore, MetastoreNotOpened, Transaction
from zstor_local.metastore.reserve import Reserve
from zstor_local.metastore.sqlite import SqliteMetastore
from zstor_local.model.ids import StoreId
from zstor_local.runtime import Files, Runtime, SteadyDevice, settle_file, sync_directory
from zstor_local.shards.log_index import LogIndex
from zstor_local.shards.opening import FILE, Against, DeviceOf, DirectoryEngine, ShardEngine, nothing_against

METASTORE: Final = "metastore.sqlite"
INDEX: Final = "index.sqlite"
RESERVE: Final = "reserve"


class Engines(Protocol):
    """Makes and opens what does not go through Runtime.files."""

    def metastore_exists(self, store: str) -> bool: ...
    def create_metastore(self, store: str, store_id: StoreId, transactions: Iterable[Transaction]) -> None:
        """A metastore with these transactions in it; all of it is durable when this returns, nothing of it is there before.

        One that was there gets another name then: its bytes stay. OSError, CommitRefused or CommitUnknown if that cannot be.
        """
        ...

    def open_metastore(self, store: str) -> Metastore: ...
    def open_index(self, store: str) -> LogIndex: ...
    def shard_engines(self, runtime: Runtime, store_id: StoreId, keys: NamespaceKeys, index: LogIndex) -> Mapping[str, ShardEngine]:
        """The kinds of shards there are, by the scheme of their URLs."""
        ...


RemoteEngines = Callable[[Runtime, StoreId, NamespaceKeys], Mapping[str, ShardEngine]]


def no_remote_engines(runtime: Runtime, store_id: StoreId, keys: NamespaceKeys) -> Mapping[str, ShardEngine]:
    return {}


class SqliteEngines:
    """SQLite files in the store's directory. `remote` makes the engines of shards on other machines; of those on this one `device_of`
    tells what they lie on, and `against` where none may be made.
    """

    def __init__(
        self,
        files: Files,
        remote: RemoteEngines = no_remote_engines,
        device_of: DeviceOf | None = None,
        against: Against = nothing_against,
    ) -> None:
        self._files = files
        self._device_of = device_of or (lambda root: SteadyDevice(files))
        self._remote = remote
        self._against = against

    def metastore_exists(self, store: str) -> bool:
        try:
            self._files.path_status(f"{store}/{METASTORE}")
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def create_metastore(self, store: str, store_id: StoreId, transactions: Iterable[Transaction]) -> None:
        temporary = f"{store}/{METASTORE}.new"
        for name in self._files.list(store):  # what an interrupted try left
            if name.startswith(f"{METASTORE}.new"):
                self._files.unlink(f"{store}/{name}")
        SqliteMetastore.create(temporary, store_id, transactions)
        self._put_aside(store)
        self._files.rename(temporary, f"{store}/{METASTORE}")
        sync_directory(self._files, store)

    def _put_aside(self, store: str) -> None:
        names = self._files.list(store)
        number = next(n for n in count(1) if f"{METASTORE}.before-rebuild-{n}" not in names)
        for suffix in ("", "-wal", "-shm"):
            if METASTORE + suffix in names:
                self._files.rename(f"{store}/{METASTORE}{suffix}", f"{store}/{METASTORE}.before-rebuild-{number}{suffix}")
        sync_directory(self._files, store)  # no power loss may leave the old write-ahead log beside the new metastore

    def open_metastore(self, store: str) -> Metastore:
        reserve = Reserve(self._files, f"{store}/{RESERVE}", limits.METASTORE_RESERVE_BYTES)
        reserve.keep()
        path = f"{store}/{METASTORE}"
        self._settle_log(f"{path}-wal")
        try:
            return SqliteMetastore(path, reserve=reserve)
        except MetastoreNotOpened as error:  # perhaps the disk has no room for what SQLite makes beside the file
            if not error.no_space or not reserve.give_up():
                raise
            return SqliteMetastore(path, reserve=reserve)

    def _settle_log(self, path: str) -> None:
        """SQLite takes for committed what it reads in a write-ahead log that a crash left, and writes behind it."""
        try:
            with suppress(FileNotFoundError):
                settle_file(self._files, path)
        except OSError as error:
            raise MetastoreNotOpened(f"its write-ahead log cannot be flushed: {errno_text(error)}", no_space=False) from error

    def open_index(self, store: str) -> LogIndex:
        return LogIndex(f"{store}/{INDEX}")

    def shard_engines(self, runtime: Runtime, store_id: StoreId, keys: NamespaceKeys, index: LogIndex) -> Mapping[str, ShardEngine]:
        return {
            FILE: DirectoryEngine(self._device_of, runtime.randomness, store_id, keys, index, self._against),
            **self._remote(runtime, store_id, keys),
        }
