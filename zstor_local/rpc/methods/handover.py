"""Bytes by path or descriptor: what a client names or hands over becomes a source or a sink, and is closed in the end."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from zstor_local.errors import Cancelled, PathRefused
from zstor_local.rpc.call import Call
from zstor_local.runtime import FileStatus, Runtime
from zstor_local.store.paths import Mode, Paths
from zstor_local.store.reading import Range
from zstor_local.store.reads import Objects
from zstor_local.store.sinks import AppendSink, FileSink, OrderedSink, PipeSink, writing
from zstor_local.store.sources import FileSource, PipeSource, SocketSource, read_error
from zstor_local.store.stored import Stored


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
    """Sources and sinks for the calls of one daemon."""

    def __init__(self, runtime: Runtime, paths: Paths) -> None:
        self._runtime = runtime
        self._files = runtime.files
        self._paths = paths

    @contextmanager
    def file(self, call: Call, path: str) -> Iterator[FileSource]:
        """A regular file by its path."""
        fd = self._paths.open_input(path, call.peer.mounts)
        with self._closing(fd):
            yield FileSource(self._files, fd)

    @contextmanager
    def source(self, call: Call, index: int, *, stream: bool) -> Iterator[FileSource | PipeSource | SocketSource]:
        """A handed-over descriptor to read from. A regular file is read from its offset on, which is set to its end once."""
        fd = call.take_fd(index)
        with self._closing(fd):
            status = self._paths.check_input(fd, stream=stream)
            if status.is_regular:
                try:
                    source = FileSource(self._files, fd, self._files.seek(fd, 0, os.SEEK_CUR))
                except OSError as error:  # a namespace, or secret memory: files by their kind, without bytes to read
                    raise read_error(error) from None
                yield source
                self._files.seek(fd, source.size, os.SEEK_CUR)
            elif stat.S_ISSOCK(status.mode):
                yield SocketSource(self._runtime, self._paths.client_files, fd)
            else:
                with self._closing(self._reopen(fd, os.O_RDONLY)) as own:
                    yield PipeSource(self._runtime, own)

    @asynccontextmanager
    async def sink(self, call: Call, index: int) -> AsyncIterator[OrderedSink]:
        """A handed-over descriptor to write to in order; a regular file is written from its offset on."""
        fd = call.take_fd(index)
        with self._closing(fd), self._in_order(fd, self._paths.check_output(fd, stream=True)) as sink:
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
        with self._paths.destination(path, call.peer.mounts, mode, sync=True) as destination:
            yield AppendSink(self._runtime, destination.fd)
            await self._runtime.threads.run(destination.finish)

    async def to_path(self, call: Call, objects: Objects, stored: Stored, part: Range, path: str, mode: Mode, *, sync: bool) -> None:
        """The bytes into the file of that name, whole or not at all."""
        with self._paths.destination(path, call.peer.mounts, mode, sync=sync) as destination:
            await objects.read_to_file(stored, FileSink(self._files, destination.fd), part, call)
            await self._runtime.threads.run(destination.finish)

    async def to_file(self, call: Call, objects: Objects, stored: Stored, part: Range, index: int, *, sync: bool) -> None:
        """The bytes into a handed-over regular file, from its offset on; with O_APPEND in order to its end."""
        fd = call.take_fd(index)
        with self._closing(fd):
            self._paths.check_output(fd, stream=False)
            await self._into_file(call, objects, stored, part, fd, sync=sync)

    async def to_either(self, call: Call, objects: Objects, stored: Stored, part: Range, index: int, *, sync: bool) -> None:
        """The bytes into whatever was handed over: as `to_file` into a regular file, else in order."""
        fd = call.take_fd(index)
        with self._closing(fd):
            status = self._paths.check_output(fd, stream=True)
            if status.is_regular:
                await self._into_file(call, objects, stored, part, fd, sync=sync)
                return
            with self._in_order(fd, status) as sink:
                await objects.read_to_stream(stored, sink, part, call)

    async def _into_file(self, call: Call, objects: Objects, stored: Stored, part: Range, fd: int, *, sync: bool) -> None:
        if self._files.open_flags(fd) & os.O_APPEND:
            await objects.read_to_stream(stored, AppendSink(self._runtime, fd), part, call)
        else:
            with writing():
                end = self._files.seek(fd, part.length, os.SEEK_CUR)  # first: who shares the offset goes on behind
            try:
                await objects.read_to_file(stored, FileSink(self._files, fd, end - part.length), part, call)
            except BaseException:
                if self._files.seek(fd, 0, os.SEEK_CUR) == end:
                    self._files.seek(fd, end - part.length, os.SEEK_SET)
                raise
        if sync:
            with writing():
                await self._runtime.threads.run(self._files.fsync, fd)

    def _reopen(self, fd: int, flags: int) -> int:
        """A pipe once more, for O_NONBLOCK must be ours alone."""
        try:
            return self._files.reopen(fd, flags | os.O_NONBLOCK)
        except PermissionError:
            raise PathRefused("the pipe was made by another user", hint="put a pipe of your own between:  | cat |") from None

    @contextmanager
    def _closing(self, fd: int) -> Iterator[int]:
        try:
            yield fd
        finally:
            self._files.close(fd)
