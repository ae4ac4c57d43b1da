"""A store in real directories, with the short words that its tests use: put, get, shares and their damage."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
import trio

from tests.daemon.client import SAFETY_NET_SECONDS
from tests.troubled_files import TroubledFiles, troubled_runtime
from zstor_local import limits
from zstor_local.coding.block import ChunkShape
from zstor_local.coding.chunk import ChunkCoder
from zstor_local.coding.share import SHARE_HEADER_BYTES
from zstor_local.config import Config, ShardConfig
from zstor_local.metastore.base import Transaction
from zstor_local.metastore.sqlite import SqliteMetastore
from zstor_local.model.ids import ObjectName, ShareId, Version
from zstor_local.model.policy import Policy
from zstor_local.runtime import Buffer, Files, Runtime
from zstor_local.shards.directory import DirectoryShard
from zstor_local.store.caller import Caller, Nobody
from zstor_local.store.engines import METASTORE, SqliteEngines
from zstor_local.store.opening import open_store
from zstor_local.store.reading import stretch
from zstor_local.store.rebuild import rebuild
from zstor_local.store.rebuild.report import Report
from zstor_local.store.sources import BytesSource
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.writes import Source, WriteOptions

CHUNK: Final = 256 * limits.KIB
SMALL_AND_LARGE: Final = (10_000, 700_000)  # an object whose shares are log entries, and one with share files of three chunks


class WatchedMetastore(SqliteMetastore):
    """The real metastore; `before_commit` is called in the committer's thread with each transaction."""

    def __init__(self, path: str, before_commit: Callable[[Transaction], None]) -> None:
        super().__init__(path, busy_seconds=0.0)
        self._before_commit = before_commit

    def commit(self, transaction: Transaction) -> None:
        self._before_commit(transaction)
        super().commit(transaction)


class WatchedEngines(SqliteEngines):
    """SQLite files as in production; commits of the open metastore pass `before_commit` first, which tests replace."""

    def __init__(self, files: Files) -> None:
        super().__init__(files)
        self.before_commit: Callable[[Transaction], None] = lambda transaction: None

    def open_metastore(self, store: str) -> SqliteMetastore:
        return WatchedMetastore(f"{store}/{METASTORE}", lambda transaction: self.before_commit(transaction))


@dataclass
class Home:
    """Where a store lives: `open` it as often as needed, one at a time."""

    path: Path
    policy: Policy = field(default_factory=lambda: Policy(2, 3, chunk_size=CHUNK))
    shards: int | None = None  # None: as many as the policy has shares, in the default places
    write_quorum: int | None = None
    brings_back: bool = False  # records that are found not to open, by itself

    def __post_init__(self) -> None:
        self.files = TroubledFiles()
        self.suspects: set[Version] = set()  # versions that reads found bad shares of; nothing mends them meanwhile
        self.engines = WatchedEngines(self.files)

    @property
    def store(self) -> str:
        return f"{self.path}/store"

    @property
    def key_file(self) -> Path:
        return self.path / "config" / "master.key"

    @property
    def metastore(self) -> Path:
        return Path(self.store) / METASTORE

    def root(self, number: int) -> Path:
        return self.path / "disks" / str(number) if self.shards else Path(self.store) / "shards" / str(number)

    def config(self) -> Config:
        if self.shards:
            (self.path / "disks").mkdir(exist_ok=True)
        shards = [ShardConfig(f"disk{number}", f"file://{self.root(number)}") for number in range(self.shards or 0)]
        return Config(
            store=self.store,
            socket=f"{self.path}/socket",
            master_key_file=str(self.key_file),
            write_quorum=self.write_quorum,
            shards=tuple(shards),
            policy=self.policy,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Store]:
        """The store, as a daemon opens it, but that what reads find bad is only noted."""
        async with open_store(self.runtime(), self.engines, self.config()) as store:
            store.on_bad_shares = lambda stored, states: self.suspects.add(stored.version)
            if not self.brings_back:
                store.core.suspects.add = lambda space, name: None  # type: ignore[method-assign]
            yield store

    def runtime(self) -> Runtime:
        return troubled_runtime(self.files)

    def rebuild(self, *, accept_loss: bool = False) -> Report:
        """What `zstor rebuild` does to a closed store."""
        return rebuild(self.runtime(), self.engines, self.config(), accept_loss=accept_loss, progress=lambda what, count: None)

    def fail_commits(self, error: BaseException) -> None:
        """The metastore raises it in place of every commit, until `heal_commits`."""

        def fail(transaction: Transaction) -> None:
            raise error

        self.engines.before_commit = fail

    def heal_commits(self) -> None:
        self.engines.before_commit = lambda transaction: None

    def take_away(self, number: int) -> None:
        """The shard's directory is gone, as after an unmount."""
        self.root(number).rename(self.away(number))

    def bring_back(self, number: int) -> None:
        self.away(number).rename(self.root(number))

    async def return_to(self, store: Store, number: int) -> None:
        """The shard's directory is back, and the store has looked."""
        self.bring_back(number)
        await store.presence.look()

    def away(self, number: int) -> Path:
        return self.path / f"away{number}"

    def share_files(self) -> list[str]:
        """Every file of a large share on any shard, finished or not, by its path below the shards."""
        roots = [*(self.path / "disks").glob("*"), *Path(self.store).glob("shards/*")]
        return sorted(str(each) for root in roots for part in ("shares/*/*", "tmp/*") for each in root.glob(part))

    def copy_metastore(self, target: Path) -> None:
        """What a backup of the metastore alone would hold, of a closed store."""
        target.mkdir(exist_ok=True)
        for file in Path(self.store).glob(f"{METASTORE}*"):
            shutil.copy(file, target / file.name)

    def restore_metastore(self, source: Path) -> None:
        for file in Path(self.store).glob(f"{METASTORE}*"):
            file.unlink()
        for file in source.iterdir():
            shutil.copy(file, Path(self.store) / file.name)


# --- Objects ---


def name(key: str, namespace: str = "default") -> ObjectName:
    return ObjectName(namespace, key)


async def put(
    store: Store,
    key: str,
    data: bytes | Source,
    options: WriteOptions | None = None,
    *,
    namespace: str = "default",
    caller: Caller | None = None,
) -> Stored:
    source = BytesSource(data) if isinstance(data, bytes) else data
    return await store.writer.write(name(key, namespace), source, options or WriteOptions(), caller or Nobody())


async def get(store: Store, key: str, *, namespace: str = "default", offset: int | None = None, length: int | None = None) -> bytes:
    stored = store.objects.find(name(key, namespace))
    return await store.objects.read(stored, stretch(stored.record, offset, length))


async def delete(store: Store, key: str, *, namespace: str = "default") -> int:
    return await store.writer.delete(name(key, namespace), None, Nobody())


async def keys(
    store: Store, prefix: str = "", *, after: str | None = None, limit: int = 1_000, namespace: str = "default"
) -> list[str]:
    return [stored.record.key async for stored in store.objects.list(namespace, prefix, after, limit)]


def opened_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The chunk's number of each block that is opened from now on."""
    opened: list[int] = []
    open_block = ChunkCoder.open_block

    def noting(coder: ChunkCoder, chunk: int, index: int, shape: ChunkShape, sealed: Buffer) -> bytes:
        opened.append(chunk)
        return open_block(coder, chunk, index, shape, sealed)

    monkeypatch.setattr(ChunkCoder, "open_block", noting)
    return opened


def content(seed: int, size: int) -> bytes:
    """Bytes that do not compress, different for each seed."""
    return random.Random(seed).randbytes(size)


# --- Shares, behind the store's back ---


@dataclass(frozen=True, slots=True)
class SharePlace:
    """Where the blocks of a share lie in which file."""

    path: Path
    offset: int
    length: int

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.length)

    def overwrite(self, data: bytes, at: int = 0) -> None:
        with self.path.open("r+b") as file:
            file.seek(self.offset + at)
            file.write(data)

    def flip(self, at: int) -> None:
        """One bit of the byte at this place of the share."""
        self.overwrite(bytes([self.read()[at] ^ 0x10]), at)


def share_place(store: Store, stored: Stored, index: int) -> SharePlace:
    number = stored.record.placement[index]
    shard = store.pool.get(number)
    assert isinstance(shard, DirectoryShard)
    if stored.record.small:
        place = store.index.find(number, ShareId(stored.version, index))
        assert place is not None
        return SharePlace(Path(shard.log.path(place.segment)), place.offset, place.length)
    version = stored.version.hex()
    path = Path(f"{shard.url}/shares/{version[:2]}/{version}.{index}")
    return SharePlace(path, SHARE_HEADER_BYTES, stored.record.share_bytes)


def share_places(store: Store, stored: Stored) -> list[SharePlace]:
    return [share_place(store, stored, index) for index in range(stored.record.policy.m)]


# --- What is left to do ---


async def freed(store: Store) -> None:
    """Wait until everything is freed that can be."""
    while await store.freeing.free_some():
        pass


async def freed_by_itself(store: Store) -> None:
    """Wait until the store has freed everything."""
    with trio.fail_after(SAFETY_NET_SECONDS):
        while store.metastore.garbage_count():
            await store.committer.news().wait()


def small_shares(store: Store) -> int:
    """How many shares the logs hold."""
    return sum(1 for number in store.pool.numbers for _ in store.index.shares(number))


async def strays(home: Home, store: Store) -> None:
    """The shares of a large object that was deleted lie there again: nothing names them."""
    await put(store, "stray", content(1, 700_000))
    kept = {path: Path(path).read_bytes() for path in home.share_files()}
    await delete(store, "stray")
    await freed(store)
    for path, data in kept.items():
        Path(path).write_bytes(data)
