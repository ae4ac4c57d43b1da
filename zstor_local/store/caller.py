"""What a use case asks of whoever called it: take progress, and let go at the moment of the commit."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Caller(Protocol):
    """One call. The wire's calls are such; tests and jobs use `Nobody`."""

    @property
    def has_reply_room(self) -> bool:
        """Room is kept meanwhile for what it will be told, and others may wait for that."""
        ...

    def progress(self, done: int, total: int | None) -> None:
        """Plain bytes done so far; `total` None if nobody knows."""
        ...

    def begin_commit(self) -> None:
        """The commit begins: raises if the caller has gone or cancelled; from here on neither counts any more."""
        ...


class Follower(Caller, Protocol):
    """One that may wait for what goes on without it."""

    def long_poll(self) -> AbstractContextManager[None]:
        """Around the waiting, which a stop of the daemon ends: ShuttingDown."""
        ...


class Nobody:
    """A caller that wants nothing and never goes away."""

    @property
    def has_reply_room(self) -> bool:
        return False

    def progress(self, done: int, total: int | None) -> None:
        pass

    def begin_commit(self) -> None:
        pass

    def long_poll(self) -> AbstractContextManager[None]:
        return nullcontext()
