"""Who uses a space, and who has it alone: a log that somebody reads is not closed, nor are its files taken away."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from zstor_local.shardserver.refusal import Refusal


class Turns:
    """Many may use, or one has it alone. Who wants to be alone comes before those that come later, so that it is not for ever."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._users = 0
        self._alone = False  # somebody is, or waits for it
        self._over = False

    @contextmanager
    def using(self) -> Iterator[None]:
        """Not within another one of the same thread. Refusal `no_space_here` after the end."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            if self._over:
                raise Refusal("no_space_here", "that shard was removed from this server")
            self._users += 1
        try:
            yield
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Once nobody uses it any more. Not within `using`. Refusal `no_space_here` after the end."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            if self._over:
                raise Refusal("no_space_here", "that shard was removed from this server")
            self._alone = True
            self._changed.wait_for(lambda: not self._users)
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()

    def end(self) -> None:
        """Whoever is alone lets nobody in again."""
        self._over = True
