"""The real network behind the seam: what waits, waits in one nursery of the event loop. Only the edge may import this."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

from zstor_local.threads import giving_place, place_of_thread

T = TypeVar("T")


class RealNetwork:
    """See runtime.Network. Made by `open_network`."""

    def __init__(self, nursery: trio.Nursery, token: trio.lowlevel.TrioToken) -> None:
        self._nursery = nursery
        self._token = token
        self._closing: list[Callable[[], Awaitable[None]]] = []

    def run(self, ask: Callable[[], Awaitable[T]]) -> T:
        place = place_of_thread()
        if place is None:
            return trio.from_thread.run(ask, trio_token=self._token)

        async def waiting() -> T:
            async with giving_place(place):
                return await ask()

        return trio.from_thread.run(waiting)

    def start(self, ask: Callable[[], Awaitable[T]]) -> _Pending[T]:
        pending = _Pending(self, ask)

        def begin() -> None:
            try:
                self._nursery.start_soon(pending.run)
            except RuntimeError:  # the network is not used any more
                pending.give_up()

        self._token.run_sync_soon(begin)
        return pending

    def at_end(self, close: Callable[[], Awaitable[None]]) -> None:
        self._closing.append(close)

    async def end(self) -> None:
        for close in self._closing:
            await close()

    def soon(self, work: Callable[[], object]) -> None:
        self._token.run_sync_soon(work)


class _Pending(Generic[T]):
    def __init__(self, network: RealNetwork, ask: Callable[[], Awaitable[T]]) -> None:
        self._network = network
        self._ask = ask
        self._scope = trio.CancelScope()
        self._over = trio.Event()
        self._began: float | None = None
        self._value: list[T] = []
        self._error: Exception | None = None

    async def run(self) -> None:
        self._began = trio.current_time()
        try:
            with self._scope:
                self._value.append(await self._ask())
        except Exception as error:  # handed to whoever waits
            self._error = error
        finally:
            self._over.set()

    def give_up(self) -> None:
        self._over.set()

    def wait(self, seconds: float | None = None) -> T:
        if not self._over.is_set():
            self._network.run(lambda: self._wait(seconds))
        if self._error is not None:
            raise self._error
        if not self._value:
            raise TimeoutError("it was given up")
        return self._value[0]

    async def _wait(self, seconds: float | None) -> None:
        began = trio.current_time() if self._began is None else self._began
        with trio.CancelScope(deadline=float("inf") if seconds is None else began + seconds):
            await self._over.wait()
        if not self._over.is_set():
            raise TimeoutError

    def cancel(self) -> None:
        if not self._over.is_set():
            self._network.soon(self._scope.cancel)


@asynccontextmanager
async def open_network() -> AsyncIterator[RealNetwork]:
    """The network, until the end; what still goes on then is cancelled."""
    async with trio.open_nursery() as nursery:
        network = RealNetwork(nursery, trio.lowlevel.current_trio_token())
        try:
            yield network
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await network.end()
