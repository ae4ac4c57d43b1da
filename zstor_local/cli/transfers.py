"""Several calls at once for one command: a few threads, each with a connection of its own, and an end that leaves nothing running."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Generic, TypeVar

from zstor_local.cli.client import Client, NoDaemon
from zstor_local.errors import ZstorError
from zstor_local.signals import termination_raises

AT_ONCE: Final = 16  # small things are made durable together, so more of them go faster; the daemon bounds what large ones take
_LISTEN_SECONDS: Final = 0.2

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def transfers(
    connect: Callable[[], Client], items: Iterable[T], work: Callable[[Client, T], R], *, at_once: int = AT_ONCE
) -> Iterator[Iterator[tuple[T, R | ZstorError]]]:
    """What the work answers to each item, or its typed error, in the order in which they end. Items are taken as they are needed.

    Raises NoDaemon where the connection breaks. However the block is left, by Ctrl-C too, the calls that ran are cancelled and the
    threads have ended: what they clean up is cleaned up.
    """
    running = _Running(connect, work, at_once)
    with termination_raises():
        try:
            running.start()
            yield running.through(items)
        except BaseException:
            running.give_up()
            raise
        finally:
            running.end()


class _Running(Generic[T, R]):
    def __init__(self, connect: Callable[[], Client], work: Callable[[Client, T], R], at_once: int) -> None:
        self._work = work
        self._waiting: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[T, R | ZstorError] | BaseException] = queue.SimpleQueue()
        self._clients: list[Client] = []
        try:
            for _ in range(at_once):
                self._clients.append(connect())
        except BaseException:
            self._hang_up()
            raise
        self._threads = [threading.Thread(target=self._run, args=(client,)) for client in self._clients]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def give_up(self) -> None:
        """Cancel what runs, and begin nothing more."""
        self._hang_up()
        with suppress(queue.Empty):
            while True:
                self._waiting.get_nowait()

    def end(self) -> None:
        """Wait until what was begun has ended."""
        for _thread in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            if thread.ident is not None:  # a Ctrl-C may have come before it was started
                thread.join()
        for client in self._clients:
            client.close()

    def through(self, items: Iterable[T]) -> Iterator[tuple[T, R | ZstorError]]:
        under_way = 0
        for item in items:
            if under_way >= 2 * len(self._threads):
                yield self._answer()
                under_way -= 1
            self._waiting.put(item)
            under_way += 1
        for _ in range(under_way):
            yield self._answer()

    def _answer(self) -> tuple[T, R | ZstorError]:
        answer = None
        while answer is None:
            with suppress(queue.Empty):
                # Not for longer: a Ctrl-C in the moment before it waits does not wake it.
                answer = self._answers.get(timeout=_LISTEN_SECONDS)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _run(self, client: Client) -> None:
        while (item := self._waiting.get()) is not None:
            try:
                self._answers.put((item, self._work(client, item)))
            except ZstorError as error:
                self._answers.put((item, error))
            except BaseException as error:  # the main thread raises it
                self._answers.put(error)
                if isinstance(error, NoDaemon):
                    return

    def _hang_up(self) -> None:
        for client in self._clients:
            client.hang_up()
