"""What a reader's rows come to: whatever was refused, and in whatever order the servers' logs tell of it."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from math import nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from tests.access.test_lying_owner import GOOD
from tests.model.samples import SHORTEST
from tests.store.home import Home
from zstor_local import limits
from zstor_local.access import joined_before, joined_rows
from zstor_local.access.authority import Authority
from zstor_local.access.joined import Joined
from zstor_local.access.joined_rows import Rows
from zstor_local.access.joining import Joining
from zstor_local.coding.keys import NamespaceKeys
from zstor_local.errors import IoError
from zstor_local.model.ids import KeyHash, Version
from zstor_local.model.policy import Policy
from zstor_local.model.record import NO_KEY, NO_VERSION, Envelope, Kind, Tombstone, associated_data
from zstor_local.model.storewide import VoidRecord
from zstor_local.runtime import Network
from zstor_local.shards.base import Entry, ScannedEntry, ShardError
from zstor_local.shards.http.ask import Ask
from zstor_local.shards.http.wire import Batch, pack_batch
from zstor_local.store.changes import Changes
from zstor_local.store.namespaces import Gate, Namespace
from zstor_local.store.sealing import Foreign
from zstor_local.store.store import Store

SPACE = GOOD.namespace_id
KEYS = NamespaceKeys.of(GOOD.record_keys)


def sealed(kind: Kind, key_hash: KeyHash, version: Version, sequence: int, plain: bytes) -> Envelope:
    bound = associated_data(GOOD.store_id, kind, SPACE, key_hash, version, sequence)
    return Envelope(kind, SPACE, key_hash, version, sequence, KEYS.seal_record(bytes(32), bound, plain))


def written(key: str, sequence: int) -> Envelope:
    record = replace(SHORTEST, key=key, size=sequence, references=(f"{sequence}",))
    return sealed(Kind.OBJECT, KeyHash(key.encode().ljust(16)), Version(sequence.to_bytes(16, "big")), sequence, record.encode())


def deleted(key: str, sequence: int) -> Envelope:
    hashed, version = KeyHash(key.encode().ljust(16)), Version(sequence.to_bytes(16, "big"))
    return sealed(Kind.TOMBSTONE, hashed, version, sequence, Tombstone(key, 1).encode())


def void(first: int, last: int, sequence: int) -> Envelope:
    return sealed(Kind.VOID, NO_KEY, NO_VERSION, sequence, VoidRecord(first, last).encode())


def page(*envelopes: Envelope) -> bytes:
    return pack_batch(Batch([ScannedEntry(Entry(envelope), 0) for envelope in envelopes]))


@pytest.fixture
async def store(home: Home) -> AsyncIterator[Store]:
    async with home.open() as store:
        store.sealer.foreign[SPACE] = Foreign(GOOD.store_id, KEYS, limits.SHARD_NUMBERS)
        yield store


@pytest.fixture
async def rows(store: Store) -> AsyncIterator[Rows]:
    rows = Rows(store, GOOD)
    yield rows
    rows.close()


def shown(rows: Rows) -> dict[str, int]:
    """The sequence of each key's record; what is counted and found by references has to fit."""
    found = {row.name: row.envelope.sequence for row in rows.metastore.scan(SPACE, "", None, None)}
    usage = rows.metastore.usage(SPACE)
    assert (usage.objects, usage.bytes) == (len(found), sum(found.values()))
    for key, sequence in found.items():
        assert rows.metastore.referring(SPACE, rows._reference_hash(SPACE, f"{sequence}"), None, 10) == [key]
    return found


async def test_what_was_taken_back_makes_room_for_what_was_there_before(rows: Rows) -> None:
    rows.take(page(written("a", 1), written("b", 2)))
    rows.take(page(written("a", 3), written("a", 4), deleted("b", 5), written("c", 6)))
    assert shown(rows) == {"a": 4, "c": 6}
    assert not rows.take(page(void(3, 6, 8))).lost
    assert shown(rows) == {"a": 1, "b": 2}
    assert not any(row.envelope.sealed for row in rows.metastore.changes(SPACE, 2, 10))
    rows.take(page(written("a", 3), written("c", 6)))  # another server's copies
    assert shown(rows) == {"a": 1, "b": 2}
    rows.take(page(written("c", 9)))
    assert shown(rows) == {"a": 1, "b": 2, "c": 9}


async def test_a_key_that_was_replaced_opens_nothing_that_came_later(rows: Rows, store: Store) -> None:
    """Who has only that could else, with whoever operates a server, make up what other readers see."""
    keys = NamespaceKeys.of([b"n" * 32, *GOOD.record_keys], [2])
    store.sealer.foreign[SPACE] = Foreign(GOOD.store_id, keys, limits.SHARD_NUMBERS)
    assert rows.take(page(written("a", 1), written("b", 2), written("a", 3), void(1, 2, 4))).sealed
    assert shown(rows) == {"a": 1, "b": 2}


async def test_what_claims_more_bytes_than_there_can_be_is_not_taken(rows: Rows) -> None:
    """It would be counted: no number of the file that keeps it is that large, and none that goes to clients."""
    rows.take(page(written("a", 1)))
    records = [replace(SHORTEST, key=f"b{size}", size=size).encode() for size in (2**53 - 2, 1)]
    hostile = [
        sealed(Kind.OBJECT, KeyHash(bytes(16)), Version(bytes(16)), sequence, plain) for sequence, plain in enumerate(records, 2)
    ]
    with pytest.raises(ShardError, match="more bytes than there can be"):
        rows.take(page(*hostile))
    assert shown(rows) == {"a": 1}
    rows.take(page(written("c", 9)))
    assert shown(rows) == {"a": 1, "c": 9}


@pytest.mark.parametrize(("first", "last"), [(2**64 - 2, 2**64 - 1), (0, 2**64 - 1), (2**63, 2**63), (-(2**64), 9), (9, 1)])
async def test_sequences_that_no_record_can_have_are_taken_back_in_vain(rows: Rows, first: int, last: int) -> None:
    """They are looked for in the file that keeps the records, which knows no such numbers."""
    rows.take(page(written("a", 1)))
    rows.take(page(void(first, last, 2), written("b", 3)))
    assert shown(rows) == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    "change",
    [
        *({"created": 10**5_000}, {"modified": 2**53}, {"size": 2**64 - 1}),
        *({"user": {"a": value}} for value in (Decimal(1), re.compile("x"), b"x", nan)),
    ],
    ids=["no number", "a number too large", "a size too large", "a decimal", "a pattern", "bytes", "not a number"],
)
async def test_what_no_reply_can_tell_is_no_record(rows: Rows, change: Mapping[str, Any]) -> None:
    """It would be in the way of all that is listed with it."""
    plain = replace(SHORTEST, key="a", **change).encode()
    assert rows.take(page(sealed(Kind.OBJECT, KeyHash(bytes(16)), Version(bytes(16)), 1, plain), written("b", 2))).sealed
    assert shown(rows) == {"b": 2}


async def test_no_object_makes_its_reader_hold_a_table_without_end(rows: Rows) -> None:
    """Its chunk table lies in its shares, on servers that may send all that is asked for."""
    longest = (limits.FOREIGN_TABLE_BYTES // 4 - 4) * limits.MIB  # of 16 TiB; the seal takes 16 bytes
    for size in (longest, longest + 1, 2**52):
        plain = replace(SHORTEST, key=f"{size}", size=size, references=(f"{size}",), table_blob=True).encode()
        rows.take(page(sealed(Kind.OBJECT, KeyHash(bytes(16)), Version(bytes(16)), size, plain)))
    assert shown(rows) == {f"{longest}": longest}


async def test_a_page_that_could_not_be_kept_is_taken_again(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    rows.take(page(written("a", 1)))
    rows.take(page(written("a", 2)))
    with monkeypatch.context() as patch:
        patch.setattr(joined_rows, "ROWS_BYTES", 1_000)
        with pytest.raises(ShardError):
            rows.take(page(void(2, 2, 3), written("b", 4)))
    assert shown(rows) == {"a": 2}
    assert not rows.take(page(void(2, 2, 3), written("b", 4))).lost
    assert shown(rows) == {"a": 1, "b": 4}


async def test_what_is_not_known_any_more_is_read_again(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_before, "BEFORE_BYTES", 0)
    log = page(written("a", 1), written("b", 2)), page(written("a", 3)), page(void(3, 3, 4))
    assert [rows.take(each).lost for each in log] == [False, False, True]
    assert shown(rows) == {"b": 2}
    assert not any(rows.take(each).lost for each in log)
    assert shown(rows) == {"a": 1, "b": 2}


async def test_a_write_of_a_new_key_that_is_refused_again_and_again_is_no_reason_to_read_again(rows: Rows) -> None:
    for sequence in range(1, 100, 3):
        assert not rows.take(page(written("a", sequence))).lost
        assert not rows.take(page(void(sequence, sequence, sequence + 1))).lost
    assert shown(rows) == {}
    assert len(rows._voids) == 33  # the store's own voids have numbers in between


async def test_too_many_voids_are_not_kept(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_rows, "VOIDS_MAX", 3)
    rows.take(page(void(1, 1, 11), void(3, 3, 13)))
    with pytest.raises(ShardError, match="no more are kept"):
        rows.take(page(void(5, 5, 15)))


async def test_a_void_of_another_space_does_not_count(rows: Rows) -> None:
    """Nor one that does not open."""
    rows.take(page(written("a", 1)))
    rows.take(page(replace(void(1, 1, 2), namespace=type(SPACE)(bytes(16))), replace(void(1, 1, 2), sealed=bytes(80))))
    assert shown(rows) == {"a": 1}


class Owner:
    """Writes, deletions and refusals of a few keys, as they lie in the logs of some servers; some were compacted."""

    def __init__(self, seed: int, *, compacted: bool) -> None:
        self.random = random.Random(seed)
        self.truth: dict[str, int] = {}
        self.refused: set[int] = set()
        self.logs: list[list[Envelope]] = [[], [], []]
        self._sequence = 0
        for _ in range(self.random.randrange(1, 30)):
            self._group()
        if compacted:
            for log in self.logs:
                begin = self.random.randrange(len(log) + 1)
                moved, rest = log[:begin], log[begin:]
                middle = self.random.randrange(len(rest) + 1)
                log[:] = [*rest[:middle], *moved, *rest[middle:]]

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _group(self) -> None:
        refused = self.random.random() < 0.5
        entries: list[Envelope] = []
        for _ in range(self.random.randrange(1, 4)):
            key = self.random.choice("abc")
            entries.append((deleted if self.random.random() < 0.3 else written)(key, self._next()))
            if refused:
                self.refused.add(self._sequence)
            elif entries[-1].kind is Kind.OBJECT:
                self.truth[key] = self._sequence
            else:
                self.truth.pop(key, None)
        holders = self.random.sample(self.logs, self.random.randrange(1, 3) if refused else 3)
        for log in holders:
            log += entries
        if refused:
            self._next()  # the store's own
            told = void(entries[0].sequence, entries[-1].sequence, self._next())
            for log in self.logs:
                log.append(told)

    def pages(self) -> Iterator[tuple[Sequence[Envelope], int, int]]:
        """Of all logs, as far as each was read at random: a page, its log, and where it ends."""
        at = [0, 0, 0]
        while left := [number for number in range(3) if at[number] < len(self.logs[number])]:
            number = self.random.choice(left)
            end = min(len(self.logs[number]), at[number] + self.random.randrange(1, 5))
            yield self.logs[number][at[number] : end], number, end
            at[number] = end


@pytest.mark.parametrize("compacted", [False, True])
@pytest.mark.parametrize("room", [joined_before.BEFORE_BYTES, 3_000, 0])
async def test_in_the_end_a_reader_shows_what_was_committed(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, compacted: bool, room: int
) -> None:
    monkeypatch.setattr(joined_before, "BEFORE_BYTES", room)
    again = 0
    for seed in range(20):
        owner = Owner(seed, compacted=compacted)
        rows = Rows(store, GOOD)
        for turn in range(20):
            lost = False
            for envelopes, number, end in owner.pages():
                lost |= rows.take(page(*envelopes)).lost
                told = {each.sequence for each in owner.logs[number][:end] if each.kind is Kind.VOID}
                heard = {each for each in owner.refused if any(each < at for at in told)} if not compacted else set()
                assert not heard & set(shown(rows).values()), "it was told of that"
            if not lost:
                break
            again += 1
            assert turn < 19, "it is read again for ever"
        assert shown(rows) == owner.truth, seed
        rows.close()
    assert again == 0 or compacted or room <= 3_000


async def changed(store: Store, since: int) -> tuple[dict[str, bool], int]:
    """Keys that changed, with whether they are there, and the cursor behind them."""
    found = [each async for each in Changes(store.core, store.namespaces).since("photos", since, 100)]
    return {each.key: each.stored is not None for each in found}, found[-1].sequence if found else since


@pytest.fixture
def followed(store: Store, rows: Rows) -> Rows:
    """Rows that the store's clients are shown."""
    keys = Foreign(GOOD.store_id, KEYS, limits.SHARD_NUMBERS).keys
    gate = Gate(read_only=True)
    store.namespaces.joined["photos"] = Namespace("photos", SPACE, Policy(), keys, store.namespaces.hasher, 0, (), gate)
    store.reading.joined[SPACE] = rows.metastore
    return rows


async def test_what_a_log_tells_late_is_a_change_behind_what_was_shown(store: Store, followed: Rows) -> None:
    """As where the server was away: of a key that another log has told later news of there is nothing to show."""
    followed.take(page(written("a", 7), deleted("b", 9)))
    found, cursor = await changed(store, 0)
    assert found == {"a": True, "b": False}
    followed.take(page(written("a", 1), written("c", 2), deleted("d", 3), written("b", 4)))
    found, cursor = await changed(store, cursor)
    assert found == {"c": True, "d": False}
    assert await changed(store, cursor) == ({}, cursor)


async def test_what_shows_an_older_version_again_is_a_change(store: Store, followed: Rows) -> None:
    followed.take(page(written("a", 1), written("a", 5), written("b", 6)))
    _, cursor = await changed(store, 0)
    followed.take(page(void(5, 6, 7)))
    assert (await changed(store, cursor))[0] == {"a": True, "b": False}


async def test_a_cursor_from_before_a_restart_is_behind_nothing(store: Store, followed: Rows) -> None:
    """Whatever the clock says then: a follower is rather told twice than never."""
    followed.take(page(written("a", 1)))
    _, cursor = await changed(store, 0)
    for place in (cursor + 1, 0):  # a clock that goes on, and one that was put back
        again = Rows(store, GOOD)
        again._place = place
        store.reading.joined[SPACE] = again.metastore
        again.take(page(written("a", 1)))
        assert (await changed(store, cursor))[0] == {"a": True}
        again.close()


async def test_a_letter_that_cannot_be_opened_just_now_waits(store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our private key lies in our own metastore, whose disk may not be there: who follows goes on."""
    joined = Joined(store, cast("Network", None), cast("Authority", None), "photos", GOOD, 1, rows)
    (shard,) = joined.shards.values()

    async def reply(ask: Ask) -> SimpleNamespace:
        return SimpleNamespace(body=b"a letter")

    def gone(table: str, name: str) -> None:
        raise IoError("the metastore cannot be read")

    monkeypatch.setattr(shard._letters, "ask", reply)
    monkeypatch.setattr(store.rows, "get", gone)
    assert await shard.letter(GOOD) is GOOD


async def test_what_is_left_is_forgotten_though_who_leaves_it_goes_away(
    store: Store, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    joining = Joining(store, cast("Authority", None), cast("Network", None))
    joining._joined["photos"] = Joined(store, cast("Network", None), cast("Authority", None), "photos", GOOD, 1, rows)
    with trio.CancelScope() as scope:

        async def removed(table: str, name: str) -> None:
            scope.cancel()  # when its row is gone

        monkeypatch.setattr(store.rows, "remove", removed)
        await joining.leave("photos")
    assert SPACE not in store.sealer.foreign
    assert not Path(rows._path).exists()
