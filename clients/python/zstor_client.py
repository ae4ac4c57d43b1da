"""A client of zstor-local in one file: Python 3.8 or newer, standard library only, synchronous. Copy it, or `pip install` its folder.

    from zstor_client import Client, NotFound

    with Client() as zstor:
        zstor.put("notes", b"some bytes")           # bytes, a path, an open file or a pipe
        zstor.put("film", Path("film.mkv"))         # handed over as a descriptor: the daemon opens no path
        print(zstor.get("notes"))
        zstor.get("film", Path("copy.mkv"))
        zstor.call("reference.append", key="notes", references=["todo"])   # every method: zstor call help

One connection runs one call at a time: threads wait for each other, so make a client for each. Errors of the daemon are `ZstorError`s,
one class for each type (`NotFound`, `Conflict`, …); `ConnectionError`: there is no daemon, or it went away before it answered;
`TimeoutError`: it did not even answer that the time is up. After these two, and Ctrl-C, the connection is closed.
"""

from __future__ import annotations

import array
import base64
import io
import json
import os
import socket
import stat
import struct
import threading
import time
from collections import deque
from typing import IO, Any, Callable, Deque, Dict, Iterator, Mapping, Optional, Sequence, Union

__version__ = "0.2.0"

File = Union[int, IO[Any], socket.socket]  # whatever has a descriptor
Place = Union[str, "os.PathLike[str]"]
Object = Dict[str, Any]
Progress = Callable[[float, Optional[float], str], object]

_INLINE_BYTES = 512 * 1024  # larger values go over as a file in memory


class ZstorError(Exception):
    """What the daemon answered: `code`, `type`, `retryable`, `hint` and the whole of `data`. Unknown types are plain ZstorErrors."""

    def __init__(self, code: int, message: str, data: Object) -> None:
        super().__init__(code, message, data)
        self.code, self.message, self.data = code, message, data
        self.type, self.hint, self.retryable = data.get("type"), data.get("hint"), bool(data.get("retryable"))

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


_TYPES = (
    "not_found already_exists conflict not_empty bad_encoding permission_denied path_refused unauthenticated incomplete "
    "unavailable not_enough_shards timed_out busy shutting_down outcome_unknown unreadable corrupt_record key_missing no_space "
    "too_large io_error not_supported parse_error invalid_request method_not_found invalid_params internal cancelled"
).split()
_CLASSES = {name: type(name.title().replace("_", ""), (ZstorError,), {"__doc__": f"`{name}`"}) for name in _TYPES}


def __getattr__(name: str) -> type[ZstorError]:
    """The class of each error type: `not_found` is NotFound. docs/api.md says when each comes."""
    if found := [known for known in _CLASSES.values() if known.__name__ == name]:
        return found[0]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def default_socket(environment: Mapping[str, str] = os.environ) -> str:
    """Where the daemon listens unless it is told otherwise: the same order that daemon and command try."""
    if environment.get("ZSTOR_SOCKET"):
        return environment["ZSTOR_SOCKET"]
    if environment.get("XDG_RUNTIME_DIR", "").startswith("/"):
        return environment["XDG_RUNTIME_DIR"] + "/zstor/zstor.sock"
    state = environment.get("XDG_STATE_HOME", "")
    return (state if state.startswith("/") else os.path.expanduser("~/.local/state")) + "/zstor/run/zstor.sock"


class Client:
    """A connection to the daemon. ConnectionError if nobody, or somebody of another user, listens at the socket.

    `grace`: seconds after a call's `timeout` in which the daemon must have said so, else the connection is given up.
    """

    def __init__(self, path: Place | None = None, *, grace: float = 30) -> None:
        path = os.fspath(path or default_socket())
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _connect(self._socket, path)
            _, uid, _ = struct.unpack("iII", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))
        except OSError as error:
            self._socket.close()
            raise ConnectionError(f"no daemon at {path}: {error.strerror} (start it: zstor daemon)") from None
        if uid != os.getuid():
            self._socket.close()
            raise ConnectionError(f"the socket {path} belongs to user id {uid}, not to yours: nothing was sent")
        self._buffer = bytearray()
        self._told: Deque[Object] = deque(maxlen=100)  # notifications before an answer; of 16 streams 80 at most
        self._id = 0
        self._grace = grace
        self._end: float | None = None  # of the running call's time
        self._turn = threading.RLock()
        self._running = False

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def call(
        self, method: str, /, *, fds: Sequence[File] = (), timeout: float | None = None, progress: Progress | None = None, **params: Any
    ) -> Any:
        """The result of a method; its parameters by name, null ones left out.

        `fds`: descriptors (or files) to hand over, named in a parameter by their index, such as fd=0; they stay yours to close.
        `timeout`: seconds after which the daemon gives up (TimedOut), unless it has begun to commit.
        `progress`: called with (done, total or None, message) while the call runs. `_meta={"detach": True}` makes it a job.
        """
        numbers = array.array("i", map(_number, fds))
        params = {name: value for name, value in params.items() if value is not None}
        with self._turn:
            if self._running:
                raise RuntimeError("this connection is in the middle of a call: use another client")
            self._id += 1
            meta = {"timeoutSeconds": timeout, "progressToken": progress and self._id}
            meta = dict(params.pop("_meta", {}), **{name: value for name, value in meta.items() if value is not None})
            params = dict(params, _meta=meta) if meta else params
            line = json.dumps({"jsonrpc": "2.0", "id": self._id, "method": method, "params": params}, separators=(",", ":"))
            self._running, self._end = True, None if timeout is None else time.monotonic() + timeout + self._grace
            try:
                self._send(line.encode() + b"\n", numbers)
                return self._answer(progress)
            except BaseException as error:
                if not isinstance(error, ZstorError):
                    self.close()  # Ctrl-C, or a progress that raised: the answer is still to come, so this connection is spent
                if isinstance(error, socket.timeout):  # a TimeoutError itself from Python 3.10 on
                    raise TimeoutError(f"no answer to {method}, {self._grace} s after its time: it may have been done") from None
                raise
            finally:
                self._running = False

    def notification(self) -> Object:
        """The next {method, params} that is no answer: what stream.data brings where a stream was opened without a descriptor."""
        with self._turn:
            self._end = None
            return self._told.popleft() if self._told else self._receive()

    # --- Bytes ---

    def put(self, key: str, source: bytes | bytearray | memoryview | Place | File, **params: Any) -> Object:
        """Store bytes, the file at a path (str or PathLike), or an open file, pipe or socket. Answers the metadata.

        `params` are those of object.write: namespace, references, if_version, exclusive, expected_size, expected_digest …
        """
        if isinstance(source, (bytes, bytearray, memoryview)):
            if len(value := bytes(source)) <= _INLINE_BYTES:
                return dict(self.call("object.write", key=key, value_b64=base64.b64encode(value).decode(), **params)["metadata"])
            with open(os.memfd_create("zstor"), "w+b") as memory:
                memory.write(value)
                memory.seek(0)
                return self.put(key, memory, **params)
        if isinstance(source, (str, os.PathLike)):
            with open(source, "rb") as file:
                return self.put(key, file, **params)
        regular = _is_regular(source)
        if regular and not isinstance(source, (int, socket.socket)):
            source.flush()
            os.lseek(source.fileno(), source.tell(), os.SEEK_SET)  # what was read ahead is not to be missing
        return dict(self.call(f"object.write_{'file' if regular else 'stream'}", fds=[source], key=key, fd=0, **params)["metadata"])

    def get(self, key: str, to: Place | File | None = None, **params: Any) -> Any:
        """The object's bytes; or with `to`, a path or an open file, pipe or socket, write them there and answer the metadata.

        A file at a path is replaced whole or not at all. `params` are those of object.read: namespace, offset, length.
        """
        if to is None:
            with open(os.memfd_create("zstor"), "w+b") as memory:
                self.call("object.read_file", fds=[memory], key=key, fd=0, **params)
                memory.seek(0)
                return memory.read()
        if isinstance(to, (str, os.PathLike)):
            if os.path.isfile(to) or not os.path.exists(to):
                return self._get_file(key, os.fspath(to), params)
            with open(to, "wb") as pipe:
                return self.get(key, pipe, **params)
        if hasattr(to, "flush"):
            to.flush()
        regular = _is_regular(getattr(to, "buffer", to))  # a text file's, which has nothing more to write
        return self.call(f"object.read_{'file' if regular else 'stream'}", fds=[to], key=key, fd=0, **params)["metadata"]

    def walk(self, key: str, **params: Any) -> Iterator[Object]:
        """Along linked objects from a key on: an item {key, metadata, references, value_b64?} each. `params`: those of object.walk."""
        return self.pages("object.walk", "items", start_key=key, **params)

    def list(self, prefix: str = "", **params: Any) -> Iterator[Object]:
        """The objects whose keys begin with a prefix, in the order of their keys: an item {key, metadata} each."""
        return self.pages("object.list", "items", prefix=prefix, **params)

    def pages(self, method: str, name: str, /, **params: Any) -> Iterator[Any]:
        """The members called `name` of all pages of a method. What does not open is raised behind the last one, as CorruptRecord."""
        page: Object = {}
        damaged: ZstorError | None = None
        while True:
            try:
                page = self.call(method, cursor=page.get("cursor"), **params)
            except ZstorError as error:
                page, damaged = {name: (), "cursor": error.data.get("cursor")}, error
            yield from page[name]
            if page.get("cursor") is None:
                break
        if damaged is not None:
            raise damaged

    def _get_file(self, key: str, path: str, params: Object) -> Object:
        part = os.path.join(os.path.dirname(path), f".{os.urandom(8).hex()}.part")
        try:
            with open(part, "xb") as file:
                if os.path.exists(path):
                    os.fchmod(file.fileno(), stat.S_IMODE(os.stat(path).st_mode))
                metadata: Object = self.get(key, file, sync=True, **params)
            os.replace(part, path)
        finally:
            if os.path.lexists(part):
                os.unlink(part)
        return metadata

    # --- The wire: one line of JSON a message, descriptors with its first byte ---

    def _send(self, line: bytes, numbers: array.array[int]) -> None:
        self._wait()
        try:
            if numbers:
                self._socket.sendmsg([line[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
                line = line[1:]
            self._socket.sendall(line)
        except (BrokenPipeError, ConnectionResetError):
            pass  # what the daemon said before it closed is still to be read

    def _wait(self) -> None:
        """Let the next step of the socket take what is left of the call's time."""
        if self._socket.fileno() < 0:
            raise ConnectionError("this connection was closed: make a new client")
        self._socket.settimeout(None if self._end is None else max(self._end - time.monotonic(), 0.001))

    def _answer(self, progress: Progress | None) -> Any:
        while True:
            message = self._receive()
            if message.get("method") == "notifications/progress" and progress is not None:
                params = message["params"]
                progress(params["progress"], params.get("total"), params.get("message", ""))
            elif "method" in message:
                self._told.append(message)
            elif message.get("id") in (self._id, None):
                if error := message.get("error"):
                    data = error.get("data") or {}
                    raise _CLASSES.get(str(data.get("type")), ZstorError)(error["code"], data.get("detail", error["message"]), data)
                return message["result"]

    def _receive(self) -> Object:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            self._wait()
            if not (received := self._socket.recv(256 * 1024)):
                raise ConnectionError("the daemon closed the connection before it answered; its log says why")
            self._buffer += received
        message: Object = json.loads(self._buffer[:end])
        del self._buffer[: end + 1]
        return message


def _connect(unconnected: socket.socket, path: str) -> None:
    """Connect also where the path is longer than the 107 bytes that a socket's address holds."""
    if len(os.fsencode(path)) <= 107:
        unconnected.connect(path)
        return
    directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY)
    try:
        unconnected.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    finally:
        os.close(directory)


def _number(file: File) -> int:
    number = file if isinstance(file, int) else file.fileno()
    os.fstat(number)  # one that is closed is found before anything is sent
    return number


def _is_regular(file: File) -> bool:
    """TypeError for what has other bytes than its descriptor, as text files, gzip's and HTTP answers have, or none."""
    itself = isinstance(getattr(file, "raw", file), (int, io.FileIO, socket.socket, socket.SocketIO)) or hasattr(file, "rollover")
    if not itself and (hasattr(file, "read") or hasattr(file, "write") or not hasattr(file, "fileno")):
        raise TypeError(f"{type(file).__name__} has no descriptor of its bytes: give them, a path, or a binary file, pipe or socket")
    return stat.S_ISREG(os.fstat(_number(file)).st_mode)
