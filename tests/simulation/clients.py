"""What the clients of a history do and are told, and the judgement of it: namespace by namespace it must fit on one line."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

import trio

from tests.simulation.linearizable import ABSENT, Kind, Operation, Row, line
from tests.simulation.oracle import BadState
from zstor_local.errors import AlreadyExists, Conflict, CorruptRecord, NotFound, OutcomeUnknown, Unreadable, ZstorError
from zstor_local.model.ids import ObjectName, Version
from zstor_local.store.caller import Nobody
from zstor_local.store.links import Previous
from zstor_local.store.reading import stretch, whole
from zstor_local.store.references import References
from zstor_local.store.renaming import Renaming
from zstor_local.store.sources import BytesSource
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.writes import WriteOptions

CLIENTS: Final = 4
OTHER: Final = "other"  # the namespace that is removed now and then
REFERENCES: Final = ("x", "y", "z")
WRITES: Final[Sequence[Kind]] = ("put", "create", "swap", "keep", "link")


@dataclass(slots=True)
class History:
    """What happened in one seed's world."""

    seed: int
    operations: list[Operation] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    now: int = 0
    asked: int = 0
    hash: str = ""

    def number(self) -> int:
        self.asked += 1
        return self.asked

    def tick(self) -> int:
        self.now += 1
        return self.now

    def note(self, event: str) -> None:
        self.events.append(f"{self.tick():>6} {event}")


class Clients:
    """All clients of a history, over all lives of the daemon. `weights` says how often they do what, `excuse` whether a version may be
    unreadable.
    """

    def __init__(
        self, history: History, draw: random.Random, weights: Mapping[Kind, int], excuse: Callable[[Store, Stored], bool]
    ) -> None:
        self.history = history
        self._excuse = excuse
        self._draw = draw
        # After swarm testing (Groce, 2012): each history has some operations often and others not at all.
        always = ("get", "put", "delete")
        self._weights = {kind: each if kind in always else each * draw.choice([0, 1, 1, 3]) for kind, each in weights.items()}
        keys = "abcdef"[: draw.choice([1, 3, 6])]
        self.keys = {"default": keys, OTHER: "xyz"[: draw.choice([0, 0, 1, 3])]}
        self._names = [ObjectName(space, key) for space, its in self.keys.items() for key in its]
        self._hurry = draw.choice([(0,), (0, 0.01, 1), (0.01, 1, 3, 10)])
        self._patience = draw.choice([(inf,), (inf, inf, inf, 0, 0.001, 1)])  # seconds after which a client goes away
        self._burst = draw.choice([0.0, 0.2, 0.6])
        self._values: dict[bytes, int] = {}
        self._versions: dict[int, Version] = {}
        self._unsettled: list[Operation] = []  # of which nobody was told; they may come to light up to the next start
        self._spaces: dict[int, str] = {}  # the namespace of each operation
        self.rewritten = False  # since then a version may have gone though its value stays

    @property
    def names(self) -> Sequence[ObjectName]:
        """Every key that there may be."""
        return self._names

    @property
    def half_done(self) -> bool:
        """Whether nobody was told of a change of several rows, or of one that says what another row had then: only the metastore knows
        all of it or nothing, and that a copy never came to be whose source is gone.
        """
        linked = self._weights["link"]
        return any(each.kind in ("rename", "copy", "link") or (linked and each.kind.startswith("delete")) for each in self._unsettled)

    def settled(self) -> None:
        """The store is open: what nobody was told of has happened by now, or never does."""
        now = self.history.tick()
        for operation in self._unsettled:
            operation.end = now
        self._unsettled.clear()

    async def run(self, store: Store) -> None:
        """One life's work, each client with its own; several operations at once come into one group."""
        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(self._client, store)

    async def _client(self, store: Store) -> None:
        draw = self._draw
        for _ in range(draw.randrange(6, 16)):
            await trio.sleep(draw.choice(self._hurry))
            if draw.random() >= self._burst:
                await self._something(store, draw.choice(self._names))
                continue
            near = draw.choices(self._names, k=2)
            async with trio.open_nursery() as nursery:
                for _ in range(draw.randrange(2, 5)):
                    nursery.start_soon(self._something, store, draw.choice(near))

    async def _something(self, store: Store, name: ObjectName) -> None:
        draw = self._draw
        kind = draw.choices([*self._weights], [*self._weights.values()])[0]
        if kind == "clear":
            await self._clear(store)
            return
        others = [key for key in self.keys[name.namespace] if key != name.key]
        if kind in ("rename", "copy", "link") and not others:
            kind = "put"
        operation = Operation(self.history.number(), name.key, kind, self.history.tick())
        if kind in WRITES:
            operation.value = operation.number
            operation.user = operation.number * draw.choice([0, 1])
        if kind in ("put", "create", "swap", "link", "refer", "unrefer"):
            operation.references = tuple(draw.sample(REFERENCES, draw.choice([0, 1, 2]) or kind in ("refer", "unrefer")))
        if kind in ("rename", "copy", "link"):
            operation.other = draw.choice(others)
        if kind in ("swap", "delete if"):
            operation.expected = draw.choice([0, *self._versions][-4:])
        await self._told(store, name, operation)

    async def _clear(self, store: Store) -> None:
        """The other namespace goes with all that it holds. What came of an error the next start tells."""
        operation = Operation(self.history.number(), "", "clear", self.history.tick())
        self._begin(OTHER, operation)
        try:
            await store.removal.remove(OTHER, Nobody())
        except NotFound:
            self._drop(operation)  # there was none, or another one was faster
        except ZstorError as error:
            self.history.counts[f"clear: {error.type}"] += 1
        else:
            operation.done = True
            self._end(operation)

    def _begin(self, space: str, operation: Operation) -> None:
        self._spaces[operation.number] = space
        self.history.operations.append(operation)
        self._unsettled.append(operation)

    async def _told(self, store: Store, name: ObjectName, operation: Operation) -> None:
        """Ask, and write down the answer."""
        kind = operation.kind
        self._begin(name.namespace, operation)
        patience = self._draw.choice(self._patience)
        try:
            with trio.move_on_after(patience) as waiting:
                await self._ask(store, name, operation)
            if waiting.cancelled_caught:
                self.history.counts["nobody waited for it"] += 1
                if kind == "get":
                    self._drop(operation)
                return
        except (AlreadyExists, Conflict) as error:
            conditional = kind in ("create", "swap", "delete if") and not (self.rewritten and kind != "create")
            if not conditional or "builds on failed" in error.message or "being deleted" in error.message:
                self._forget(operation, error)  # it was not its condition that failed
                return
            operation.done = False
        except NotFound:
            if kind == "get":
                operation.value, operation.seen, operation.done = ABSENT, None, True
            else:
                operation.done = False
        except OutcomeUnknown as error:
            self.history.counts[error.type] += 1
            return
        except CorruptRecord as error:
            raise BadState(f"{name}: {error}") from error
        except ZstorError as error:
            self._forget(operation, error)
            return
        else:
            operation.done = True
        self._end(operation)

    def _end(self, operation: Operation) -> None:
        operation.end = self.history.tick()
        self.history.counts[operation.kind if operation.done else f"{operation.kind}, refused"] += 1
        self._unsettled.remove(operation)

    async def _ask(self, store: Store, name: ObjectName, operation: Operation) -> None:
        kind, nobody = operation.kind, Nobody()
        version = None
        if kind in ("swap", "delete if"):
            version = self._versions.get(operation.expected, Version(bytes(16)))
        if kind == "get":
            await self._get(store, name, operation)
        elif kind in ("delete", "delete if"):
            await store.writer.delete(name, version, nobody)
        elif kind == "rename":
            await renaming(store).rename(name, operation.other, None, nobody, exclusive=False)
        elif kind == "copy":
            await renaming(store).copy(name, operation.other, None, nobody, exclusive=False)
        elif kind == "refer":
            await references(store).append(name, operation.references, None, nobody)
        elif kind == "unrefer":
            await references(store).remove(name, operation.references, None, nobody)
        else:
            options = WriteOptions(
                if_version=version,
                exclusive=kind == "create",
                references=operation.references,
                keep_references=kind == "keep",
                user={"n": operation.user} if operation.user else {},
                previous=Previous(operation.other) if kind == "link" else None,
            )
            data = self._bytes(operation.number)
            at_once = store.writer.write_value(name, data, options, nobody) if self._draw.random() < 0.5 else None
            stored = await (at_once or store.writer.write(name, BytesSource(data), options, nobody))
            self._versions[operation.number] = stored.version

    async def _get(self, store: Store, name: ObjectName, operation: Operation) -> None:
        """Read a row; now and then slowly, while it is replaced and freed."""
        stored = store.objects.find(name)
        record = stored.record
        with store.freeing.lease(stored.version):
            if self._draw.random() < 0.2:
                await trio.sleep(self._draw.choice([0, 0.1, 3]))
            try:
                seen = await self._read(store, stored)
            except Unreadable as error:
                if not self._excuse(store, stored):
                    raise BadState(f"{name} cannot be read, without need: {error}") from error
                raise
        if bytes(seen) not in self._values:
            raise BadState(f"{name} has bytes that nobody wrote")
        operation.value = self._values[bytes(seen)]
        user = record.user.get("n", 0)
        assert isinstance(user, int)
        operation.seen = Row(operation.value, user, tuple(record.references), record.previous_key, record.next_key)

    async def _read(self, store: Store, stored: Stored) -> bytes:
        """At once if that goes, as the daemon does; of some a part too."""
        seen = store.objects.read_value(stored, whole(stored.record)) if self._draw.random() < 0.5 else None
        if seen is None:
            seen = await store.objects.read(stored)
        if self._draw.random() < 0.1:
            begin = self._draw.randrange(stored.record.size)
            part = stretch(stored.record, begin, self._draw.randrange(1, 5_000))
            if await store.objects.read(stored, part) != seen[begin : begin + part.length]:
                raise BadState(f"a part of {stored.record.key} is not what the whole says")
        return seen

    def _forget(self, operation: Operation, error: ZstorError) -> None:
        """It was refused, and so certainly did not happen."""
        self.history.counts[f"refused: {error.type}"] += 1
        self._drop(operation)

    def _drop(self, operation: Operation) -> None:
        self.history.operations.remove(operation)
        self._unsettled.remove(operation)

    def _bytes(self, number: int) -> bytes:
        """Bytes of their own for each write; now and then as many as have share files."""
        size = self._draw.choice([8, 50, 400, 3_000, 30_000])
        data = number.to_bytes(8) + random.Random(number).randbytes(size - 8)
        self._values[data] = number
        return data

    # --- In the end ---

    async def read_all(self, store: Store) -> None:
        """Every key must be readable, or not be there; lists, counts and references must say the same."""
        for space, keys in self.keys.items():
            rows: dict[str, Row] = {}
            for key in keys:
                operation = Operation(self.history.number(), key, "get", self.history.tick())
                try:
                    await self._get(store, ObjectName(space, key), operation)
                except NotFound:
                    pass
                except ZstorError as error:
                    raise BadState(f"{space}/{key} cannot be read any more: {error}") from error
                if operation.seen is not None:
                    rows[key] = operation.seen
                operation.done, operation.end = True, self.history.tick()
                self._spaces[operation.number] = space
                self.history.operations.append(operation)
            await self._lists(store, space, rows)

    async def delete_unreadable(self, store: Store) -> None:
        """After a rebuild in the middle of things: a write of which nobody was told may have left its record, and too few shares."""
        for name in self._names:
            try:
                await store.objects.read(store.objects.find(name))
            except NotFound:
                continue
            except Unreadable as error:
                doubtful = [each for each in self._unsettled if self._spaces[each.number] == name.namespace and each.kind != "get"]
                if name.key not in {key for each in doubtful for key in (each.key, each.other)}:
                    raise BadState(f"{name} cannot be read any more: {error}") from error
                await store.writer.delete(name, None, Nobody())

    async def _lists(self, store: Store, space: str, rows: Mapping[str, Row]) -> None:
        if store.namespaces.find(space) is None:
            return
        listed = [stored.record.key async for stored in store.objects.list(space, "", None, 100)]
        if (ours := [key for key in listed if key in self.keys[space]]) != sorted(rows):
            raise BadState(f"the list of {space} has {ours}, readable are {sorted(rows)}")
        for reference in REFERENCES:
            found = [key async for key in references(store).find(space, reference, None, 100)]
            if found != sorted(key for key, row in rows.items() if reference in row.references):
                raise BadState(f"{reference} is said to be referred to by {found} in {space}")

    def judge(self) -> None:
        for space in self.keys:
            operations = [operation for operation in self.history.operations if self._spaces[operation.number] == space]
            if line(operations) is None:
                listed = "\n".join(map(str, _shortest(operations)))
                raise BadState(f"what clients were told of {space!r} fits on no line:\n{listed}")


def _shortest(operations: Sequence[Operation]) -> list[Operation]:
    """The first operations, in the order of their begin, that fit on no line by themselves."""
    ordered = sorted(operations, key=lambda operation: operation.begin)
    for count in range(1, len(ordered) + 1):
        if line(ordered[:count]) is None:
            return ordered[:count]
    return ordered


def renaming(store: Store) -> Renaming:
    return Renaming(store.core, store.namespaces, store.freeing)


def references(store: Store) -> References:
    return References(store.core, store.namespaces)
