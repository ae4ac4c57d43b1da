"""Where shards on a shard server are tested: the server runs in a thread of the test, on files that can be told to fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.shards.ground import STORE, keys, uid
from tests.shardserver.inside import Inside
from tests.shardserver.server import Issuer
from tests.troubled_files import TroubledFiles, troubled_runtime
from zstor_local.access.ownership import OwnerTokens
from zstor_local.model.ids import ShardUid, ShareId
from zstor_local.model.storewide import ShardEntry
from zstor_local.runtime import read_exactly
from zstor_local.shards.base import Shard, ShardError
from zstor_local.shards.http.engine import HttpEngine
from zstor_local.shards.marker import Marker
from zstor_local.shardserver.disk import ROOMS, TEMPORARY


class HttpGround:
    """As tests.shards.ground.Ground."""

    def __init__(self, parent: Path) -> None:
        self.faults = TroubledFiles()
        self.runtime = troubled_runtime(self.faults)
        self.issuer = Issuer(STORE)
        self.server = Inside(self.runtime, parent / "data", self.issuer)
        self.engine = self._engine()
        self.opened: list[Shard] = []

    def _engine(self) -> HttpEngine:
        """That of a new life of the daemon."""
        tokens = OwnerTokens(lambda: [self.issuer.key], STORE, "local", self.runtime.clock, self.runtime.randomness)
        return HttpEngine(self.runtime, self.server.network, tokens, STORE, keys())

    def url(self, number: int = 0) -> str:
        return self.server.url if number == 0 else f"{self.server.url}//{number}"

    def root(self, number: int = 0) -> str:
        return f"{self.server.data}/spaces/{STORE.hex()}"

    def create(self, number: int = 0) -> None:
        self.engine.create(self.url(number), Marker(STORE, uid(number), number, 1))

    def open(self, number: int = 0, *, writer: int | None = 1) -> Shard:
        shard = self.engine.open(ShardEntry(number, uid(number), f"shard{number}", self.url(number), ""), self.url(number))
        self.opened.append(shard)
        if writer is not None:
            shard.start(writer, self.runtime.randomness)
        return shard

    def new(self, number: int = 0) -> Shard:
        self.create(number)
        return self.open(number)

    def close(self) -> None:
        for shard in self.opened:
            shard.close()
        self.opened.clear()

    def reopen(self, *, writer: int | None = 2) -> Shard:
        """Shard 0 as the next life of daemon and server finds it."""
        self.close()
        self.server.restart()
        self.engine = self._engine()
        return self.open(writer=writer)

    def now_and_after_a_restart(self) -> Iterator[Shard]:
        yield self.opened[0]
        yield self.reopen()

    def lose_marker(self, shard: Shard) -> None:
        """The shard goes from the server, and is looked at once more."""

        def lose() -> None:
            self.server.volume.spaces.pop(ShardUid(bytes(STORE))).close()
            shutil.move(self.root(), f"{self.root()}.away")
            os.mkdir(f"{self.root()}.away/{TEMPORARY}/kept")

        self.server.do(lose)
        with suppress(ShardError):
            shard.capacity()

    def content(self, path: str) -> bytes:
        fd = self.faults.open(path, os.O_RDONLY)
        try:
            return bytes(read_exactly(self.faults, fd, self.faults.status(fd).size, 0))
        finally:
            self.faults.close(fd)

    def names(self, path: str) -> list[str]:
        return self.faults.list(path) if os.path.exists(path) else []

    def unfinished(self) -> list[str]:
        return self.names(f"{self.root()}/{TEMPORARY}")

    def unfinished_path(self, share: ShareId) -> str:
        return f"{self.root()}/{TEMPORARY}/{share.version.hex()}.{share.index}"

    def segment(self, number: int) -> str:
        for root in (self.root(), f"{self.root()}.away"):
            for room in self.names(f"{root}/{ROOMS}"):
                if os.path.exists(path := f"{root}/{ROOMS}/{room}/log/{number:010d}.log"):
                    return path
        raise FileNotFoundError

    def end(self) -> None:
        self.close()
        self.server.close()
