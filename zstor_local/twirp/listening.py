"""Where Twirp is served: Unix sockets and loopback addresses, and who may connect. A part of the edge."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio

from zstor_local.errors import errno_text
from zstor_local.listener import BACKLOG, listening
from zstor_local.rpc.server import peer_of
from zstor_local.runtime import Files
from zstor_local.store.faults import StoreFault
from zstor_local.twirp.http import Server
from zstor_local.twirp.services import Route
from zstor_local.unix_socket import is_user

UNIX: Final = "unix:"


@asynccontextmanager
async def serving(files: Files, places: Sequence[str], routes: Mapping[str, Route]) -> AsyncIterator[list[str]]:
    """Serve at these places (`unix:/PATH`, `127.0.0.1:PORT`, `[::1]:PORT`) while the block runs; gives them as they were opened.

    StoreFault or OSError where one cannot be opened.
    """
    server = Server(routes)
    shown = []
    with ExitStack() as opened:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.make_room)
            for place in places:
                if place.startswith(UNIX):
                    listener = opened.enter_context(listening(files, place.removeprefix(UNIX)))
                    serve = partial(server.serve_client, may_connect=_is_ours, rebound=False)
                    shown.append(place)
                else:
                    listener = trio.SocketListener(trio.socket.from_stdlib_socket(_bound(place)))
                    opened.callback(listener.socket.close)
                    serve = partial(server.serve_client, may_connect=_is_our_users, rebound=True)
                    shown.append(f"{place.rpartition(':')[0]}:{listener.socket.getsockname()[1]}")
                await nursery.start(partial(trio.serve_listeners, serve, [listener], handler_nursery=nursery))
            yield shown
            nursery.cancel_scope.cancel()


def _bound(place: str) -> socket.socket:
    """A listening socket at a place that the configuration has checked."""
    host, _, port = place.rpartition(":")
    address = ipaddress.ip_address(host.strip("[]"))
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        return socket.create_server((str(address), int(port)), family=family, backlog=BACKLOG)
    except OSError as error:
        raise StoreFault(f"Twirp cannot be served at {place}: {errno_text(error)}", "set another place in [twirp] listen") from None


def _is_ours(stream: trio.SocketStream) -> bool:
    return is_user(peer_of(stream.socket).uid, os.geteuid())


def _is_our_users(stream: trio.SocketStream) -> bool:
    """Whether our own user has the other end of a connection within this machine, by the kernel's list of connections (proc(5))."""
    try:
        theirs, ours = (_as_listed(each) for each in (stream.socket.getpeername(), stream.socket.getsockname()))
    except OSError:  # ENOTCONN
        raise trio.BrokenResourceError("the client is gone") from None
    for table in ("tcp", "tcp6"):
        for line in _lines(f"/proc/net/{table}"):
            fields = line.split()
            if len(fields) > 7 and fields[1] in theirs and fields[2] in ours:
                return is_user(int(fields[7]), os.geteuid())
    return False


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()[1:]
    except OSError:
        return []


def _as_listed(address: tuple[str | int, ...]) -> set[str]:
    """An address and port as the kernel lists them: words of four bytes in the machine's order; IPv4 also as mapped into IPv6."""
    host, port = ipaddress.ip_address(str(address[0])), f"{int(address[1]):04X}"
    packed = [host.packed] if host.version == 6 else [host.packed, b"\0" * 10 + b"\xff\xff" + host.packed]
    return {f"{_words(each)}:{port}" for each in packed}


def _words(packed: bytes) -> str:
    return "".join(f"{int.from_bytes(packed[start : start + 4], sys.byteorder):08X}" for start in range(0, len(packed), 4))
