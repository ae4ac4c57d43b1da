"""A scrub finds everything that is bad, has it mended, and goes on where it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.store.home import SMALL_AND_LARGE, Home, content, delete, freed, get, name, put, share_place, strays
from zstor_local.config import ScrubConfig
from zstor_local.errors import Unavailable
from zstor_local.metastore.base import Owed
from zstor_local.model.ids import NamespaceId, ShareId, Version
from zstor_local.model.policy import Policy
from zstor_local.model.record import STORE_WIDE
from zstor_local.shards.base import Entry, ScannedEntry, Shard, ShardError
from zstor_local.store import plausible
from zstor_local.store.caller import Caller, Nobody
from zstor_local.store.checking import Checked
from zstor_local.store.copies import CopyCheck
from zstor_local.store.health import Health
from zstor_local.store.namespaces import Namespace
from zstor_local.store.pace import Pace, unpaced
from zstor_local.store.scrub import DAY, Scrub
from zstor_local.store.scrubrow import Found, ScrubRow
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored


async def scrubbed(store: Store) -> Found:
    """A whole pass, started by hand, and what it found."""
    await store.scrub.start()
    while store.scrub.status().state != "idle":
        await store.scrub.news().wait()
    return store.scrub.status().found


async def optimal(store: Store, key: str) -> bool:
    return (await store.shares_health.check(store.objects.find(name(key)), Nobody())).status == "optimal"


async def test_a_sound_store_is_gone_through_and_nothing_found(home: Home) -> None:
    async with home.open() as store:
        for number, size in enumerate((0, 1, *SMALL_AND_LARGE)):
            await put(store, str(number), content(number, size))
        await put(store, "elsewhere", b"x", namespace="another")
        await delete(store, "0")
        await freed(store)
        found = await scrubbed(store)
        assert found == Found(objects=4, bytes=found.bytes)
        assert found.bytes > 3 * 350_000
        status = store.scrub.status()
        assert (status.state, status.percent, status.overdue) == ("idle", 100, False)
        assert status.last_ended is not None
        assert store.metastore.debts_count() == store.mending.waiting == 0


async def test_asking_how_far_it_is_does_not_go_over_all_namespaces(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked after each object where somebody waits for its end."""
    async with home.open() as store:
        for number in range(3):
            await put(store, "a", b"x", namespace=f"n{number}")
        await store.scrub.start()
        first = store.scrub.status()
        went, all_of_them = 0, store.namespaces.all

        def counted() -> list[Namespace]:
            nonlocal went
            went += 1
            return all_of_them()

        monkeypatch.setattr(store.namespaces, "all", counted)
        assert [store.scrub.status() for _ in range(10)] == [first] * 10
        assert (first.state, went) == ("running", 0)


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
async def test_a_flipped_and_a_lost_share_are_found_and_made_anew(home: Home, size: int) -> None:
    async with home.open() as store:
        for key in ("a", "b", "c"):
            await put(store, key, content(1, size))
        share_place(store, store.objects.find(name("b")), 1).flip(60)
        place = share_place(store, store.objects.find(name("c")), 2)
        place.overwrite(bytes(place.length))
        found = await scrubbed(store)
        assert (found.objects, found.bad_shares, found.unreadable) == (3, 2, 0)
        await store.mending.mend()
        for key in ("a", "b", "c"):
            assert await optimal(store, key)
            assert await get(store, key) == content(1, size)
        assert (await scrubbed(store)).bad_shares == 0


async def test_what_cannot_be_mended_is_counted_and_told(home: Home, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "zstor.store")
    async with home.open() as store:
        stored = await put(store, "a", content(1, 10_000))
        for index in (0, 1):
            share_place(store, stored, index).flip(20)
        found = await scrubbed(store)
        assert (found.bad_shares, found.unreadable, found.damage) == (2, 1, True)
    assert caplog.messages[0].endswith("has bad shares: 0 is corrupt, 1 is corrupt")
    assert caplog.messages[-1].startswith("a scrub came to its end: 1 object looked at; 2 bad shares; 1 object unreadable; ")


async def test_an_object_with_too_few_whole_shares_is_no_damage_as_long_as_each_chunk_has_enough_blocks(home: Home) -> None:
    async with home.open() as store:
        stored = await put(store, "a", content(1, 700_000))  # three chunks
        for index in (0, 2):
            place = share_place(store, stored, index)
            place.flip(100 + index * place.length // 3)
        found = await scrubbed(store)
        assert (found.bad_shares, found.unreadable, found.damage) == (2, 0, False)
        await store.mending.mend()
        assert await optimal(store, "a")


async def test_records_that_a_log_lost_are_given_back(home: Home) -> None:
    """With its log gone a shard would know nothing after a rebuild: neither that the object is there nor that another was deleted."""
    async with home.open() as store:
        await put(store, "kept", content(1, 700_000))
        await put(store, "deleted", content(2, 700_000))
    for segment in (Path(home.store) / "shards/0/log").glob("*.log"):
        segment.write_bytes(segment.read_bytes()[:64])  # the header alone
    for file in Path(home.store).glob("index.sqlite*"):
        file.unlink()
    async with home.open() as store:
        await delete(store, "deleted")
        found = await scrubbed(store)
        assert found.lacking_records >= 4  # the store's, the shards', the namespace's, the object's
        assert (found.unknown_keys, found.unreadable) == (0, 0)
        shard = store.pool.get(0)
        assert shard is not None
        heard = {entry.entry.envelope for entry in shard.scan()}
        assert store.objects.find(name("kept")).envelope in heard
        assert (await scrubbed(store)).lacking_records == 0


async def test_namespaces_are_asked_for_in_the_event_loop_alone(home: Home) -> None:
    """What a thread remembers of one that was made just now might have a gate of its own, which its deletion does not close."""
    async with home.open() as store:
        await put(store, "a", b"a")
        asked_by = set()

        def spaces() -> list[NamespaceId]:
            asked_by.add(threading.current_thread())
            return store.namespaces.ids()

        shard = store.pool.get(0)
        assert shard is not None
        assert (await CopyCheck(store.core, spaces).compare(shard, unpaced)).unknown == 0
        assert asked_by == {threading.current_thread()}


@pytest.mark.parametrize("told", [True, False])
async def test_what_never_came_to_be_stands_for_no_newer_record(home: Home, monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    """A write failed behind the newest record, which this log has lost. That it failed the log may have yet to hear."""
    async with home.open() as store:
        newest = (await put(store, "a", content(1, 10_000))).envelope
        shard = store.pool.get(store.objects.find(name("a")).record.placement[0])
        assert shard is not None
        failed = replace(newest, sequence=newest.sequence + 1)
        void = store.committer._publisher._sealed_void(STORE_WIDE, failed.sequence, failed.sequence)
        scan = shard.scan

        def without_the_newest() -> Iterator[ScannedEntry]:
            yield from (scanned for scanned in scan() if scanned.entry.envelope != newest)
            yield from (ScannedEntry(Entry(each), 0) for each in ([failed, void] if told else [failed]))

        with monkeypatch.context() as patch:
            patch.setattr(shard, "scan", without_the_newest)
            assert (await scrubbed(store)).lacking_records == 1
        assert [scanned.entry.envelope for scanned in shard.scan()].count(newest) == 2


async def test_what_lies_on_a_bad_sector_of_a_log_is_given_and_made_anew(home: Home) -> None:
    async with home.open() as store:
        for key in range(20):
            await put(store, f"{key}", content(key, 4_000))
        lost = store.objects.find(name("10"))
        place = share_place(store, lost, 1)
    home.files.ruin(str(place.path), place.offset)
    async with home.open() as store:
        found = await scrubbed(store)
        assert 0 < found.bad_shares < 6
        assert not found.damage
        await store.mending.mend()
        for key in range(20):
            assert await optimal(store, f"{key}")
        shard = store.pool.get(lost.record.placement[1])
        assert shard is not None
        assert store.objects.find(name("10")).envelope in {entry.entry.envelope for entry in shard.scan()}
        found = await scrubbed(store)
        assert (found.bad_shares, found.lacking_records) == (0, 0)


async def test_a_tombstone_that_a_shard_missed_is_given_to_it(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
    home.take_away(1)
    async with home.open() as store:
        await delete(store, "a")
        for debt in store.metastore.debts():  # as if the debt had been lost
            store.metastore._writer.execute("delete from debt")  # type: ignore[attr-defined]
            assert debt.kind in (Owed.RECORD, Owed.SHARE)
    home.bring_back(1)
    async with home.open() as store:
        found = await scrubbed(store)
        assert found.lacking_records == 1
        shard = store.pool.get(1)
        namespace = store.namespaces.find("default")
        assert shard is not None
        assert namespace is not None
        assert store.metastore.tombstone(namespace.id, "a") in {entry.entry.envelope for entry in shard.scan()}


async def test_shares_that_nothing_names_are_freed_or_told(home: Home) -> None:
    async with home.open() as store:
        await strays(home, store)
        await put(store, "lost", content(2, 10_000))
        store.metastore._writer.execute("delete from record where name=?", (b"lost",))  # type: ignore[attr-defined]
        found = await scrubbed(store)
        assert (found.strays_freed, found.strays_kept, found.unknown_keys) == (3, 3, 3)
        await freed(store)
        assert home.share_files() == []


async def test_a_restart_goes_on_where_it_was_whatever_comes_and_goes(tmp_path: Path) -> None:
    home = Home(tmp_path, Policy(2, 3, chunk_size=256 * 1024), shards=4)
    seen: list[str] = []
    async with home.open() as store:
        for number in range(10):
            await put(store, f"k{number}", content(number, 5_000))
        await store.scrub.start()
        while store.scrub.status().found.objects < 4:
            await store.scrub.news().wait()
        await store.scrub.pause()
        at = store.scrub.status()
        assert (at.state, 0 < at.percent < 90) == ("paused", True)
    home.take_away(2)
    async with home.open() as store:
        assert store.scrub.status().state == "paused"
        assert store.scrub.status().found.objects == at.found.objects  # nothing goes on before it is resumed
        await delete(store, "k1")
        await put(store, "k55", b"new")
        await store.scrub.resume()
        while store.scrub.status().state != "idle":
            await store.scrub.news().wait()
        seen.append(str(store.scrub.status().found.objects))
        assert store.scrub.status().found.objects in (10, 11)  # the others once each; k55 may lie behind
        assert store.scrub.status().started == at.started
    home.bring_back(2)


async def test_a_crash_looks_again_at_what_was_not_kept_and_misses_nothing(home: Home) -> None:
    async with home.open() as store:
        for number in range(8):
            await put(store, f"k{number}", content(number, 5_000))
        row = ScrubRow(started=store.runtime.clock.now(), by_hand=True, namespace="default", key="k2")
        await store.rows.put("scrub", "position", row.encode())
    async with home.open() as store:
        store.scrub._asked.set()
        assert (await scrubbed(store)).objects == 5


async def test_pausing_holds_it_and_starting_goes_on(home: Home) -> None:
    async with home.open() as store:
        for number in range(5):
            await put(store, f"k{number}", content(number, 5_000))
        await store.scrub.pause()
        assert store.scrub.status().state == "paused"
        await trio.testing.wait_all_tasks_blocked()
        assert store.scrub.status().found.objects == 0
        assert (await scrubbed(store)).objects == 5


async def test_who_starts_it_waits_for_no_rest_of_a_pass_that_is_spread_over_days(home: Home) -> None:
    async with home.open() as store:
        for number in range(3):
            await put(store, f"k{number}", content(number, 700_000))
        store.scrub._begin(by_hand=False)
        store.scrub._saved = trio.current_time()  # no commit comes between an object and the rest behind it
        store.scrub._asked.set()
        while store.scrub.status().found.objects == 0:
            await store.scrub.news().wait()
        assert store.scrub.status().found.objects == 1
        assert (await scrubbed(store)).objects == 3


async def test_a_shard_that_is_away_is_no_damage(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        home.take_away(0)
        found = await scrubbed(store)
        assert (found.bad_shares, found.unreadable) == (0, 0)


async def test_writers_and_deleters_beside_it_are_never_taken_for_damage(home: Home) -> None:
    async with home.open() as store:
        for number in range(12):
            await put(store, f"k{number}", content(number, 700_000 if number % 3 == 0 else 5_000))

        async def write() -> None:
            for number in range(12):
                await put(store, f"k{number}", content(number + 50, 5_000 if number % 3 == 0 else 700_000))
                await delete(store, f"k{(number * 5) % 12}")
                await put(store, f"k{(number * 5) % 12}", content(number, 9_000))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            for _ in range(4):
                found = await scrubbed(store)
                assert (found.bad_shares, found.unreadable, found.strays_kept, found.unknown_keys) == (0, 0, 0, 0)


async def test_it_is_overdue_when_no_pass_ended_for_too_long(home: Home) -> None:
    async with home.open() as store:
        assert not store.scrub.overdue()
        store.scrub._created -= 2 * 30 * DAY
        assert store.scrub.overdue()
        assert any("scrub" in warning for warning in store.warnings())
        await scrubbed(store)
        assert not store.scrub.overdue()


async def test_a_pass_that_began_by_a_clock_that_was_wrong_does_not_keep_the_next_one_from_being_due(home: Home) -> None:
    async with home.open() as store:
        await scrubbed(store)
        row, days = store.scrub._row, store.scrub._config.days
        assert row.started is not None
        assert 0 < store.scrub._due_in() <= days * DAY
        row.started += 10 * 365 * DAY  # the clock was set back since
        assert store.scrub._due_in() == 0


async def test_a_pass_is_spread_over_its_days_but_never_faster_than_its_rate(home: Home) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 700_000))
        scrub: Scrub = store.scrub
        scrub._config = ScrubConfig(days=1, rate=1 << 20)
        total = scrub._total()
        assert total >= 1_050_000
        assert scrub._spread() == pytest.approx(max(total / (86_400 * 0.8), 4_096))
        scrub._config = ScrubConfig(days=1, rate=5)
        assert scrub._spread() == 5


async def test_the_pace_is_kept_and_a_pause_holds(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(1_000)
    began = trio.current_time()
    for _ in range(10):
        await pace.spend(1_000)
    assert 9 <= trio.current_time() - began <= 10
    pace.pause()
    with trio.move_on_after(50) as waiting:
        await pace.spend(1)
    assert waiting.cancelled_caught
    pace.resume()
    await pace.spend(1)


async def test_another_rate_counts_for_what_was_read_before_too(autojump_clock: trio.testing.MockClock) -> None:
    pace = Pace(1)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pace.spend, 1_000)
        await trio.sleep(500)
        pace.rate = 100
    assert trio.current_time() - began == pytest.approx(505)


@pytest.mark.parametrize(
    "row",
    [
        ScrubRow(),
        ScrubRow(started=5, last_ended=3, namespace="a", key="k", shards={3, 1}, found=Found(1, 2, 3, 4, 5, 6, 7, 8)),
        ScrubRow(started=5, ended=6, last_ended=6, paused=True, by_hand=True, objects_done=True),
    ],
)
def test_the_position_is_kept_as_it_was(row: ScrubRow) -> None:
    assert ScrubRow.decode(row.encode()) == row


async def test_a_fault_on_the_way_lets_it_rest_and_never_ends_the_daemon(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        failed = trio.Event()

        async def fault(*_: object) -> None:
            failed.set()
            raise KeyError("a fault of ours")

        with monkeypatch.context() as patch:
            patch.setattr(store.scrub, "_object", fault)
            await store.scrub.start()
            await failed.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert store.scrub.status().state == "running"
        assert (await scrubbed(store)).objects == 1


async def test_a_shard_that_tells_no_truth_keeps_the_others_from_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor from being gone through again."""
    async with home.open() as store:
        await put(store, "a", content(1, 10_000))
        first, *others = store.pool.opened()

        def refuses(**_: object) -> Iterator[ShareId]:
            raise ShardError("failed", "it lists something that is no share")

        def scans() -> Iterator[ScannedEntry]:
            while True:
                yield from entries

        def lists(**_: object) -> Iterator[ShareId]:
            return (ShareId(Version(number.to_bytes(16, "big")), 0) for number in count())

        entries = [*first.scan()]
        for what, lie in (("held", refuses), ("held", lists), ("scan", scans)):
            looked_at: list[str] = []
            with monkeypatch.context() as patch:
                patch.setattr(first, what, lie)
                patch.setattr(plausible, "ALWAYS", 100)
                for shard in others:
                    patch.setattr(shard, "held", partial(_noted, looked_at, shard))
                await scrubbed(store)
            assert {*looked_at} == {shard.id for shard in others}
        assert store.scrub.status().last_ended is not None


def _noted(looked_at: list[str], shard: Shard, *, small: bool) -> Iterator[ShareId]:
    looked_at.append(shard.id)
    return type(shard).held(shard, small=small)


async def test_a_shard_without_room_for_the_records_it_lacks_keeps_the_others_from_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with home.open() as store:
        old = await put(store, "a", content(1, 10_000))
        await put(store, "a", content(2, 10_000))
        first, *others = store.pool.opened()
        entries = [*first.scan()]
        looked_at: list[str] = []

        def forgot() -> Iterator[ScannedEntry]:
            return (scanned for scanned in entries if scanned.entry.envelope.sequence <= old.envelope.sequence)

        def full(*_: object) -> None:
            raise ShardError("full", "no space left on device", untouched=True)

        monkeypatch.setattr(first, "scan", forgot)
        monkeypatch.setattr(first, "append", full)
        for shard in others:
            monkeypatch.setattr(shard, "held", partial(_noted, looked_at, shard))
        await scrubbed(store)
        assert {*looked_at} == {shard.id for shard in others}


async def test_a_namespace_that_is_deleted_meanwhile_holds_nothing_up(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    check = Health.check

    async def delete_beside(self: Health, stored: Stored, caller: Caller, *, fast: bool = False) -> Checked:
        if stored.namespace == "going":
            await store.namespaces.change("going", lambda record: replace(record, deleting=True))
        return await check(self, stored, caller, fast=fast)

    monkeypatch.setattr(Health, "check", delete_beside)
    async with home.open() as store:
        for key in ("a", "b"):
            await put(store, key, content(1, 100), namespace="going")
        await put(store, "a", content(1, 100), namespace="staying")
        assert (await scrubbed(store)).objects == 1


async def test_after_a_rotation_of_the_key_nothing_is_taken_for_damage(home: Home) -> None:
    async with home.open() as store:
        await put(store, "kept", content(1, 10_000))
        await put(store, "large", content(2, 700_000))
        await put(store, "deleted", content(3, 10_000))
        await delete(store, "deleted")
        job, _ = await store.rotation.rotate()
        while job.running:
            await job.news().wait()
        assert job.state == "done"
        await put(store, "after", content(4, 10_000))
        found = await scrubbed(store)
        assert (found.damage, found.bad_shares, found.lacking_records) == (False, 0, 0)
    async with home.open() as store:
        found = await scrubbed(store)
        assert (found.damage, found.bad_shares, found.lacking_records) == (False, 0, 0)


async def test_a_store_that_takes_no_changes_is_not_scrubbed_and_says_so(home: Home) -> None:
    async with home.open() as store:
        store.committer.failure = "the metastore failed"
        with pytest.raises(Unavailable):
            await store.scrub.start()
        assert store.scrub.status().state == "idle"
