"""Bytes by path or descriptor: what a client names or hands over becomes a source or a sink, and is closed in the end."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from typing import Final, TypeVar

import trio

from zstor_local import limits
from zstor_local.errors import Cancelled, PathRefused
from zstor_local.rpc.call import Call
from zstor_local.runtime import FileStatus, Runtime, close_anyhow
from zstor_local.store.paths import Mode, Paths
from zstor_local.store.reading import Range
from zstor_local.store.reads import Objects
from zstor_local.store.sinks import AppendSink, FileSink, OrderedSink, PipeSink, writing
from zstor_local.store.sources import BytesSource, FileSource, PipeSource, SocketSource, reading
from zstor_local.store.stored import Stored

T = TypeVar("T")
Source = BytesSource | FileSource | PipeSource | SocketSource
Take = Callable[[Objects, Stored, Range], Awaitable[None]]  # writes that part of an object there

_LITTLE_BYTES: Final = 8 * limits.KIB  # read by who opens the file; many may wait then for room in which they are coded


class Producer:
    """The caller of a write: when its bytes have ended, it must still be there."""

    def __init__(self, call: Call) -> None:
        self._call = call

    @property
    def has_reply_room(self) -> bool:
        return self._call.has_reply_room

    def progress(self, done: int, total: int | None) -> None:
        self._call.progress(done, total)

    def begin_commit(self) -> None:
        if self._call.client_gone():
            raise Cancelled("the client went away")
        self._call.begin_commit()


class Handover:
    """Sources and sinks for the calls of one daemon. Whatever may wait for a client's disk does so in a worker thread."""

    def __init__(self, runtime: Runtime, paths: Paths) -> None:
        self._runtime = runtime
        self._files = runtime.files
        self._paths = paths

    @asynccontextmanager
    async def file(self, call: Call, path: str) -> AsyncIterator[FileSource | BytesSource]:
        """A regular file by its path; of a little one its bytes, for each way to a thread and back is dear to it."""
        source, close = await self._runtime.threads.run(self._open, path, call.peer.mounts)
        try:
            yield source
        finally:
            if isinstance(source, FileSource):  # a little one is closed
                with trio.CancelScope(shield=True):
                    await self._runtime.threads.run(close)

    def _open(self, path: str, mounts: str | None) -> tuple[FileSource | BytesSource, Callable[[], None]]:
        """A source, and what closes it unless it has all of its bytes."""
        with ExitStack() as opened:
            source = FileSource(self._files, opened.enter_context(self._closing(self._paths.open_input(path, mounts))))
            little = _little(source)
            return (source, opened.pop_all().close) if little is None else (little, opened.close)

    def source(self, call: Call, index: int, *, stream: bool) -> AbstractAsyncContextManager[Source]:
        """A handed-over descriptor to read from. A regular file is read from its offset on, which is set to its end once."""
        return self._entered(self._source(call.take_fd(index), stream=stream))

    @contextmanager
    def _source(self, fd: int, *, stream: bool) -> Iterator[Source]:
        with self._closing(fd):
            status = self._paths.check_input(fd, stream=stream)
            if status.is_regular:
                with reading():  # a namespace, or secret memory: files by their kind, without bytes to read
                    offset = self._files.seek(fd, 0, os.SEEK_CUR)
                source = FileSource(self._files, fd, offset)
                yield _little(source) or source
                self._files.seek(fd, source.size, os.SEEK_CUR)
            elif stat.S_ISSOCK(status.mode):
                yield SocketSource(self._runtime, self._paths.client_files, fd)
            else:
                with self._closing(self._reopen(fd, os.O_RDONLY)) as own:
                    yield PipeSource(self._runtime, own)

    def sink(self, call: Call, index: int) -> AbstractAsyncContextManager[OrderedSink]:
        """A handed-over descriptor to write to in order; a regular file is written from its offset on."""
        return self._entered(self._sink(call.take_fd(index)))

    @contextmanager
    def _sink(self, fd: int) -> Iterator[OrderedSink]:
        with self._written(fd), self._in_order(fd, self._paths.check_output(fd, stream=True)) as sink:
            yield sink

    @contextmanager
    def _in_order(self, fd: int, status: FileStatus) -> Iterator[OrderedSink]:
        if status.is_regular:
            yield AppendSink(self._runtime, fd)
        elif stat.S_ISSOCK(status.mode):
            yield PipeSink(self._runtime, fd, self._paths.client_files.send)
        else:
            with self._closing(self._reopen(fd, os.O_WRONLY)) as own:
                yield PipeSink(self._runtime, own, self._files.writev)

    @asynccontextmanager
    async def sink_at(self, call: Call, path: str, mode: Mode) -> AsyncIterator[OrderedSink]:
        """A file of that name to write in order: there whole and durable in the end, or not touched at all."""
        async with self._entered(self._paths.destination(path, call.peer.mounts, mode, sync=True)) as fd:
            yield AppendSink(self._runtime, fd)

    def output(
        self, call: Call, fd: int | None, path: str | None, mode: Mode, *, stream: bool, sync: bool
    ) -> AbstractAsyncContextManager[Take]:
        """Where an object is to be written: the descriptor of that index, or the file of that name."""
        return self._to_path(call, path or "", mode, sync=sync) if fd is None else self._to_fd(call, fd, stream=stream, sync=sync)

    @asynccontextmanager
    async def _to_path(self, call: Call, path: str, mode: Mode, *, sync: bool) -> AsyncIterator[Take]:
        """The file is there whole in the end, or not touched at all."""
        async with self._entered(self._paths.destination(path, call.peer.mounts, mode, sync=sync)) as fd:
            yield lambda objects, stored, part: objects.read_to_file(stored, FileSink(self._files, fd), part, call)

    @asynccontextmanager
    async def _to_fd(self, call: Call, index: int, *, stream: bool, sync: bool) -> AsyncIterator[Take]:
        """A handed-over regular file, from its offset on, or with O_APPEND in order to its end; or else with `stream` whatever takes
        bytes in order.
        """
        async with self._entered(self._output(call.take_fd(index), stream=stream)) as (fd, sink):
            if sink is None:
                yield lambda objects, stored, part: self._into_file(call, objects, stored, part, fd, sync=sync)
            else:
                yield lambda objects, stored, part: objects.read_to_stream(stored, sink, part, call)

    @contextmanager
    def _output(self, fd: int, *, stream: bool) -> Iterator[tuple[int, OrderedSink | None]]:
        with self._written(fd):
            status = self._paths.check_output(fd, stream=stream)
            if status.is_regular:
                yield fd, None
                return
            with self._in_order(fd, status) as sink:
                yield fd, sink

    async def _into_file(self, call: Call, objects: Objects, stored: Stored, part: Range, fd: int, *, sync: bool) -> None:
        run = self._runtime.threads.run
        if self._files.open_flags(fd) & os.O_APPEND:
            await objects.read_to_stream(stored, AppendSink(self._runtime, fd), part, call)
        else:
            with objects.kept(stored):
                # In threads: the kernel has a seek wait for a read or write of whoever shares the offset.
                with writing():
                    end = await run(self._files.seek, fd, part.length, os.SEEK_CUR)  # first: who shares the offset goes on behind
                try:
                    await objects.read_to_file(stored, FileSink(self._files, fd, end - part.length), part, call)
                except BaseException:
                    with trio.CancelScope(shield=True):
                        await run(self._seek_back, fd, end, part.length)
                    raise
        if sync:
            with writing():
                await run(self._files.fsync, fd)

    def _seek_back(self, fd: int, end: int, length: int) -> None:
        """As if nothing had been written, unless somebody else has gone on behind it."""
        if self._files.seek(fd, 0, os.SEEK_CUR) == end:
            self._files.seek(fd, end - length, os.SEEK_SET)

    def _reopen(self, fd: int, flags: int) -> int:
        """A pipe once more, for O_NONBLOCK must be ours alone."""
        try:
            return self._files.reopen(fd, flags | os.O_NONBLOCK)
        except PermissionError:
            raise PathRefused("the pipe was made by another user", hint="put a pipe of your own between:  | cat |") from None

    @asynccontextmanager
    async def _entered(self, opened: AbstractContextManager[T]) -> AsyncIterator[T]:
        """What opens and closes a client's files, entered and left in worker threads."""
        run = self._runtime.threads.run
        with trio.CancelScope(shield=True):  # what is never entered closes nothing
            value = await run(opened.__enter__)
        try:
            yield value
        except BaseException as error:
            with trio.CancelScope(shield=True):
                await run(opened.__exit__, type(error), error, error.__traceback__)
            raise
        with trio.CancelScope(shield=True):
            await run(opened.__exit__, None, None, None)

    @contextmanager
    def _closing(self, fd: int) -> Iterator[int]:
        try:
            yield fd
        finally:
            close_anyhow(self._files, fd)

    @contextmanager
    def _written(self, fd: int) -> Iterator[int]:
        """Closes what was written to: a network file system may say only now what it could not write."""
        try:
            yield fd
        except BaseException:
            close_anyhow(self._files, fd)
            raise
        with writing():
            self._files.close(fd)


def _little(source: FileSource) -> BytesSource | None:
    """The bytes of a file that has few."""
    return BytesSource(bytes(source.read_whole())) if source.size <= _LITTLE_BYTES else None
