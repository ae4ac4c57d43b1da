"""A listening socket that a service manager opened for us: sd_listen_fds(3) in plain Python."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import MutableMapping
from typing import Final

from zstor_local.store.faults import StoreFault

NAME: Final = "rpc"  # FileDescriptorName= in zstor.socket
_FIRST: Final = 3
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


def inherited_listener(environment: MutableMapping[str, str]) -> socket.socket | None:
    """The socket to serve, if one was handed down: the one named `rpc`, or the only one. The variables are taken out.

    Raises StoreFault for something else than one listening Unix stream socket with an absolute path.
    """
    pid, count, names, _ = (environment.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()) or not count.isdecimal() or count == "0":
        return None
    fds = range(_FIRST, _FIRST + int(count))
    for fd in fds:
        os.set_inheritable(fd, False)
    wanted = [fd for fd, name in zip(fds, names.split(":"), strict=False) if name == NAME] or [*fds]
    if len(wanted) != 1:
        raise StoreFault(f"{count} sockets were handed down, none or several of them named {NAME}", f"FileDescriptorName={NAME}")
    listener = socket.socket(fileno=wanted[0]) if stat.S_ISSOCK(os.fstat(wanted[0]).st_mode) else None
    if (
        listener is None
        or (listener.family, listener.type) != (socket.AF_UNIX, socket.SOCK_STREAM)
        or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        or not os.fsencode(listener.getsockname()).startswith(b"/")
    ):
        raise StoreFault("what was handed down is no listening Unix stream socket", "ListenStream= with a path in zstor.socket")
    listener.setblocking(False)
    return listener
