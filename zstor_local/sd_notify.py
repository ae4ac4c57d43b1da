"""What a service manager is told: sd_notify(3) in plain Python, and nothing at all where there is no manager."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Self


class Notifier:
    """Tells the manager at `address` (a path, or @ and an abstract name) about states; None: nobody is told.

    A manager that cannot be reached is not an error: the daemon serves all the same.
    """

    def __init__(self, address: str | None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self._last_status = ""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """The manager that started us. Its variable is taken out, so that no child meets it."""
        return cls(environment.pop("NOTIFY_SOCKET", None))

    def ready(self, status: str) -> None:
        """Clients are served and what was stored has been recovered."""
        self._last_status = status
        self._tell("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """One line for people, told when it changes."""
        if text != self._last_status:
            self._last_status = text
            self._tell(f"STATUS={text}")

    def stopping(self) -> None:
        """The first thing on the way out."""
        self._tell("STOPPING=1", "STATUS=stopping: running calls end first")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.setblocking(False)
            manager.sendto("\n".join(lines).encode(), self._address)


def in_environment() -> Notifier:
    """The notifier of this process; call it once."""
    return Notifier.from_environment(os.environ)
