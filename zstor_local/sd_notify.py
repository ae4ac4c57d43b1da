"""What a service manager is told: sd_notify(3) in plain Python, and nothing at all where there is no manager."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Self


class Notifier:
    """Tells the manager at `address` (a path, or @ and an abstract name) about states; None: nobody is told.

    `watchdog_seconds`: how often it wants to hear from us, None: never. A manager that cannot be reached is no error: the daemon
    serves all the same.
    """

    def __init__(self, address: str | None, watchdog_seconds: float | None = None) -> None:
        self._address = "\0" + address[1:] if address and address.startswith("@") else address
        self.watchdog_seconds = watchdog_seconds if address else None
        self._last_status = ""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str]) -> Self:
        """The manager that started us. Its variables are taken out, so that no child meets them."""
        address = environment.pop("NOTIFY_SOCKET", None)
        microseconds, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", None)
        wanted = microseconds.isdecimal() and int(microseconds) > 0 and pid in (None, str(os.getpid()))
        return cls(address, int(microseconds) / 1_000_000 if wanted else None)

    @property
    def heard(self) -> bool:
        """Somebody is told."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """Clients are served and what was stored has been recovered; after `reloading`: the new configuration counts."""
        self._last_status = status
        self._tell("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """One line for people, told when it changes."""
        if text != self._last_status:
            self._last_status = text
            self._tell(f"STATUS={text}")

    def reloading(self) -> None:
        """The configuration is being read again."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000}")

    def stopping(self) -> None:
        """The first thing on the way out."""
        self._last_status = "stopping: running calls end first"
        self._tell("STOPPING=1", f"STATUS={self._last_status}")

    def extend(self, seconds: float) -> None:
        """Starting or stopping may take so much longer: a recovery, a last flush."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def alive(self) -> None:
        """For the watchdog. Say it only after a proof."""
        self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if self._address is None:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.setblocking(False)
            manager.sendto("\n".join(lines).encode(), self._address)
