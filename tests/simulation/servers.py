"""A shard server's storage in a simulated world, without its HTTP: lives of a server, and what it has promised to its owner.

Its indexes lie beside the simulated disks (indexes.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Final

import pytest

from tests.shardserver.server import MARKER, NAMESPACE, SESSION, STORE, scanned, share_file, version
from tests.simulation.indexes import Indexes, KeptLogIndex, indexes
from tests.simulation.oracle import BadState
from tests.simulation.world import World
from zstor_local.model.ids import NamespaceId, ShardUid, ShareId
from zstor_local.shards.http.wire import Batch, Fence
from zstor_local.shardserver.compaction import Compaction
from zstor_local.shardserver.large_index import LargeIndex
from zstor_local.shardserver.refusal import Refusal
from zstor_local.shardserver.space import Cursor, Space
from zstor_local.shardserver.volume import Volume
from zstor_local.store.pace import unpaced

ROOT: Final = "/server"
UID: Final = ShardUid(bytes(STORE))
OTHER: Final = NamespaceId(b"another name 16b")
LETTER: Final = b"a letter's 16 id"
SMALL_BYTES: Final = 1_000
LARGE_BYTES: Final = 3_000

Share = tuple[ShareId, bool]  # and whether it is small
Value = bytes | str | None


# --- Indexes ---


class _KeptLargeIndex(LargeIndex):
    def __init__(self, kept: Indexes, path: str) -> None:
        super().__init__(":memory:")
        self._keep = kept.keeper(path, self._db)

    def _change(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        super()._change(statement, rows)
        self._keep()


# --- Promises ---


@dataclass
class Promises:
    """What must be found of each thing: one of several values only while a request is done, and until it is looked at."""

    shares: dict[Share, set[Value]] = field(default_factory=dict)
    homes: dict[Share, NamespaceId] = field(default_factory=dict)
    records: dict[int, NamespaceId] = field(default_factory=dict)  # by sequence: those that were answered
    superseded: set[int] = field(default_factory=set)  # sequences of records that may go
    names: dict[NamespaceId, set[Value]] = field(default_factory=dict)
    letter: set[Value] = field(default_factory=lambda: {None})
    writer: int = 0
    retiring: set[NamespaceId] = field(default_factory=set)  # asked for, and not answered
    strays: dict[Share, set[Value]] = field(default_factory=dict)  # what was refused, and may be there for good: a scrub finds it

    def copy(self) -> Promises:
        shares = {share: values.copy() for share, values in self.shares.items()}
        names = {namespace: values.copy() for namespace, values in self.names.items()}
        homes, records = self.homes.copy(), self.records.copy()
        strays = {share: values.copy() for share, values in self.strays.items()}
        retiring, superseded = self.retiring.copy(), self.superseded.copy()
        return Promises(shares, homes, records, superseded, names, self.letter.copy(), self.writer, retiring, strays)

    def state(self) -> str:
        return repr((sorted(self.shares.items()), sorted(self.names.items()), self.letter, self.writer, self.retiring))


@contextmanager
def becoming(*places: tuple[set[Value], Value]) -> Iterator[None]:
    """While things change: each has its old value or the new one, and once it is done the new one."""
    for values, new in places:
        values.add(new)
    yield
    for values, new in places:
        values.clear()
        values.add(new)


def small(number: int) -> Share:
    return ShareId(version(number), 0), True


def large(number: int) -> Share:
    return ShareId(version(number), 0), False


def content(share: Share, namespace: NamespaceId, edition: int = 0) -> bytes:
    if share[1]:
        return bytes([share[0].version[-1]]) * SMALL_BYTES
    return share_file(share[0], bytes([share[0].version[-1], edition]) * (LARGE_BYTES // 2), namespace)


# --- Lives ---


class Life:
    """A server from its start on, and the daemon that has taken its space over."""

    def __init__(self, world: World, promises: Promises) -> None:
        self.world = world
        self.promises = promises
        self.volume = Volume(world.runtime, ROOT)
        self.batch = 0
        self.fence = Fence(0, 0, SESSION)
        self.space: Space

    def begin(self) -> None:
        """Make the space if there is none, and take it over."""
        self.space = self.volume.create(UID, "issuer", MARKER)
        if self.space.fence.writer < self.promises.writer:
            raise BadState(f"writer {self.space.fence.writer} has the space again, not {self.promises.writer}")
        known = indexes(self.world)
        known.lives += 1
        self.fence = Fence(known.lives, 1, SESSION)
        self.space.raise_fence(self.fence)
        self.promises.writer = self.fence.writer
        for namespace in sorted(self.promises.retiring):
            self.retire(namespace)

    def append(self, *numbers: int, namespace: NamespaceId = NAMESPACE, freed: Sequence[int] = ()) -> None:
        self.append_to({namespace: numbers}, freed)

    def append_to(self, numbers: dict[NamespaceId, Sequence[int]], freed: Sequence[int] = ()) -> None:
        """A batch for several namespaces."""
        entries = [
            scanned(number, content(small(number), namespace), namespace=namespace, committed=number - 1)
            for namespace, some in numbers.items()
            for number in some
        ]
        changes = [
            *(
                (self._values(small(number), namespace), content(small(number), namespace))
                for namespace, some in numbers.items()
                for number in some
            ),
            *((self._values(small(number)), None) for number in freed),
        ]
        self.batch += 1
        with becoming(*changes), self._straying(*map(small, (number for some in [*numbers.values(), freed] for number in some))):
            self.space.append(self.fence, self.batch, Batch(entries, [small(number)[0] for number in freed]))
        self.promises.records |= {number: namespace for namespace, some in numbers.items() for number in some}

    def supersede(self, *numbers: int, namespace: NamespaceId = NAMESPACE) -> None:
        self.promises.superseded.update(numbers)
        self.space.supersede(namespace, numbers)

    def free(self, *numbers: int) -> None:
        self.append_to({}, numbers)

    def put(self, number: int, *, namespace: NamespaceId = NAMESPACE, edition: int = 0) -> None:
        """A large share in two parts, the last one first."""
        share = large(number)
        data = content(share, namespace, edition)
        half = len(data) // 2
        with becoming((self._values(share, namespace), data)), self._straying(share):
            for offset, part in ((half, data[half:]), (0, data[:half])):
                self.space.large.put_part(self.fence, namespace, share[0], offset, part)
            self.space.large.finish(self.fence, namespace, share[0], len(data))

    def free_large(self, *numbers: int) -> None:
        with becoming(*((self._values(large(number)), None) for number in numbers)), self._straying(*map(large, numbers)):
            self.space.large.free(self.fence, None, [large(number)[0] for number in numbers])

    def describe(self, namespace: NamespaceId, name: str) -> None:
        names = self.promises.names
        losing = [values for other, values in names.items() if other != namespace and name in values]
        for values in losing:
            values.add(None)
        with becoming((names.setdefault(namespace, {None}), name)):
            self.space.rooms.describe(namespace, name, None, None)
        for values in losing:
            values.discard(name)

    def put_letter(self, text: bytes) -> None:
        with becoming((self.promises.letter, text)):
            self.space.put_letter(LETTER, text)

    def retire(self, namespace: NamespaceId) -> None:
        self.promises.retiring.add(namespace)
        records = self.promises.records
        self.promises.records = {sequence: where for sequence, where in records.items() if where != namespace}
        mine = [share for share, where in self.promises.homes.items() if where == namespace]
        with self._straying(*mine):
            self.space.retire(namespace)
        for values in [*(self.promises.shares[share] for share in mine), self.promises.names.setdefault(namespace, set())]:
            values.clear()
            values.add(None)
        self.promises.retiring.discard(namespace)

    async def compact(self) -> int:
        return await Compaction(self.volume).compact(unpaced)

    def _values(self, share: Share, namespace: NamespaceId | None = None) -> set[Value]:
        if namespace is not None:
            self.promises.homes[share] = namespace
        return self.promises.shares.setdefault(share, {None})

    @contextmanager
    def _straying(self, *shares: Share) -> Iterator[None]:
        """While shares come or go: where that is refused, what they were and should be may stay for good."""
        try:
            yield
        except (Refusal, OSError):
            for share in shares:
                self.promises.strays.setdefault(share, set()).update(self.promises.shares[share])
            raise

    # --- Looking ---

    def read(self, share: Share) -> bytes | None:
        try:
            with self.space.opened(None, share[0], small=share[1]) as (size, read):
                return read(0, size)
        except Refusal as refusal:
            if refusal.type != "not_found":
                raise
            return None

    def observe(self) -> None:
        """Everything is as promised; what may be one thing or the other is what it was found to be from now on."""
        for share, values in self.promises.shares.items():
            values |= self.promises.strays.get(share, set()) - {None}
            _choose(f"{'small' if share[1] else 'large'} share {share[0].version[-1]}", values, self.read(share))
        names = {room.id: room.name for room in self.space.rooms}
        for namespace, values in self.promises.names.items():
            _choose(f"the name of {namespace!r}", values, names.get(namespace))
        try:
            letter: Value = self.space.letter(LETTER)
        except Refusal:
            letter = None
        _choose("the letter", self.promises.letter, letter)
        found = {each.entry.envelope.sequence for each in self.space.page(None, Cursor(), 1 << 40)[0].entries}
        if lacking := self.promises.records.keys() - self.promises.superseded - found:
            raise BadState(f"the records {sorted(lacking)} are gone")
        listed = {name for small in (True, False) for name in self._names(small=small)}
        expected = {_name(share) for share, values in self.promises.shares.items() if values != {None}}
        if listed != expected:
            raise BadState(f"listed are {sorted(listed)}, there are {sorted(expected)}")

    def _names(self, *, small: bool) -> Iterator[tuple[str, bool]]:
        names = self.space.list_small if small else self.space.large.names
        yield from ((name, small) for name in names("", 1_000))

    def known(self) -> object:
        """What the indexes tell."""
        places = {version: dict(places) for version, places in self.space._index.versions()}
        return places, {room.id: (room.number, room.used_bytes, room.shares) for room in self.space.rooms}


def _name(share: Share) -> tuple[str, bool]:
    return f"{share[0].version.hex()}.{share[0].index}", share[1]


def _choose(what: str, values: set[Value], found: Value) -> None:
    if found not in values:
        raise BadState(f"{what} is {_show(found)}, not {' or '.join(map(_show, values))}")
    values.intersection_update({found})


def _show(value: Value) -> str:
    return f"{len(value)} bytes {value[-1:].hex()}" if isinstance(value, bytes) else repr(value)


@contextmanager
def living(world: World, promises: Promises, *, patient: bool = False) -> Iterator[Life]:
    """A life of the server until it is stopped. PowerLoss where the power goes. A patient daemon begins again where it is refused."""

    def remove_tree(path: str) -> None:
        """All of it but the directories: nothing in a simulated world removes those."""
        files = world.files
        for name in files.list(path):
            if not files.path_status(f"{path}/{name}").is_regular:
                remove_tree(f"{path}/{name}")
            else:
                files.unlink(f"{path}/{name}")

    kept = indexes(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zstor_local.shardserver.space.LogIndex", partial(KeptLogIndex, kept))
        patch.setattr("zstor_local.shardserver.large.LargeIndex", partial(_KeptLargeIndex, kept))
        patch.setattr("zstor_local.shardserver.volume.shutil", SimpleNamespace(rmtree=remove_tree))
        life = Life(world, promises)
        try:
            try:
                life.begin()
            except Refusal:
                if not patient:
                    raise
                life.begin()
            yield life
        finally:
            if not world.files.dead:
                life.volume.close()
