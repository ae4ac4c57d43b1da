"""An outcome that comes by itself: whoever wants it leaves word, or awaits it. No task has to wait for it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar, cast

import trio

from zstor_local.errors import ZstorError

T = TypeVar("T")
U = TypeVar("U")


class Later(Generic[T]):
    """Settled once, in the event loop. Awaiting it cannot be cancelled: what it stands for takes its course."""

    __slots__ = ("_done", "_outcome", "_settled")

    def __init__(self) -> None:
        self._settled = False
        self._outcome: T | ZstorError | None = None
        self._done: list[Callable[[], object]] = []

    @property
    def settled(self) -> bool:
        return self._settled

    def settle(self, outcome: T | ZstorError) -> None:
        """The outcome is here. Whoever left word is called at once."""
        self._settled = True
        self._outcome = outcome
        told, self._done = self._done, []  # not kept: what was left may hold this, and a value with it until garbage is looked for
        for done in told:
            done()

    def then(self, done: Callable[[], object]) -> None:
        """Have this called when the outcome is here; now, if it is."""
        if self._settled:
            done()
        else:
            self._done.append(done)

    def result(self) -> T:
        """The outcome, once it is here; raised if it is an error."""
        if isinstance(self._outcome, ZstorError):
            raise self._outcome
        return cast(T, self._outcome)

    def map(self, change: Callable[[T], U]) -> Later[U]:
        """What `change` makes of the result, by whoever asks for it."""
        return _Mapped(self, change)

    def __await__(self) -> Generator[Any, Any, T]:
        if not self._settled:
            self.then(_waking(trio.lowlevel.current_task()))
            yield from trio.lowlevel.wait_task_rescheduled(_never).__await__()
        return self.result()


class _Mapped(Later[U], Generic[T, U]):
    """Another view of a result."""

    __slots__ = ("_change", "_of")

    def __init__(self, of: Later[T], change: Callable[[T], U]) -> None:
        super().__init__()
        self._of = of
        self._change = change

    def then(self, done: Callable[[], object]) -> None:
        self._of.then(done)

    def result(self) -> U:
        return self._change(self._of.result())

    def __await__(self) -> Generator[Any, Any, U]:
        return self._change((yield from self._of.__await__()))


def _waking(task: trio.lowlevel.Task) -> Callable[[], None]:
    return lambda: trio.lowlevel.reschedule(task)


def _never(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED
