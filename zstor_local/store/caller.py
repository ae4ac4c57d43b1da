"""What a use case asks of whoever called it: take progress, and let go at the moment of the commit."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Caller(Protocol):
    """One call. The wire's calls are such; tests and jobs use `Nobody`."""

    def progress(self, done: int, total: int | None) -> None:
        """Plain bytes done so far; `total` None if nobody knows."""
        ...

    def committing(self) -> AbstractContextManager[None]:
        """Entered when the commit begins: raises if the caller has gone or cancelled, and from then on neither counts any more."""
        ...


class Nobody:
    """A caller that wants nothing and never goes away."""

    def progress(self, done: int, total: int | None) -> None:
        pass

    def committing(self) -> AbstractContextManager[None]:
        return nullcontext()
