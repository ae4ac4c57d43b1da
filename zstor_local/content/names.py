"""The name system: fixed names for things that change. A name has a value and a sequence number that grows with every change.

Each name is linearizable: its changes are decided one after another in the committer, and a fetch sees what was committed before it. A
name that was deleted keeps its number and goes on from there, so that `if_seq` never takes a new life of a name for the old one.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from zstor_local import limits
from zstor_local.errors import Conflict, CorruptRecord, InvalidParams, NotFound, TooLarge
from zstor_local.model.ids import check_key
from zstor_local.store.storewide import StoredRow, StoreWide

TABLE: Final = "name"
SCAN_ROWS: Final = 16  # read at once: their values take 8 MiB at most
LOGS: Final = "log/"  # names below it are the heads of logs, which only the logs change; owners of pins that begin so are logs too

_FORMAT: Final = 1
_DELETED: Final = 1
_HEADER: Final = struct.Struct("<BBQ")  # format, flags, sequence number; the value follows


@dataclass(frozen=True, slots=True)
class Name:
    """A name as it was last changed; `updated` in microseconds since 1970 UTC. A deleted one has no value."""

    name: str
    value: bytes
    seq: int
    updated: int
    deleted: bool = False


@dataclass(slots=True)
class _Watched:
    news: trio.Event = field(default_factory=trio.Event)
    watchers: int = 0


class Watch:
    """Somebody's eye on one name."""

    def __init__(self, watched: _Watched) -> None:
        self._watched = watched

    def news(self) -> trio.Event:
        """Set by the next change. Take it before looking, then nothing is missed."""
        return self._watched.news


class Names:
    """The use cases. Values are any bytes, up to limits.NAME_VALUE_BYTES."""

    def __init__(self, rows: StoreWide) -> None:
        self._rows = rows
        self._watched: dict[str, _Watched] = {}

    def fetch(self, name: str) -> Name:
        """The name as last committed, or NotFound."""
        found = self.find(name)
        if found is None or found.deleted:
            raise _no_name(name)
        return found

    def find(self, name: str) -> Name | None:
        """The name as last committed, also where it was deleted; None if it never was."""
        row = self._rows.get(TABLE, check_name(name))
        return None if row is None else _opened(row)

    async def list(self, prefix: str, after: str | None, limit: int) -> AsyncGenerator[Name, None]:
        """Names that begin with the prefix and come behind `after`, in the order of their UTF-8 bytes."""
        found = 0
        while found < limit:
            await trio.lowlevel.checkpoint()  # deleted names keep their rows, so there may be any number of them to pass over
            before = after
            for row in self._rows.scan(TABLE, prefix, after, SCAN_ROWS):
                after = row.name
                name = _opened(row)
                if not name.deleted and found < limit:
                    found += 1
                    yield name
            if after == before:
                return

    async def update(self, name: str, value: bytes, *, if_seq: int | None = None) -> Name:
        """Set the name's value; durable when this returns. With `if_seq` only while that is its number (0: while it is not there)."""
        _refuse_logs(name)
        return await self.publish(name, value, if_seq=if_seq)

    async def publish(self, name: str, value: bytes, *, if_seq: int | None = None) -> Name:
        """`update` for the owner of the name: logs publish their heads so."""
        if len(value) > limits.NAME_VALUE_BYTES:
            raise TooLarge(
                f"the value has {len(value)} bytes, {limits.NAME_VALUE_BYTES} is the limit",
                hint="put the bytes into the content store (`zstor cas put`) and its id under the name",
                limit=limits.NAME_VALUE_BYTES,
            )

        def change(current: StoredRow | None) -> bytes:
            before = None if current is None else _opened(current)
            _check(name, before, if_seq)
            return _HEADER.pack(_FORMAT, 0, 1 if before is None else before.seq + 1) + value

        row = await self._rows.change(TABLE, check_name(name), change)
        self._tell(name)
        if row is None:
            raise AssertionError("a row that was set is there")
        return _opened(row)

    async def delete(self, name: str, *, if_seq: int | None = None) -> int:
        """Delete the name; NotFound if it is not there. Returns its last number: if it comes back, it goes on above that."""
        _refuse_logs(name)

        def change(current: StoredRow | None) -> bytes:
            before = None if current is None else _opened(current)
            if before is None or before.deleted:
                raise _no_name(name)
            _check(name, before, if_seq)
            return _HEADER.pack(_FORMAT, _DELETED, before.seq + 1)

        row = await self._rows.change(TABLE, check_name(name), change)
        self._tell(name)
        if row is None:
            raise AssertionError("a deleted name keeps its row")
        return _opened(row).seq

    @contextmanager
    def watch(self, name: str) -> Iterator[Watch]:
        """Be told of changes of a name, whether or not it is there yet."""
        watched = self._watched.setdefault(check_name(name), _Watched())
        watched.watchers += 1
        try:
            yield Watch(watched)
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                del self._watched[name]

    def _tell(self, name: str) -> None:
        watched = self._watched.get(name)
        if watched is not None:
            watched.news.set()
            watched.news = trio.Event()


def check_name(name: str) -> str:
    """The name itself, or InvalidParams or TooLarge: 1 to 1,024 bytes of UTF-8 without NUL."""
    try:
        return check_key(name)
    except InvalidParams as error:
        raise InvalidParams(error.message.replace("a key", "a name"), parameter="name") from None
    except TooLarge as error:
        raise TooLarge(error.message.replace("the key", "the name"), hint=error.hint, **error.data) from None


def _opened(row: StoredRow) -> Name:
    try:
        version, flags, seq = _HEADER.unpack_from(row.value)
    except struct.error:
        raise CorruptRecord(f"the row of the name {row.name!r} is malformed") from None
    if version != _FORMAT:
        raise CorruptRecord(
            f"the name {row.name!r} has format {version}, this version reads 1", hint="use the newer zstor that wrote it"
        )
    return Name(row.name, row.value[_HEADER.size :], seq, row.changed, bool(flags & _DELETED))


def _check(name: str, before: Name | None, if_seq: int | None) -> None:
    current = 0 if before is None else before.seq
    there = before is not None and not before.deleted
    if if_seq is not None and if_seq != current and (if_seq != 0 or there):
        raise Conflict(f"the name {name!r} has the number {current}", hint="fetch it and decide anew", current=current)


def _refuse_logs(name: str) -> None:
    if name.startswith(LOGS):
        raise InvalidParams("names that begin with log/ are the heads of logs", hint="use `zstor log append`", parameter="name")


def _no_name(name: str) -> NotFound:
    return NotFound(f"there is no name {name!r}", hint="`zstor ns ls` lists them", name=name)
