"""What reached some logs and was never committed: told as such there before anything else, and no reason to stop for good."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.store.home import CHUNK, Home, content, delete, freed, get, keys, put
from tests.store.test_renaming import rename
from zstor_local import limits
from zstor_local.errors import Conflict, NoSpace, NotEnoughShards, NotFound, OutcomeUnknown
from zstor_local.model.policy import Policy
from zstor_local.model.record import Envelope, Kind
from zstor_local.model.storewide import VoidRecord
from zstor_local.shards.base import Entry, Shard, ShardError
from zstor_local.store import publishing
from zstor_local.store.caller import Nobody
from zstor_local.store.change import Decision
from zstor_local.store.coding import Coded
from zstor_local.store.edits import Edits
from zstor_local.store.pace import unpaced
from zstor_local.store.sources import BytesSource
from zstor_local.store.store import Store

Append = Callable[[Sequence[Entry], int], None]


@pytest.fixture(autouse=True)
def two_of_four(home: Home) -> None:
    """2 of 4: a write needs three shards, a read two."""
    home.policy = Policy(2, 4, chunk_size=CHUNK)


def fail_appends(home: Home, numbers: tuple[int, ...], code: int, operation: str = "pwritev") -> None:
    for number in numbers:
        home.files.fail(operation, lambda path, number=number: f"/shards/{number}/log/" in path, code, times=None)  # type: ignore[misc]


def value(store: Store, name: str) -> bytes | None:
    row = store.rows.get("table", name)
    return None if row is None else row.value


async def rebuilt(home: Home) -> None:
    """The metastore is lost and made anew from the shards."""
    for file in Path(home.store).glob("metastore.sqlite*"):
        file.unlink()
    home.rebuild()


async def test_after_an_outage_in_the_middle_of_a_commit_writes_go_on_when_the_shards_are_back(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        fail_appends(home, (0, 1), errno.EIO)
        with pytest.raises(OutcomeUnknown):
            await put(store, "a", content(2, 10_000))
        home.take_away(0)
        home.take_away(1)
        home.files.heal()
        await store.presence.look()
        assert {store.pool.states()[shard] for shard in "01"} == {"missing"}
        assert await get(store, "a") == content(1, 10_000)
        with pytest.raises(NotEnoughShards):
            await put(store, "a", content(3, 10_000))
        assert await delete(store, "a") == 2
        home.bring_back(0)
        await home.return_to(store, 1)
        assert store.health == "ok"
        with pytest.raises(NotFound):
            await get(store, "a")
        await put(store, "b", content(4, 10_000))
    await rebuilt(home)
    async with home.open() as store:
        assert await get(store, "b") == content(4, 10_000)
        with pytest.raises(NotFound):
            await get(store, "a")


async def test_whether_all_were_told_is_asked_while_the_committer_finds_others_that_were_not(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home.open() as store:
        untold = store.committer._publisher._untold
        untold[98] = {}

        def entry(number: int) -> None:
            untold[number + 1] = {}  # as the committer's thread does just then

        monkeypatch.setattr(store.pool, "entry", entry)
        assert store.committer.all_told


async def test_a_full_disk_under_all_logs_is_told_as_such_and_writes_go_on_when_there_is_room(home: Home) -> None:
    async with home.open() as store:
        before = await store.rows.put("table", "name", b"before")
        fill_logs(home, store)
        for _ in range(2):
            with pytest.raises(NoSpace):
                await store.rows.put("table", "name", b"refused")
        assert store.rows.get("table", "name") == before
        home.files.heal()
        await store.rows.put("table", "name", b"after")
        assert store.health == "ok"


async def test_a_change_of_a_record_alone_is_in_doubt_where_one_log_may_have_it_and_none_heard_that_it_is_void(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        for number in (1, 2, 3):
            home.take_away(number)
        fail_appends(home, (0,), errno.EIO, "fdatasync")
        with pytest.raises(OutcomeUnknown):
            await rename(store, "a", "b")
        assert await keys(store) == ["a"]
    for number in (1, 2, 3):
        home.bring_back(number)
    home.files.heal()
    await rebuilt(home)  # before a start could tell the shard
    async with home.open() as store:
        assert await keys(store) == ["b"]


async def test_a_full_log_has_room_for_the_void_of_what_it_took(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a rebuild would take what was refused."""
    monkeypatch.setattr(limits, "SEGMENT_BYTES", 1 << 16)
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        fail_appends(home, (0, 1, 2, 3), errno.ENOSPC, "allocate")
        for shard in store.pool.opened():
            if shard.number:
                shard.log.rest()  # type: ignore[attr-defined]
        for _ in range(10_000):
            with pytest.raises(NoSpace) as caught:
                await rename(store, "a", "b")
            if "0" in str(caught.value.data["shards"]):  # that has taken what fits into its segment
                break
    home.files.heal()
    await rebuilt(home)
    async with home.open() as store:
        assert await keys(store) == ["a"]


def fill_logs(home: Home, store: Store) -> None:
    """The next entry needs a segment of its own, for which there is no room."""
    for shard in store.pool.opened():
        shard.log.rest()  # type: ignore[attr-defined]
    fail_appends(home, (0, 1, 2, 3), errno.ENOSPC, "allocate")


async def test_a_log_with_room_again_is_told_first_what_never_came_to_be(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await store.rows.put("table", "name", b"old")
        run_full(store, monkeypatch)
        with pytest.raises(OutcomeUnknown):
            await store.rows.put("table", "name", b"refused")
        refused = store.committer.last_given - 1  # a void was tried after it
        assert value(store, "name") == b"old"
        new = await store.rows.put("table", "other", b"new")
        there = [scanned.entry.envelope for scanned in opened(store, 2).scan()]
        sequences = [envelope.sequence for envelope in there]
        between = there[sequences.index(refused) + 1 : sequences.index(new.sequence)]
        voids = [VoidRecord.decode(store.sealer.open(envelope)) for envelope in between if envelope.kind is Kind.VOID]
        assert any(void.first <= refused <= void.last for void in voids)


async def test_a_log_that_is_no_more_has_to_be_told_of_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await store.rows.put("table", "name", b"old")
        run_full(store, monkeypatch)
        with pytest.raises(OutcomeUnknown):
            await store.rows.put("table", "name", b"refused")
        home.take_away(2)
        await store.presence.look()
        assert not store.committer.all_told
        await store.membership.remove("2", Nobody(), force=True)
        assert store.committer.all_told


@pytest.mark.parametrize("starts", [0, 2], ids=["rebuilt at once", "after two starts"])
@pytest.mark.parametrize("lost", [False, True], ids=["index kept", "index lost"])
async def test_what_never_came_to_be_stays_so_where_the_disk_could_not_read_it_for_a_while(
    home: Home, monkeypatch: pytest.MonkeyPatch, lost: bool, starts: int
) -> None:
    """Nobody could tell that log of it, and its entries from then on do not say that all before them is settled."""
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        run_full(store, monkeypatch)
        monkeypatch.setattr(opened(store, 3), "append", failing(opened(store, 3).append, [False]))
        with pytest.raises(NoSpace):
            await rename(store, "a", "refused")
        path, offset = end_of_log(store, 2)
        monkeypatch.setattr(opened(store, 2), "append", failing(opened(store, 2).append, [False] * 9))
        await put(store, "b", content(2, 10_000))
    home.files.ruin(path, offset)
    for number in range(3 + starts):
        if number == 3:
            home.files.heal()
        if lost:
            for file in Path(home.store).glob("index.sqlite*"):
                file.unlink()
        async with home.open() as store:
            await store.mending.mend()
            await put(store, f"c{number}", content(3, 10_000))
            await freed(store)
            while await store.compaction.compact(unpaced, least=0.0001):
                pass
    home.files.heal()
    await rebuilt(home)
    async with home.open() as store:
        assert await keys(store) == ["a", "b", *(f"c{number}" for number in range(3 + starts))]
        assert await get(store, "a") == content(1, 10_000)


async def test_a_disk_that_cannot_read_a_part_of_a_log_is_told(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        path, offset = end_of_log(store, 2)
        told = store.warnings()
    home.files.ruin(path, offset)
    for _ in range(2):
        async with home.open() as store:
            (line,) = {*store.warnings()} - {*told}
            assert "shard 2 cannot read a part of its log" in line
            await put(store, "b", content(2, 10_000))
    home.files.heal()
    async with home.open() as store:
        assert store.warnings() == told


def end_of_log(store: Store, number: int) -> tuple[str, int]:
    """The segment that a shard's log ends in, and where its last entry begins."""
    log = opened(store, number).log  # type: ignore[attr-defined]
    segment = log.segments()[-1]
    return log.path(segment), log.read_whole(segment)[-1].offset


async def test_voids_are_durable_before_anything_says_that_what_they_void_is_settled(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        run_full(store, monkeypatch)
        with pytest.raises(OutcomeUnknown):
            await store.rows.put("table", "name", b"refused")
        shard = opened(store, 2)
        monkeypatch.setattr(shard, "append", failing(shard.append, [False]))
        await put(store, "a", content(2, 10_000))  # without shard 2
        before = shard.newest_committed()
        steps: list[tuple[str, int]] = []
        append, flush = shard.append, shard.flush

        def noted_append(entries: Sequence[Entry], committed: int) -> None:
            kinds = {entry.envelope.kind for entry in entries}
            steps.append(("voids" if kinds == {Kind.VOID} else "others" if Kind.VOID not in kinds else "both", committed))
            append(entries, committed)

        def noted_flush() -> None:
            steps.append(("flush", 0))
            flush()

        monkeypatch.setattr(shard, "append", noted_append)
        monkeypatch.setattr(shard, "flush", noted_flush)
        await store.rows.put("table", "other", b"new")
        assert [step for step, _ in steps[:3]] == ["voids", "flush", "others"]
        assert steps[0][1] <= before < steps[2][1]


def run_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards 0 and 1 take nothing of the next group. Shard 2 takes it and then fails, and has no room for the void either."""
    monkeypatch.setattr(opened(store, 0), "append", failing(opened(store, 0).append, [False]))
    monkeypatch.setattr(opened(store, 1), "append", failing(opened(store, 1).append, [False]))
    monkeypatch.setattr(opened(store, 2), "append", failing(opened(store, 2).append, [True, False]))


def opened(store: Store, number: int) -> Shard:
    shard = store.pool.get(number)
    assert shard is not None
    return shard


def failing(append: Append, taken: list[bool]) -> Append:
    """One that fails so many times, having taken the entries all the same or not."""

    def run(entries: Sequence[Entry], committed: int) -> None:
        if not taken:
            return append(entries, committed)
        if took := taken.pop(0):
            append(entries, committed)
        raise ShardError("full", "no room", untouched=not took)

    return run


async def test_the_shares_of_a_large_write_that_came_to_nothing_are_freed_also_where_that_is_in_doubt(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its intent would keep a drain of its shards waiting for it until the restart."""
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        with monkeypatch.context() as patch:
            for number in (1, 2):
                patch.setattr(opened(store, number), "append", failing(opened(store, number).append, [True, False]))
            with pytest.raises(OutcomeUnknown):
                await put(store, "a", content(2, 700_000))
        assert store.metastore.intents() == []
        await freed(store)
        assert home.share_files() == []
        assert await get(store, "a") == content(1, 10_000)
    async with home.open() as store:
        assert await get(store, "a") == content(1, 10_000)


async def test_what_goes_wrong_after_the_commit_of_a_large_write_frees_nothing(home: Home) -> None:
    async with home.open() as store:
        namespace = await store.namespaces.find_or_create("default")

        async def publish(coded: Coded) -> None:
            def decide(_: Envelope | None) -> Decision:
                edits = Edits(store.core, namespace)
                return store.writer.put(namespace, edits, coded, coded.record("a", namespace.policy, 1, 1), 1)

            await store.committer.commit(namespace.id, "a", decide)
            raise Conflict("something that comes afterwards")

        with pytest.raises(Conflict):
            await store.writer.store(namespace, BytesSource(content(1, 700_000)), publish, Nobody())
        await freed(store)
        assert await get(store, "a") == content(1, 700_000)


async def test_changes_that_fail_again_and_again_use_no_sequence_that_was_not_reserved(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "RESERVE", 200)
    monkeypatch.setattr(publishing, "RESERVE_LOW", 100)
    async with home.open() as store:
        await store.rows.put("table", "name", b"before")
        home.take_away(2)
        home.take_away(3)
        for number in range(300):
            with pytest.raises(NotEnoughShards):
                await store.rows.put("table", "name", f"{number}".encode())
            assert store.committer.last_given <= store.metastore.state().reserved
    home.bring_back(2)
    home.bring_back(3)
    async with home.open() as store:
        for number in range(300):
            await store.rows.put("table", f"{number}", b"acknowledged")
    await rebuilt(home)
    async with home.open() as store:
        assert value(store, "name") == b"before"
        for number in range(300):
            assert value(store, f"{number}") == b"acknowledged"
