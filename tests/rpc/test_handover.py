"""What clients hand over: whatever may wait for their disks does so in a thread, and every descriptor is closed."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from tests.troubled_files import TroubledFiles, troubled_runtime
from zstor_local.errors import IoError, NoSpace
from zstor_local.rpc.methods.handover import Handover
from zstor_local.runtime import Runtime
from zstor_local.store.paths import Paths
from zstor_local.store.protected import Protected
from zstor_local.store.reading import Range
from zstor_local.store.sources import BytesSource, FileSource
from zstor_local.system import RealClientFiles, RealFiles, real_runtime

WAITING = {
    "open", "close", "reopen", "status", "path_status", "file_system", "preadv", "pread", "pwritev", "writev", "fsync", "rename",
    "unlink", "open_unnamed", "name_it", "set_mode", "real_path", "seek",
}  # fmt: skip


def noting(files: type, seen: set[str]) -> Any:
    """Files that note which calls that may wait for a disk are made where the event loop runs."""
    loop = threading.current_thread()

    def noted(name: str) -> Callable[..., object]:
        def call(self: object, *args: Any, **more: Any) -> object:
            if threading.current_thread() is loop:
                seen.add(name)
            return getattr(files, name)(self, *args, **more)

        return call

    return type(files.__name__, (files,), {name: noted(name) for name in WAITING if hasattr(files, name)})()


@dataclass
class Ground:
    directory: Path
    in_loop: set[str] = field(default_factory=set)  # calls there that may wait
    fds: list[int] = field(default_factory=list)
    keeping: bool = False  # whether no share of what is read is freed

    def __post_init__(self) -> None:
        real = real_runtime()
        runtime = Runtime(noting(RealFiles, self.in_loop), real.clock, real.randomness, real.threads, real.readiness)
        self.paths = Paths(runtime.files, noting(RealClientFiles, self.in_loop), real.randomness, Protected([], []), [])
        self.handover = Handover(runtime, self.paths)
        self.call = cast(Any, SimpleNamespace(peer=SimpleNamespace(mounts=None), take_fd=self.fds.__getitem__))

    def file(self, size: int) -> str:
        path = self.directory / "f"
        path.write_bytes(b"x" * size)
        return str(path)

    def hand_over(self, size: int, flags: int) -> int:
        self.fds.append(os.open(self.file(size), flags))
        return len(self.fds) - 1

    @contextmanager
    def kept(self, stored: object) -> Iterator[None]:
        """As Objects does it."""
        self.keeping = True
        yield
        self.keeping = False

    async def read_to_file(self, stored: object, sink: Any, part: Range, call: object) -> None:
        """As Objects does it."""
        await trio.to_thread.run_sync(sink.write_at, [b"bytes"], 0)

    @property
    def objects(self) -> Any:
        return self


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    ground = Ground(tmp_path)
    yield ground
    assert ground.in_loop == set()
    assert [fd for fd in ground.fds if os.path.exists(f"/proc/self/fd/{fd}")] == []
    ground.paths.close()


@pytest.mark.parametrize(("size", "kind"), [(0, BytesSource), (8_192, BytesSource), (8_193, FileSource)])
async def test_a_file_is_opened_and_closed_in_a_thread(ground: Ground, size: int, kind: type) -> None:
    async with ground.handover.file(ground.call, ground.file(size)) as source:
        assert isinstance(source, kind)
        assert source.size == size


@pytest.mark.parametrize(("size", "kind"), [(8_193, BytesSource), (8_194, FileSource)])  # read from its second byte on
async def test_so_is_one_that_was_handed_over(ground: Ground, size: int, kind: type) -> None:
    index = ground.hand_over(size, os.O_RDONLY)
    os.lseek(ground.fds[0], 1, os.SEEK_SET)
    other = os.dup(ground.fds[0])
    async with ground.handover.source(ground.call, index, stream=True) as source:
        assert isinstance(source, kind)
        assert isinstance(source, (BytesSource, FileSource))
        assert source.size == size - 1
        assert os.lseek(other, 0, os.SEEK_CUR) == 1
    assert os.lseek(other, 0, os.SEEK_CUR) == size
    os.close(other)


async def test_so_is_a_file_to_write_to(ground: Ground) -> None:
    path = ground.file(3)
    async with ground.handover.output(ground.call, None, path, "truncate", stream=False, sync=True) as take:
        await take(ground.objects, cast(Any, None), Range(0, 5, 256))
    assert Path(path).read_bytes() == b"bytes"
    async with ground.handover.sink_at(ground.call, path, "append") as sink:
        await sink.write([b", more"])
    assert Path(path).read_bytes() == b"bytes, more"


async def test_so_is_a_handed_over_one_to_write_to(ground: Ground) -> None:
    index = ground.hand_over(0, os.O_RDWR)
    async with ground.handover.output(ground.call, index, None, "truncate", stream=False, sync=True) as take:
        await take(ground.objects, cast(Any, None), Range(0, 5, 256))
    assert (ground.directory / "f").read_bytes() == b"bytes"
    async with ground.handover.sink(ground.call, ground.hand_over(0, os.O_WRONLY | os.O_APPEND)) as sink:
        await sink.write([b"more"])


async def test_nothing_is_freed_while_the_offset_is_waited_for(ground: Ground) -> None:
    kept: list[bool] = []

    class Files(RealFiles):
        def seek(self, fd: int, offset: int, whence: int) -> int:
            kept.append(ground.keeping)
            return super().seek(fd, offset, whence)

    real = real_runtime()
    handover = Handover(Runtime(Files(), real.clock, real.randomness, real.threads, real.readiness), ground.paths)
    async with handover.output(ground.call, ground.hand_over(0, os.O_RDWR), None, "truncate", stream=False, sync=False) as take:
        await take(ground.objects, cast(Any, None), Range(0, 5, 256))
    assert kept == [True]


async def test_a_call_that_is_cancelled_leaves_no_descriptor(ground: Ground) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with ground.handover.source(ground.call, ground.hand_over(9_000, os.O_RDONLY), stream=False):
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught


async def test_an_error_leaves_none_either(ground: Ground) -> None:
    with pytest.raises(KeyError):
        async with ground.handover.source(ground.call, ground.hand_over(9_000, os.O_RDONLY), stream=False):
            raise KeyError
    path = ground.directory / "new"
    with pytest.raises(KeyError):
        async with ground.handover.output(ground.call, None, str(path), "truncate", stream=False, sync=True):
            raise KeyError
    assert not path.exists()


@pytest.fixture
def troubled(tmp_path: Path) -> Iterator[tuple[TroubledFiles, Ground]]:
    files = TroubledFiles()
    ground = Ground(tmp_path)
    ground.handover = Handover(troubled_runtime(files), ground.paths)
    yield files, ground
    ground.paths.close()


async def test_what_a_disk_says_as_a_file_is_closed_counts_where_it_was_written_to(troubled: tuple[TroubledFiles, Ground]) -> None:
    files, ground = troubled
    files.fail("close", lambda path: True, errno.EDQUOT, times=None)
    async with ground.handover.source(ground.call, ground.hand_over(9_000, os.O_RDONLY), stream=False) as source:
        assert isinstance(source, FileSource)
    for opened in (
        ground.handover.sink(ground.call, ground.hand_over(0, os.O_WRONLY)),
        ground.handover.output(ground.call, ground.hand_over(0, os.O_WRONLY), None, "truncate", stream=False, sync=False),
    ):
        with pytest.raises(NoSpace):
            async with opened:
                pass


async def test_a_file_that_its_server_has_forgotten_cannot_be_read(troubled: tuple[TroubledFiles, Ground]) -> None:
    files, ground = troubled
    async with ground.handover.source(ground.call, ground.hand_over(9_000, os.O_RDONLY), stream=False) as source:
        assert isinstance(source, FileSource)
        files.fail("status", lambda path: True, errno.ESTALE, times=2)
        with pytest.raises(IoError, match="ESTALE"):
            source.verify()
    opened = ground.handover.source(ground.call, ground.hand_over(9_000, os.O_RDONLY), stream=False)
    with pytest.raises(IoError, match="ESTALE"):
        await opened.__aenter__()
