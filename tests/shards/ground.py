"""Where a shard under test lies: real directories, or a simulated disk; the same calls for both."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tests.simulation.files import SimulatedFiles
from tests.simulation.outcomes import Outcome
from tests.troubled_files import TroubledFiles
from zstor_local.coding.keys import KeyRing, NamespaceKeys
from zstor_local.model.ids import KeyHash, NamespaceId, ShardUid, ShareId, StoreId, Version
from zstor_local.model.policy import Policy
from zstor_local.model.record import Envelope, Kind
from zstor_local.model.storewide import ShardEntry
from zstor_local.runtime import Runtime, SteadyDevice, read_exactly, write_all
from zstor_local.shards.base import Entry, Shard, ShareReader
from zstor_local.shards.directory import DirectoryShard, create_directory_shard
from zstor_local.shards.log_index import LogIndex
from zstor_local.shards.marker import Marker
from zstor_local.shards.opening import Against, DirectoryEngine, nothing_against
from zstor_local.shards.share_files import TEMPORARY

STORE = StoreId(b"store id 16bytes")
NAMESPACE = NamespaceId(b"namespace id 16b")
POLICY = Policy(2, 3)


def keys(master: bytes = bytes(32), store: StoreId = STORE) -> NamespaceKeys:
    return KeyRing(master, store).store_wide()


def uid(number: int) -> ShardUid:
    return ShardUid(number.to_bytes(16, "big"))


def version(number: int) -> Version:
    return Version(number.to_bytes(16, "big"))


def entry(number: int, share: bytes | None = None, *, index: int = 0, kind: Kind = Kind.OBJECT) -> Entry:
    """A record's copy with sequence and version `number`; with a small share, or without."""
    envelope = Envelope(kind, NAMESPACE, KeyHash(b"a hashed key 16b"), version(number), number, b"sealed %d" % number)
    return Entry(envelope, None if share is None else index, share or b"")


@dataclass(slots=True)
class Ground:
    """A parent directory in some world, and the shards opened there, which `close` closes."""

    runtime: Runtime
    parent: str
    faults: TroubledFiles | SimulatedFiles
    opened: list[DirectoryShard] = field(default_factory=list)

    def root(self, number: int = 0) -> str:
        return f"{self.parent}/{number}"

    def url(self, number: int = 0) -> str:
        return self.root(number)

    def lose_marker(self, shard: Shard) -> None:
        """The shard's marker goes behind its back."""
        self.runtime.files.unlink(f"{self.root(shard.number)}/marker")

    def create(self, number: int = 0, *, store: StoreId = STORE) -> None:
        identity = Marker(store, uid(number), number, 1)
        create_directory_shard(self.runtime.files, self.runtime.randomness, self.root(number), identity, keys(store=store), [])

    def open(self, number: int = 0, *, index: LogIndex | None = None, writer: int | None = 1) -> DirectoryShard:
        """The shard, opened and (with a writer number) started. Without an index everything is read from the log."""
        listed = ShardEntry(number, uid(number), f"shard{number}", self.root(number), "")
        shard = DirectoryShard(
            SteadyDevice(self.runtime.files),
            listed,
            self.root(number),
            store_id=STORE,
            keys=keys(),
            index=index or LogIndex(":memory:"),
        )
        self.opened.append(shard)
        if writer is not None:
            shard.start(writer, self.runtime.randomness)
        return shard

    def engine(self, index: LogIndex, against: Against = nothing_against) -> DirectoryEngine:
        device = SteadyDevice(self.runtime.files)
        return DirectoryEngine(lambda _: device, self.runtime.randomness, STORE, keys(), index, against)

    def new(self, number: int = 0, *, index: LogIndex | None = None) -> DirectoryShard:
        self.create(number)
        return self.open(number, index=index)

    def close(self) -> None:
        for shard in self.opened:
            shard.close()
        self.opened.clear()

    def reopen(self, *, index: LogIndex | None = None, writer: int | None = 2) -> DirectoryShard:
        """Shard 0 as the next process finds it."""
        self.close()
        return self.open(index=index, writer=writer)

    def now_and_after_a_restart(self) -> Iterator[DirectoryShard]:
        """The shard as it is open, then as the next process finds it."""
        yield self.opened[0]
        yield self.reopen()

    def content(self, path: str) -> bytes:
        with self._file(path) as fd:
            return bytes(read_exactly(self.runtime.files, fd, self.runtime.files.status(fd).size, 0))

    def overwrite(self, path: str, offset: int, data: bytes) -> None:
        """Damage: bytes of a file change behind the program's back."""
        with self._file(path) as fd:
            write_all(self.runtime.files, fd, [data], offset)

    def names(self, path: str) -> list[str]:
        return self.runtime.files.list(path)

    def unfinished(self) -> list[str]:
        """The files of large shares that are on their way in."""
        return self.names(f"{self.root()}/{TEMPORARY}")

    def unfinished_path(self, share: ShareId) -> str:
        return f"{self.root()}/{TEMPORARY}/{share.version.hex()}.{share.index}"

    def segment(self, number: int) -> str:
        return f"{self.root()}/log/{number:010d}.log"

    @contextmanager
    def _file(self, path: str) -> Iterator[int]:
        fd = self.runtime.files.open(path, os.O_RDWR)
        try:
            yield fd
        finally:
            self.runtime.files.close(fd)


def crashed(ground: Ground, outcome: Outcome) -> Ground:
    """The same after a power loss."""
    assert isinstance(ground.faults, SimulatedFiles)
    files = ground.faults.crash(outcome, lambda: 0)
    return Ground(replace(ground.runtime, files=files), ground.parent, files)


def write_share(shard: Shard, share: ShareId, blocks: Sequence[bytes], *, table: bytes = b"") -> None:
    """A large share, its last block first."""
    writer = shard.begin(share, NAMESPACE, POLICY)
    offsets = [sum(len(block) for block in blocks[:number]) for number in range(len(blocks))]
    for offset, block in reversed(list(zip(offsets, blocks, strict=True))):
        writer.write(offset, [block])
    writer.finish(b"index", sum(len(block) for block in blocks), table)


def read_share(shard: Shard, share: ShareId, *, small: bool, length: int = 1_000_000) -> bytes:
    reader: ShareReader = shard.open_share(share, small=small)
    try:
        return bytes(reader.read(0, length))
    finally:
        reader.close()
