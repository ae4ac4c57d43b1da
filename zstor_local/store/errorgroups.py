"""One error out of a nursery's group: the one that a caller can be told."""

from __future__ import annotations

from collections.abc import Awaitable, Iterator

from zstor_local.errors import ZstorError


async def alone(work: Awaitable[None]) -> None:
    """Await work that has a nursery of its own, and raise its one error bare."""
    try:
        await work
    except BaseExceptionGroup as group:
        raise single(group) from None


def single(error: BaseException) -> BaseException:
    """The error that counts of a group: the first typed one, else the first."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = list(_leaves(error))
    for kind in (ZstorError, Exception, BaseException):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return error


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for each in group.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _leaves(each)
        else:
            yield each
