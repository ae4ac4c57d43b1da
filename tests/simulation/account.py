"""What a client was told, and so what it may find: the other side of "old or new, and never old once the reply was sent"."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from zstor_local.errors import NotFound, OutcomeUnknown, ZstorError
from zstor_local.model.ids import ObjectName, Version
from zstor_local.model.record import NO_VERSION
from zstor_local.store.caller import Nobody
from zstor_local.store.renaming import Renaming
from zstor_local.store.sources import BytesSource
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.writes import Source, WriteOptions

Value = bytes | None  # None: the key is not there


@dataclass(frozen=True, slots=True)
class Attempt:
    """A change that was asked for. `settled` is what was possible before, but for changes that were still under way then."""

    number: int
    key: str
    value: Value
    settled: frozenset[int]


@dataclass(slots=True)
class Account:
    """For each key the values that it may have, by the number of the attempt that gave them (0: never written)."""

    possible: dict[str, dict[int, Value]] = field(default_factory=dict)
    under_way: set[int] = field(default_factory=set)
    replies: int = 0
    attempts: int = 0

    def copy(self) -> Account:
        return Account(
            {key: values.copy() for key, values in self.possible.items()}, self.under_way.copy(), self.replies, self.attempts
        )

    def begin(self, key: str, value: Value) -> Attempt:
        """The client asks for a change: from now on the key may have the new value."""
        self.attempts += 1
        values = self.possible.setdefault(key, {0: None})
        attempt = Attempt(self.attempts, key, value, frozenset(values.keys() - self.under_way))
        values[attempt.number] = value
        self.under_way.add(attempt.number)
        return attempt

    def done(self, attempt: Attempt) -> None:
        """The reply came: what was settled before is gone for ever."""
        self.under_way.discard(attempt.number)
        self.replies += 1
        values = self.possible[attempt.key]
        for number in attempt.settled:
            values.pop(number, None)

    def refused(self, attempt: Attempt) -> None:
        """A typed error came: the change certainly did not happen."""
        self.under_way.discard(attempt.number)
        del self.possible[attempt.key][attempt.number]

    def in_doubt(self, attempt: Attempt) -> None:
        """The client was told that nobody knows."""
        self.under_way.discard(attempt.number)

    def allows(self, key: str, value: Value) -> bool:
        return value in self.possible[key].values()

    def chosen(self, key: str, value: Value) -> None:
        """A recovery showed the key's value: it must never be another one without a further change."""
        self.possible[key] = {0: value}
        self.under_way.clear()

    def state(self) -> str:
        """Equal for accounts that allow the same."""
        return repr([(key, sorted({hash(value) for value in values.values()})) for key, values in sorted(self.possible.items())])


class Move(Protocol):
    """Rename or copy."""

    async def __call__(
        self, name: ObjectName, new_key: str, if_version: Version | None, caller: Nobody, *, exclusive: bool
    ) -> Stored: ...


class Client:
    """Uses a store and keeps its account. Its calls return what the store answered, typed errors too; others go on."""

    def __init__(self, store: Store, account: Account) -> None:
        self.store = store
        self.account = account

    async def put(
        self, key: str, data: bytes, options: WriteOptions | None = None, source: Source | None = None
    ) -> Stored | ZstorError:
        """Write the bytes, which come as a value or from `source`."""
        attempt = self.account.begin(key, data)
        try:
            stored = await self.store.writer.write(name(key), source or BytesSource(data), options or WriteOptions(), Nobody())
        except ZstorError as error:
            return self._failed(attempt, error)
        self.account.done(attempt)
        return stored

    async def delete(self, key: str, if_version: Version | None = None) -> int | ZstorError:
        attempt = self.account.begin(key, None)
        try:
            owed = await self.store.writer.delete(name(key), if_version, Nobody())
        except ZstorError as error:
            return self._failed(attempt, error)
        self.account.done(attempt)
        return owed

    async def rename(self, key: str, new_key: str) -> Stored | ZstorError:
        return await self._move(self._renaming().rename, key, new_key, {key: None})

    async def copy(self, key: str, new_key: str) -> Stored | ZstorError:
        return await self._move(self._renaming().copy, key, new_key, {})

    async def _move(self, move: Move, key: str, new_key: str, left: dict[str, Value]) -> Stored | ZstorError:
        changes = {**left, new_key: await self.get(key)}
        attempts = [self.account.begin(each, value) for each, value in changes.items()]
        try:
            stored = await move(name(key), new_key, None, Nobody(), exclusive=False)
        except ZstorError as error:
            for attempt in attempts:
                self._failed(attempt, error)
            return error
        for attempt in attempts:
            self.account.done(attempt)
        return stored

    def _renaming(self) -> Renaming:
        store = self.store
        return Renaming(store.core, store.namespaces, store.freeing)

    def _failed(self, attempt: Attempt, error: ZstorError) -> ZstorError:
        if isinstance(error, OutcomeUnknown):
            self.account.in_doubt(attempt)
        else:
            self.account.refused(attempt)
        return error

    def version(self, key: str) -> Version:
        """The key's version; one that never was if the key is not there."""
        try:
            return self.store.objects.find(name(key)).version
        except NotFound:
            return NO_VERSION

    async def get(self, key: str) -> Value:
        """The key's bytes, all of them, or None. Any other error than NotFound is raised."""
        try:
            stored = self.store.objects.find(name(key))
        except NotFound:
            return None
        return await self.store.objects.read(stored)

    async def observe(self) -> dict[str, Value]:
        """Every key that was ever asked for."""
        return {key: await self.get(key) for key in sorted(self.account.possible)}


def name(key: str) -> ObjectName:
    return ObjectName("default", key)
