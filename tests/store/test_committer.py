"""The committer: many changes share one flush, each has its own outcome, and a failing metastore is told as what it is."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import pytest
import trio
import trio.testing

from tests.store.home import CHUNK, Home, content, delete, get, keys, name, put, small_shares
from zstor_local.errors import (
    AlreadyExists,
    Conflict,
    CorruptRecord,
    IoError,
    NoSpace,
    NotFound,
    OutcomeUnknown,
    ShuttingDown,
    Unavailable,
    ZstorError,
)
from zstor_local.metastore.base import CommitRefused, CommitUnknown, Transaction
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE, Kind
from zstor_local.model.storewide import VoidRecord
from zstor_local.shards import log_index
from zstor_local.shards.base import ShardError
from zstor_local.store import committer, publishing
from zstor_local.store.change import Decision
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.writes import WriteOptions


class Gate:
    """Holds the next commit of a home's metastore until it is opened; counts them all."""

    def __init__(self, home: Home) -> None:
        self.commits: list[Transaction] = []
        self._reached = threading.Event()
        self._open = threading.Event()
        self._held = False
        home.engines.before_commit = self._pass

    def hold(self) -> None:
        self._held = True

    def _pass(self, transaction: Transaction) -> None:
        self.commits.append(transaction)
        if self._held:
            self._held = False
            self._reached.set()
            assert self._open.wait(180)

    async def reached(self) -> None:
        """A commit has come to the gate."""
        await trio.to_thread.run_sync(self._reached.wait)

    def is_reached(self) -> bool:
        """The same, for the event loop itself."""
        return self._reached.wait(20)

    def open(self) -> None:
        self._open.set()


@dataclass
class Outcome:
    """How a change ended."""

    value: Stored | int | None = None
    error: ZstorError | None = None


Change = Callable[[Store], Awaitable[Stored | int]]


async def together(
    home: Home, store: Store, changes: Iterable[Change], *, while_waiting: Callable[[], None] = lambda: None
) -> list[Outcome]:
    """Run changes so that they all come to the committer while it is busy: they make one group, in this order."""
    gate = Gate(home)
    gate.hold()
    outcomes: list[Outcome] = []

    async def run(change: Change, outcome: Outcome) -> None:
        try:
            outcome.value = await change(store)
        except ZstorError as error:
            outcome.error = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, store, "first", b"keeps the committer busy")
        await gate.reached()
        try:
            for change in changes:
                outcomes.append(Outcome())
                nursery.start_soon(run, change, outcomes[-1])
                await trio.testing.wait_all_tasks_blocked()
            # Tasks of the store may have changes waiting too.
            assert len(store.committer._waiting) >= sum(outcome.error is None for outcome in outcomes)
            while_waiting()
        finally:
            gate.open()
    return outcomes


def writing(key: str, value: bytes, options: WriteOptions | None = None) -> Change:
    return lambda store: put(store, key, value, options)


def deleting(key: str) -> Change:
    return lambda store: delete(store, key)


def codes(outcomes: Iterable[Outcome]) -> list[str]:
    return ["ok" if outcome.error is None else outcome.error.type for outcome in outcomes]


@asynccontextmanager
async def opened(home: Home) -> AsyncIterator[Store]:
    """A store with the default namespace made already."""
    async with home.open() as store:
        await put(store, "before", b"")
        yield store


# --- Groups ---


async def test_what_waits_together_shares_one_flush_and_one_transaction(home: Home) -> None:
    async with opened(home) as store:
        home.files.calls.clear()
        outcomes = await together(home, store, [writing(str(number), content(number, 500)) for number in range(50)])
        assert codes(outcomes) == ["ok"] * 50
        syncs = home.files.calls["syncfs"] or home.files.calls["fdatasync"] // 3
        assert syncs == 2  # the one that kept it busy, and the group
        for number in range(50):
            assert await get(store, str(number)) == content(number, 500)


async def test_a_lone_change_is_not_kept_for_others(home: Home) -> None:
    """The event loop has no turn before its commit begins: here it has none at all until then."""
    async with opened(home) as store:
        await put(store, "alone", b"")
        gate = Gate(home)
        gate.hold()
        later = store.committer.commit(STORE_WIDE, "", lambda current: Decision())
        begun = gate.is_reached()
        gate.open()
        await later
        assert begun


async def test_a_group_is_one_transaction_in_the_metastore(home: Home) -> None:
    async with opened(home) as store:
        gate = Gate(home)
        gate.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put, store, "first", b"")
            await gate.reached()
            for number in range(20):
                nursery.start_soon(put, store, str(number), b"")
            await trio.testing.wait_all_tasks_blocked()
            gate.open()
        assert [len(transaction.rows) for transaction in gate.commits] == [1, 20]


async def test_a_group_takes_no_more_than_its_limit(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.limits.GROUP_CHANGES", 8)
    async with opened(home) as store:
        assert codes(await together(home, store, [writing(str(number), b"") for number in range(20)])) == ["ok"] * 20
        assert len(await keys(store)) == 22


async def test_a_group_takes_no_more_memory_than_its_limit(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zstor_local.limits.GROUP_BYTES", 100_000)
    published: list[int] = []
    publish = publishing.Publisher.publish

    def counting(publisher: publishing.Publisher, items: list[publishing.Item]) -> dict[int, ShardError]:
        published.append(sum(bool(item.decision.references or item.decision.references_gone) for item in items))
        return publish(publisher, items)

    monkeypatch.setattr(publishing.Publisher, "publish", counting)
    options = WriteOptions(references=[f"reference {number}" for number in range(150)])
    async with opened(home) as store:
        published.clear()
        writes = [writing(str(number), b"", options) for number in range(5)]
        assert codes(await together(home, store, [*writes, writing("4", b"the last")])) == ["ok"] * 6
        assert [count for count in published if count] == [2, 2, 2]
        assert await get(store, "4") == b"the last"
        published.clear()
        outcomes = await together(home, store, [deleting(str(number)) for number in (0, 1, 2, 3, 4, 4)])
        assert codes(outcomes) == ["ok"] * 5 + ["not_found"]
        assert [count for count in published if count] == [2, 2]  # what goes weighs as much
        assert await keys(store) == ["before", "first"]


async def test_a_reply_comes_only_after_its_transaction(home: Home) -> None:
    async with opened(home) as store:
        gate = Gate(home)
        gate.hold()
        replied = False

        async def write() -> None:
            nonlocal replied
            await put(store, "a", b"value")
            replied = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await gate.reached()
            await trio.testing.wait_all_tasks_blocked()
            assert not replied
            with pytest.raises(NotFound):
                await get(store, "a")
            gate.open()
        assert replied


async def test_a_refused_change_does_not_harm_its_group(home: Home) -> None:
    async with opened(home) as store:
        changes = [
            writing("a", b"1"),
            writing("before", b"2", WriteOptions(exclusive=True)),
            deleting("never there"),
            writing("b", b"3"),
        ]
        assert codes(await together(home, store, changes)) == ["ok", "already_exists", "not_found", "ok"]
        assert await keys(store) == ["a", "b", "before", "first"]
        assert await get(store, "before") == b""


async def test_changes_of_one_key_take_effect_in_order(home: Home) -> None:
    async with opened(home) as store:
        changes = [
            writing("a", b"1"),
            writing("a", b"2", WriteOptions(exclusive=True)),
            writing("a", b"3"),
            deleting("a"),
            deleting("a"),
            writing("a", b"4", WriteOptions(exclusive=True)),
            writing("a", b"5"),
        ]
        outcomes = await together(home, store, changes)
        assert codes(outcomes) == ["ok", "already_exists", "ok", "ok", "not_found", "ok", "ok"]
        assert await get(store, "a") == b"5"
        assert store.committer.state.objects == 3
        while await store.freeing.free_some():
            pass
        assert small_shares(store) == 3 * 3
    async with home.open() as store:
        assert await get(store, "a") == b"5"


async def test_if_version_sees_the_change_before_it_in_the_same_group(home: Home) -> None:
    async with opened(home) as store:
        before = await put(store, "a", b"0")
        changes = [
            writing("a", b"1", WriteOptions(if_version=before.version)),
            writing("a", b"2", WriteOptions(if_version=before.version)),
        ]
        outcomes = await together(home, store, changes)
        assert codes(outcomes) == ["ok", "conflict"]
        assert isinstance(outcomes[1].error, Conflict)
        assert isinstance(outcomes[0].value, Stored)
        assert outcomes[1].error.data["current"] == outcomes[0].value.version.hex()


async def test_what_builds_on_a_change_that_failed_fails_with_it(home: Home) -> None:
    """2 of 3 over six shards with a quorum of three: while one log fails, versions that have a share there do not come through."""
    home.shards, home.policy, home.write_quorum = 6, Policy(2, 3, chunk_size=CHUNK), 3
    async with opened(home) as store:
        changes = [writing("a", b"%d" % number) for number in range(24)]
        outcomes = await together(
            home, store, changes, while_waiting=lambda: home.files.fail("pwritev", lambda path: "/disks/0/log" in path, 5)
        )
        found = codes(outcomes)
        good = found.index("not_enough_shards")
        assert found == ["ok"] * good + ["not_enough_shards"] + ["conflict"] * (23 - good)
        kept = b"%d" % (good - 1)
        if good:
            assert await get(store, "a") == kept
    async with home.open() as store:
        if good:
            assert await get(store, "a") == kept
        assert store.health == "ok"


async def test_nobody_is_told_that_a_namespace_is_full_with_what_never_came_to_be(home: Home) -> None:
    async with opened(home) as store:
        await store.namespaces.change("default", lambda record: replace(record, quota=1_000))
        changes = [writing("a", content(1, 800)), writing("b", content(2, 300))]
        refused = CommitRefused("another process holds the metastore", no_space=False)
        outcomes = await together(home, store, changes, while_waiting=lambda: home.fail_commits(refused))
        assert codes(outcomes) == ["io_error", "conflict"]
        home.heal_commits()
        assert codes(await together(home, store, changes)) == ["ok", "no_space"]


async def test_sequences_rise_and_are_never_used_twice(home: Home) -> None:
    seen: list[int] = []
    for life in range(3):
        async with opened(home) as store:
            await together(home, store, [writing(f"{life} {number}", b"") for number in range(10)])
            seen += [(await put(store, "a", b"")).envelope.sequence]
            namespace = store.namespaces.find("default")
            assert namespace is not None
            rows = store.metastore.scan(namespace.id, "", None, 1_000)
            assert len({row.envelope.sequence for row in rows}) == len(rows)
            assert max(row.envelope.sequence for row in rows) <= store.metastore.state().reserved
    assert seen == sorted(set(seen))


async def test_each_life_has_a_higher_writer_number_and_voids_what_was_reserved(home: Home) -> None:
    writers = []
    reserved = 0
    for _ in range(3):
        async with opened(home) as store:
            writers.append(store.committer.state.writer)
            assert store.committer.state.sequence > reserved
            voids = [
                VoidRecord.decode(store.sealer.open(found.entry.envelope))
                for found in store.pool.opened()[0].scan()
                if found.entry.envelope.kind is Kind.VOID
            ]
            assert any(void.last == reserved for void in voids) or not reserved
            reserved = store.committer.state.reserved
    assert writers == sorted(set(writers))


async def test_more_sequences_are_reserved_before_they_run_out(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "RESERVE", 20)
    monkeypatch.setattr(publishing, "RESERVE_LOW", 10)
    async with opened(home) as store:
        for _ in range(60):
            stored = await put(store, "a", b"")
            assert stored.envelope.sequence <= store.metastore.state().reserved


# --- A metastore that fails ---


async def test_when_the_metastore_fails_nobody_knows_and_reads_go_on(home: Home) -> None:
    async with opened(home) as store:
        old = await put(store, "a", content(1, 10_000))
        outcomes = await together(
            home,
            store,
            [writing("a", b"new"), writing("b", b"new")],
            while_waiting=lambda: home.fail_commits(CommitUnknown("the metastore failed: SQLITE_IOERR_FSYNC")),
        )
        assert codes(outcomes) == ["outcome_unknown"] * 2
        for outcome in outcomes:
            assert isinstance(outcome.error, OutcomeUnknown)
            assert len(str(outcome.error.data["version"])) == 32
        assert store.health == "failed"
        home.heal_commits()  # the disk is well again: that must not count
        for attempt in (put(store, "c", b""), put(store, "c", content(1, 700_000)), delete(store, "a")):
            with pytest.raises(Unavailable, match="SQLITE_IOERR_FSYNC") as refused:
                await attempt
            assert "disk" in (refused.value.hint or "")  # that became read-only is still so after a restart
        assert await get(store, "a") == content(1, 10_000)
        assert (await get_version(store, "a")) == old.version
    async with home.open() as store:
        assert store.health == "ok"
        assert await get(store, "a") == content(1, 10_000)
        await put(store, "a", b"new")


async def get_version(store: Store, key: str) -> bytes:
    return store.objects.find(name(key)).version


async def test_a_large_write_whose_commit_is_in_doubt_keeps_its_shares_for_the_next_start(home: Home) -> None:
    async with opened(home) as store:

        def fail_the_second(transaction: Transaction) -> None:
            if transaction.rows:
                super(type(store.metastore), store.metastore).commit(transaction)  # type: ignore[misc]
                raise CommitUnknown("it was written, and then the answer was lost")

        home.engines.before_commit = fail_the_second
        with pytest.raises(OutcomeUnknown) as caught:
            await put(store, "a", content(1, 700_000))
        assert len(home.share_files()) == 3
    home.heal_commits()
    async with home.open() as store:
        assert (await get_version(store, "a")).hex() == caught.value.data["version"]
        assert await get(store, "a") == content(1, 700_000)


async def test_a_large_write_that_was_in_doubt_and_did_not_happen_is_freed_by_the_next_start(home: Home) -> None:
    async with opened(home) as store:

        def fail_the_second(transaction: Transaction) -> None:
            if transaction.rows:
                raise CommitUnknown("nothing was written")

        home.engines.before_commit = fail_the_second
        with pytest.raises(OutcomeUnknown):
            await put(store, "a", content(1, 700_000))
        assert len(home.share_files()) == 3
    home.heal_commits()
    async with home.open() as store:
        with pytest.raises(NotFound):
            await get(store, "a")
        while await store.freeing.free_some():
            pass
        assert store.metastore.intents() == []
    assert home.share_files() == []


@pytest.mark.parametrize(("no_space", "wanted"), [(True, NoSpace), (False, IoError)])
async def test_a_refused_transaction_is_voided_and_later_ones_work(home: Home, no_space: bool, wanted: type[ZstorError]) -> None:
    async with opened(home) as store:
        old = await put(store, "a", b"old")
        home.fail_commits(CommitRefused("no", no_space=no_space))
        with pytest.raises(wanted):
            await put(store, "a", b"refused")
        home.heal_commits()
        assert await get(store, "a") == b"old"
        voided = set()
        for found in store.pool.opened()[0].scan():
            if found.entry.envelope.kind is Kind.VOID:
                void = VoidRecord.decode(store.sealer.open(found.entry.envelope))
                voided |= set(range(void.first, min(void.last, old.envelope.sequence + 100) + 1))
        assert old.envelope.sequence + 1 in voided
        assert old.envelope.sequence not in voided
        assert store.health == "ok"
        await put(store, "a", b"new")
    async with home.open() as store:
        assert await get(store, "a") == b"new"


async def test_a_fault_of_ours_in_a_commit_stops_writes_and_not_reads(home: Home) -> None:
    async with opened(home) as store:
        await put(store, "a", b"old")
        home.fail_commits(RuntimeError("a bug"))
        with pytest.raises(OutcomeUnknown):
            await put(store, "a", b"new")
        home.heal_commits()
        with pytest.raises(Unavailable, match="RuntimeError"):
            await put(store, "b", b"new")
        assert await get(store, "a") == b"old"
        assert store.health == "failed"


class BrokenOff(BaseException):
    """Not an error that anybody handles, as one of the interpreter's own."""


async def test_a_commit_that_breaks_off_without_an_error_ends_the_store_and_leaves_nobody_waiting(home: Home) -> None:
    async def write() -> None:
        async with opened(home) as store:
            home.fail_commits(BrokenOff())
            with pytest.raises(OutcomeUnknown):
                await put(store, "a", b"new")
            with pytest.raises(ShuttingDown):
                store.committer.commit(STORE_WIDE, "", lambda current: Decision())
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as raised:
        await write()
    assert raised.value.subgroup(BrokenOff) is not None


async def test_damage_in_one_keys_row_does_not_harm_the_group(home: Home) -> None:
    async with opened(home) as store:
        await put(store, "hurt", b"old")
        store.metastore._writer.execute("update record set kind=99 where name=x'68757274'")  # type: ignore[attr-defined]
        outcomes = await together(home, store, [writing("a", b"1"), deleting("hurt"), writing("b", b"2")])
        assert codes(outcomes) == ["ok", "corrupt_record", "ok"]
        assert isinstance(outcomes[1].error, CorruptRecord)
        assert store.health == "ok"


# --- Its house ---


async def test_the_metastore_is_checkpointed_now_and_then(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "CHECKPOINT_EVERY", 5)
    async with opened(home) as store:
        count = 0
        original = store.metastore.checkpoint

        def checkpoint() -> None:
            nonlocal count
            count += 1
            original()

        monkeypatch.setattr(store.metastore, "checkpoint", checkpoint)
        for _ in range(20):
            await put(store, "a", b"")
        assert count >= 3


async def test_a_failed_checkpoint_stops_writes_and_not_reads(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer, "CHECKPOINT_EVERY", 1)
    async with opened(home) as store:
        well, checkpoint = True, store.metastore.checkpoint

        def fail() -> None:
            if not well:
                raise CommitUnknown("the metastore failed in a checkpoint")
            checkpoint()

        monkeypatch.setattr(store.metastore, "checkpoint", fail)
        await put(store, "a", b"old")
        await put(store, "a", b"acknowledged before")
        well = False
        with suppress(Unavailable):  # the checkpoint that fails may be that of the commit before
            await put(store, "c", b"")
        while store.committer.failure is None:
            await trio.lowlevel.checkpoint()
        with pytest.raises(Unavailable, match="checkpoint"):
            await put(store, "b", b"")
        assert await get(store, "a") == b"acknowledged before"


async def test_the_index_is_written_now_and_then_and_an_error_of_it_stops_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_index, "FLUSH_AT", 3)
    async with opened(home) as store:
        for number in range(10):
            await put(store, str(number), content(number, 100))
        assert store.index.waiting < 10
        store.index._db.execute("drop table progress")
        for number in range(10, 20):
            await put(store, str(number), content(number, 100))
        assert await get(store, "15") == content(15, 100)
        assert store.health == "ok"
    async with home.open() as store:
        for number in range(20):
            assert await get(store, str(number)) == content(number, 100)


async def test_what_waits_when_the_store_closes_is_still_committed(home: Home) -> None:
    async with trio.open_nursery() as nursery, opened(home) as store:
        gate = Gate(home)
        gate.hold()
        nursery.start_soon(put, store, "first", b"1")
        await gate.reached()
        nursery.start_soon(put, store, "second", b"2")
        await trio.testing.wait_all_tasks_blocked()
        store.committer.stop()
        with pytest.raises(ShuttingDown):
            await put(store, "third", b"3")
        gate.open()
    async with home.open() as store:
        assert await keys(store) == ["before", "first", "second"]


async def test_a_cancelled_caller_gets_the_true_result(home: Home) -> None:
    async with opened(home) as store:
        gate = Gate(home)
        gate.hold()
        results = []

        async def write(scope: trio.CancelScope) -> None:
            with scope:
                results.append(await put(store, "a", b"value"))

        scope = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, scope)
            await gate.reached()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            gate.open()
        assert len(results) == 1
        assert await get(store, "a") == b"value"


async def test_bookkeeping_alone_writes_to_no_log(home: Home) -> None:
    async with opened(home) as store:
        before = [len(list(shard.scan())) for shard in store.pool.opened()]
        committed = await store.committer.commit(STORE_WIDE, "", lambda current: Decision())
        assert committed.envelope is None
        assert [len(list(shard.scan())) for shard in store.pool.opened()] == before


async def test_a_refusal_leaves_no_trace(home: Home) -> None:
    async with opened(home) as store:
        before = store.metastore.state()
        with pytest.raises(AlreadyExists):
            await put(store, "before", b"", WriteOptions(exclusive=True))
        assert store.metastore.state() == before
