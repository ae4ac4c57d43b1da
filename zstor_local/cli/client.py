"""A synchronous client of the daemon's socket: one call at a time, descriptors handed over, cancelled by Ctrl-C.

The wire is docs/wire.md: JSON-RPC 2.0, one line a message. It needs nothing but the standard library, so that a command starts fast.
"""

from __future__ import annotations

import array
import errno
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Final, Self, TypeAlias, cast

from zstor_local import limits
from zstor_local.errors import CorruptRecord, InvalidParams, errno_text, typed_error
from zstor_local.unix_socket import connectable, other_end

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Object: TypeAlias = Mapping[str, Json]
Progress: TypeAlias = Callable[[int, int | None, str], None]  # bytes done, bytes in all if known, a few words

_READ_BYTES: Final = 256 * limits.KIB
_PATIENCE_SECONDS: Final = 2.0  # a daemon that is well has answered a cancel long before


IN_A_TERMINAL: Final = "start it in another terminal:  zstor daemon"


class NoDaemon(Exception):
    """Nobody, or the wrong one, answers at the socket, or the connection broke before the answer."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class Client:
    """One connection. Use it as a context manager, from one thread."""

    def __init__(self, connected: socket.socket, *, hanging: Callable[[], None] | None = None) -> None:
        """`hanging` is called once where the daemon does not answer soon after a Ctrl-C."""
        self._socket = connected
        self._hanging = hanging
        self._buffer = bytearray()
        self._last_id = 0
        self._interrupted = False

    @classmethod
    def connect(cls, path: str, *, start: str = IN_A_TERMINAL, hanging: Callable[[], None] | None = None) -> Self:
        """Connect to the daemon at the path and make sure that it runs under our own user id.

        Raises NoDaemon, with `start`, how one is started, as the hint. `hanging`: as in `Client`.
        """
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with connectable(path) as place:
                connected.connect(place)
        except OSError as error:
            connected.close()
            raise _no_connection(path, error, start) from None
        _, uid = other_end(connected)
        if uid != os.getuid():
            connected.close()
            raise NoDaemon(
                f"the socket {path} belongs to a process of user id {uid}, not of yours",
                hint="nothing was sent to it; run the command as the user whose daemon it is, or name your own socket with --socket",
            )
        return cls(connected, hanging=hanging)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def hang_up(self) -> None:
        """End the connection from any thread: the running call is cancelled, whoever waits for its answer gets NoDaemon."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def call(self, method: str, params: Object, *, fds: Sequence[int] = (), progress: Progress | None = None) -> Json:
        """The result of a call. The descriptors stay ours to close.

        Raises the typed error that the daemon answered, InvalidParams for text that is not UTF-8, Cancelled after a Ctrl-C that came
        in time. One that came too late to change the answer raises KeyboardInterrupt at the next call; a second one does at once.
        """
        if self._interrupted:
            raise KeyboardInterrupt
        self._last_id += 1
        check_text(params)
        meta = params.get("_meta", {})
        if progress is not None and isinstance(meta, Mapping):
            params = {**params, "_meta": {**meta, "progressToken": self._last_id}}
        interrupts = _Interrupts(self._hanging)
        try:
            with interrupts:
                self._send({"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}, interrupts, fds)
                while True:
                    message = self._receive(interrupts)
                    if message.get("method") == "notifications/progress" and progress is not None:
                        _show(message.get("params"), progress)
                    elif "method" not in message and message.get("id") in (self._last_id, None):
                        if (fault := message.get("error")) is not None:
                            raise typed_error(fault)
                        return message.get("result")
        finally:
            self._interrupted = interrupts.count > 0  # when no more are counted

    def items(
        self, method: str, params: Object, *, member: str = "items", damaged: Callable[[CorruptRecord], object] | None = None
    ) -> Iterator[Json]:
        """All items of a list that comes in pages. What does not open is told to `damaged`; else the first is raised at the end."""
        cursor: dict[str, Json] = {}
        first: CorruptRecord | None = None
        while cursor.get("cursor", "") is not None:
            try:
                page = cast("Mapping[str, Sequence[Json]]", self.call(method, {**params, **cursor}))
            except CorruptRecord as error:
                if not isinstance(behind := error.data.get("cursor"), str):
                    raise
                cursor = {"cursor": behind}
                if damaged is None:
                    first = first or error
                else:
                    damaged(error)
            else:
                yield from page[member]
                cursor = {"cursor": cast("str | None", page["cursor"])}
        if first is not None:
            raise first

    def rest(self, seconds: float) -> None:
        """Wait between two calls; KeyboardInterrupt if there was a Ctrl-C, or at once when there is one."""
        if self._interrupted:
            raise KeyboardInterrupt
        time.sleep(seconds)

    def _send(self, message: Object, interrupts: _Interrupts, fds: Sequence[int] = ()) -> None:
        """KeyboardInterrupt after a Ctrl-C while there is no room for it: what is not all there does not run."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with suppress(BrokenPipeError, ConnectionResetError):  # what the daemon said before it closed is still to be read
            if fds:  # with the first byte, and nothing else in that send
                self._socket.sendmsg([line[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
                line = line[1:]
            left = memoryview(line)
            while left:
                try:
                    left = left[self._socket.send(left, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    interrupts.wait_for_room(self._socket)

    def _receive(self, interrupts: _Interrupts) -> Object:
        """The next message. A Ctrl-C meanwhile cancels the running call and goes on waiting for its answer."""
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched)
            if end < 0:
                searched = len(self._buffer)
                self._read_more(interrupts)
                continue
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            searched = 0
            if line.strip():
                return _parse(line)

    def _read_more(self, interrupts: _Interrupts) -> None:
        if len(self._buffer) > limits.MESSAGE_BYTES:
            raise NoDaemon("what answers at the socket is no zstor daemon: its line has no end")
        while interrupts.wait(self._socket):
            self._send({"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": self._last_id}}, interrupts)
        try:
            received = self._socket.recv(_READ_BYTES)
        except ConnectionResetError:
            received = b""
        if not received:
            raise NoDaemon(
                "the daemon closed the connection before it answered",
                hint="its log says why; whether a write happened is shown by `zstor stat KEY`",
            )
        self._buffer += received


class _Interrupts:
    """Ctrl-C while a call runs: the first one wakes `wait`, a second one raises KeyboardInterrupt."""

    def __init__(self, hanging: Callable[[], None] | None) -> None:
        self._hanging = hanging
        self.count = 0

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._heard = in_main_thread and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # a shell's background job ignores it
        if self._heard:  # the wake-up pipe closes the gap between looking and waiting, so it is there before anything is counted
            self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._handler = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._heard:
            signal.set_wakeup_fd(self._wakeup)
            signal.signal(signal.SIGINT, self._handler)
        os.close(self._reader)
        os.close(self._writer)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt

    def wait_for_room(self, connected: socket.socket) -> None:
        """Wait until the socket takes more, or is closed; KeyboardInterrupt if a Ctrl-C came."""
        ready = _ready({connected.fileno(): select.POLLOUT, self._reader: select.POLLIN})
        if self._reader in ready and signal.SIGINT in os.read(self._reader, 64):
            raise KeyboardInterrupt

    def wait(self, connected: socket.socket) -> bool:
        """Wait until the socket is readable or closed; True: a Ctrl-C came instead."""
        watched = {connected.fileno(): select.POLLIN, self._reader: select.POLLIN}
        ready = _ready(watched, _PATIENCE_SECONDS if self.count and self._hanging else None)
        if not ready and self._hanging is not None:
            self._hanging()
            self._hanging = None
            ready = _ready(watched)
        if self._reader not in ready:
            return False
        return signal.SIGINT in os.read(self._reader, 64)


def _ready(watched: Mapping[int, int], seconds: float | None = None) -> Sequence[int]:
    """Which of the descriptors have something of what is wanted of them, an end or an error too; none when the time is up."""
    waiting = select.poll()  # select(2) takes no descriptor above 1,023, as who started us may have left many open
    for fd, events in watched.items():
        waiting.register(fd, events)
    return [fd for fd, _ in waiting.poll(None if seconds is None else seconds * 1_000)]


def parameters(**given: Json) -> dict[str, Json]:
    """The parameters of a call, less those that were left out (None)."""
    return {name: value for name, value in given.items() if value is not None}


def check_text(value: Json) -> None:
    """InvalidParams for what is not UTF-8: Python takes such bytes of the command line for lone surrogates, which no JSON holds."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(value).decode(errors="backslashreplace")
            raise InvalidParams(f"'{shown}' is not UTF-8", hint="keys, names and texts are UTF-8; content may be anything") from None
    elif isinstance(value, Mapping):
        check_text([*value.keys(), *value.values()])
    elif isinstance(value, Sequence):
        for item in value:
            check_text(item)


def _no_connection(path: str, error: OSError, start: str) -> NoDaemon:
    """Why nobody can be reached there, and what to do."""
    other = "name the daemon's socket with --socket or ZSTOR_SOCKET"
    if error.errno == errno.ECONNREFUSED and not Path(path).is_socket():
        return NoDaemon(f"{path} is no socket", hint=other)
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
        return NoDaemon(f"no daemon is running at {path}", hint=start)
    return NoDaemon(f"cannot talk to the daemon at {path}: {errno_text(error)}", hint=f"is it of another user? else {other}")


def _parse(line: bytes) -> Object:
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise NoDaemon("what answers at the socket is no zstor daemon")
    return message


def _show(params: Json, progress: Progress) -> None:
    if isinstance(params, Mapping):
        done, total, message = params.get("progress"), params.get("total"), params.get("message")
        if isinstance(done, int | float):
            whole = int(total) if isinstance(total, int | float) else None
            progress(int(done), whole, message if isinstance(message, str) else "")
