"""The laws of metastore.base.Metastore, as tests that every implementation passes: inherit and give a `metastore` fixture."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from zstor_local import limits
from zstor_local.metastore.base import (
    Debt,
    Garbage,
    Intent,
    Metastore,
    MetastoreClosed,
    Owed,
    Reference,
    Row,
    StoreState,
    Transaction,
    Usage,
)
from zstor_local.model.ids import KeyHash, NamespaceId, ReferenceHash, ShareId, StoreId, Version
from zstor_local.model.record import Envelope, Kind

STORE = StoreId(b"store id 16bytes")
SPACE = NamespaceId(b"namespace id 16b")
OTHER_SPACE = NamespaceId(b"another space 16")


def version(number: int) -> Version:
    return Version(number.to_bytes(16, "big"))


def envelope(sequence: int, kind: Kind = Kind.OBJECT, *, space: NamespaceId = SPACE, sealed: bytes = b"sealed") -> Envelope:
    return Envelope(kind, space, KeyHash(b"a hashed key 16b"), version(sequence), sequence, sealed)


def row(name: str, sequence: int, kind: Kind = Kind.OBJECT, *, space: NamespaceId = SPACE, sealed: bytes = b"sealed") -> Row:
    return Row(space, name, envelope(sequence, kind, space=space, sealed=sealed))


def transaction(*rows: Row, sequence: int = 1) -> Transaction:
    return Transaction(StoreState(sequence=sequence, reserved=100, writer=1), rows=list(rows))


def names(rows: list[Row]) -> list[str]:
    return [each.name for each in rows]


class MetastoreLaws:
    """What holds for every metastore."""

    def test_it_knows_its_store(self, metastore: Metastore) -> None:
        assert metastore.store_id == STORE

    def test_a_new_one_is_empty_and_writable(self, metastore: Metastore) -> None:
        assert metastore.state() == StoreState()
        assert metastore.writable
        assert metastore.get(SPACE, "a") is None
        assert metastore.scan(SPACE, "", None, 10) == []
        assert not metastore.intents()
        assert metastore.garbage_count() == metastore.debts_count() == 0

    def test_a_committed_row_is_read_back_as_it_was(self, metastore: Metastore) -> None:
        metastore.commit(transaction(row("a", 1, sealed=bytes(range(256)))))
        assert metastore.get(SPACE, "a") == envelope(1, sealed=bytes(range(256)))

    def test_the_state_is_that_of_the_last_transaction(self, metastore: Metastore) -> None:
        state = StoreState(sequence=2**63 - 1, reserved=2**63 - 1, writer=7, objects=5, bytes=2**62)
        metastore.commit(Transaction(state))
        assert metastore.state() == state

    def test_a_later_row_takes_the_place_of_the_earlier(self, metastore: Metastore) -> None:
        metastore.commit(transaction(row("a", 1)))
        metastore.commit(transaction(row("a", 2), sequence=2))
        assert metastore.get(SPACE, "a") == envelope(2)
        assert names(metastore.scan(SPACE, "", None, 10)) == ["a"]

    def test_of_two_rows_of_one_transaction_the_later_counts(self, metastore: Metastore) -> None:
        metastore.commit(transaction(row("a", 1), row("a", 2), sequence=2))
        assert metastore.get(SPACE, "a") == envelope(2)

    def test_spaces_do_not_see_each_other(self, metastore: Metastore) -> None:
        metastore.commit(transaction(row("a", 1), row("a", 2, space=OTHER_SPACE), sequence=2))
        assert metastore.get(SPACE, "a") == envelope(1)
        assert metastore.get(OTHER_SPACE, "a") == envelope(2, space=OTHER_SPACE)
        assert len(metastore.scan(SPACE, "", None, 10)) == 1

    def test_a_tombstone_takes_its_objects_place(self, metastore: Metastore) -> None:
        metastore.commit(transaction(row("a", 1), row("b", 2), sequence=2))
        metastore.commit(transaction(row("a", 3, Kind.TOMBSTONE), sequence=3))
        assert metastore.get(SPACE, "a") is None
        assert names(metastore.scan(SPACE, "", None, 10)) == ["b"]
        assert metastore.tombstone(SPACE, "a") == envelope(3, Kind.TOMBSTONE)
        assert metastore.tombstone(SPACE, "b") is None

    def test_a_new_object_removes_the_tombstone(self, metastore: Metastore) -> None:
        metastore.commit(transaction(row("a", 1, Kind.TOMBSTONE)))
        metastore.commit(transaction(row("a", 2), sequence=2))
        assert metastore.tombstone(SPACE, "a") is None
        assert metastore.get(SPACE, "a") == envelope(2)

    @pytest.mark.parametrize("kind", [Kind.NAMESPACE, Kind.STORE, Kind.SHARDS])
    def test_store_wide_records_are_rows_like_others(self, metastore: Metastore, kind: Kind) -> None:
        metastore.commit(transaction(row("a", 1, kind)))
        assert metastore.get(SPACE, "a") == envelope(1, kind)

    def test_scan_goes_in_the_order_of_utf8_bytes(self, metastore: Metastore) -> None:
        # 😀 has a higher code point than ﬀ, and as UTF-16 (how some compare text) a lower one.
        wanted = ["A", "Z", "a", "a/b", "ab", "z", "é", "ﬀ", "😀"]
        metastore.commit(transaction(*[row(name, 1) for name in reversed(wanted)]))
        assert names(metastore.scan(SPACE, "", None, 100)) == wanted

    def test_scan_gives_the_names_with_the_prefix_and_no_others(self, metastore: Metastore) -> None:
        metastore.commit(transaction(*[row(name, 1) for name in ("a", "a/", "a/1", "a/2", "a0", "b/1", "%/x", "a%")]))
        assert names(metastore.scan(SPACE, "a/", None, 100)) == ["a/", "a/1", "a/2"]
        assert names(metastore.scan(SPACE, "%", None, 100)) == ["%/x"]
        assert names(metastore.scan(SPACE, "c", None, 100)) == []

    def test_scan_goes_on_behind_a_name_whether_it_is_there_or_not(self, metastore: Metastore) -> None:
        metastore.commit(transaction(*[row(name, 1) for name in ("a", "a!", "ab", "b", "c")]))
        assert names(metastore.scan(SPACE, "", "a", 100)) == ["a!", "ab", "b", "c"]
        assert names(metastore.scan(SPACE, "", "aa", 100)) == ["ab", "b", "c"]
        assert names(metastore.scan(SPACE, "b", "a", 100)) == ["b"]
        assert names(metastore.scan(SPACE, "a", "b", 100)) == []

    def test_pages_of_a_scan_give_every_name_once(self, metastore: Metastore) -> None:
        everything = [f"key{number:03}" for number in range(25)]
        metastore.commit(transaction(*[row(name, 1) for name in everything]))
        found: list[str] = []
        while page := names(metastore.scan(SPACE, "key", found[-1] if found else None, 7)):
            assert len(page) <= 7
            found += page
        assert found == everything

    def test_large_rows_come_a_few_at_a_time(self, metastore: Metastore, monkeypatch: pytest.MonkeyPatch) -> None:
        everything = [f"key{number:03}" for number in range(25)]
        metastore.commit(transaction(*[row(name, number + 1) for number, name in enumerate(everything)], sequence=25))
        size = len(metastore.scan(SPACE, "", None, 1)[0].envelope.sealed)
        monkeypatch.setattr(limits, "ROWS_BYTES", 3 * size)
        found: list[str] = []
        while page := names(metastore.scan(SPACE, "key", found[-1] if found else None, 7)):
            assert len(page) <= 4
            found += page
        assert found == everything
        since = 0
        while rows := metastore.changes(SPACE, since, 7):
            assert len(rows) <= 4
            assert names(rows) == everything[since : since + len(rows)]
            since = rows[-1].envelope.sequence
        assert since == 25

    def test_rows_are_found_by_the_version_they_name(self, metastore: Metastore) -> None:
        first, copied = row("a", 1), replace(row("b", 2), envelope=replace(envelope(2), version=version(1)))
        metastore.commit(transaction(first, copied, row("c", 3), sequence=3))
        assert sorted(metastore.named(version(1))) == [(SPACE, "a"), (SPACE, "b")]
        assert len(metastore.named(version(1), 1)) == 1
        metastore.commit(transaction(row("a", 4), replace(copied, envelope=replace(copied.envelope, sequence=5)), sequence=5))
        assert metastore.named(version(1)) == [(SPACE, "b")]
        buried = replace(copied, envelope=replace(copied.envelope, kind=Kind.TOMBSTONE, sequence=6))
        metastore.commit(transaction(buried, sequence=6))
        assert metastore.named(version(1)) == []

    def test_records_that_are_no_objects_name_no_version(self, metastore: Metastore) -> None:
        metastore.commit(transaction(row("namespace/a", 1, Kind.NAMESPACE)))
        assert metastore.named(version(1)) == []

    def test_changes_are_each_names_last_one_in_their_order(self, metastore: Metastore) -> None:
        metastore.commit(transaction(row("b", 1), row("a", 2), row("c", 3, space=OTHER_SPACE), sequence=3))
        metastore.commit(transaction(row("b", 4, Kind.TOMBSTONE), row("d", 5), sequence=5))
        found = metastore.changes(SPACE, 0, 10)
        assert [(each.name, each.envelope.sequence, each.envelope.kind) for each in found] == [
            ("a", 2, Kind.OBJECT),
            ("b", 4, Kind.TOMBSTONE),
            ("d", 5, Kind.OBJECT),
        ]
        assert metastore.changes(SPACE, 4, 10) == found[2:]
        assert metastore.changes(SPACE, 0, 2) == found[:2]
        assert metastore.changes(SPACE, 5, 10) == []

    def test_names_are_found_by_reference(self, metastore: Metastore) -> None:
        one, two = ReferenceHash(b"a reference 16 b"), ReferenceHash(b"another one 16 b")
        names = ["a", "b", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\N{GRINNING FACE}"]
        given = [Reference(SPACE, one, each) for each in reversed(names)]
        metastore.commit(Transaction(StoreState(), references=[*given, Reference(SPACE, two, "a"), Reference(OTHER_SPACE, one, "c")]))
        metastore.commit(Transaction(StoreState(), references=given[:1]))  # named twice, kept once
        assert metastore.referring(SPACE, one, None, 10) == names
        assert metastore.referring(SPACE, one, "b", 10) == names[2:]
        assert metastore.referring(SPACE, one, None, 2) == names[:2]
        assert metastore.referring(SPACE, two, None, 10) == ["a"]
        gone = [Reference(SPACE, one, "a"), Reference(SPACE, one, "b")]
        metastore.commit(Transaction(StoreState(), references=[gone[1]], references_gone=gone))
        assert metastore.referring(SPACE, one, None, 10) == names[1:]
        assert metastore.referring(SPACE, two, None, 10) == ["a"]

    def test_intents_come_and_go(self, metastore: Metastore) -> None:
        first, second = Intent(version(1), (0, 5, 300)), Intent(version(2), (1,))
        metastore.commit(Transaction(StoreState(), intents=[first, second]))
        assert sorted(metastore.intents(), key=lambda intent: intent.version) == [first, second]
        metastore.commit(Transaction(StoreState(), intents_done=[first.version, version(9)]))
        assert list(metastore.intents()) == [second]

    def test_garbage_is_kept_per_shard_until_it_is_freed(self, metastore: Metastore) -> None:
        rows = [Garbage(shard, ShareId(version(1), shard), small=bool(shard % 2)) for shard in range(3)]
        metastore.commit(Transaction(StoreState(), garbage=rows))
        metastore.commit(Transaction(StoreState(), garbage=rows))  # named twice, kept once
        assert metastore.garbage_count() == 3
        assert list(metastore.garbage(1, 10)) == [rows[1]]
        metastore.commit(Transaction(StoreState(), garbage_freed=[rows[1]]))
        assert list(metastore.garbage(1, 10)) == []
        assert metastore.garbage_count() == 2

    def test_garbage_comes_in_batches(self, metastore: Metastore) -> None:
        rows = [Garbage(0, ShareId(version(number), 0), small=True) for number in range(10)]
        metastore.commit(Transaction(StoreState(), garbage=rows))
        assert len(metastore.garbage(0, 4)) == 4
        found = [*metastore.garbage(0)]
        assert found == sorted(rows, key=lambda row: row.share)
        for number, row in enumerate(found):
            assert list(metastore.garbage(0, 4, row.share)) == found[number : number + 4]

    def test_debts_are_found_by_shard_and_by_version(self, metastore: Metastore) -> None:
        share = Debt(1, Owed.SHARE, SPACE, "a", version(1), 4)
        record = Debt(1, Owed.RECORD, SPACE, "a", version(1))
        other = Debt(2, Owed.RECORD, SPACE, "é", version(2))
        metastore.commit(Transaction(StoreState(), debts=[share, record, other]))
        metastore.commit(Transaction(StoreState(), debts=[share]))  # owed twice, kept once
        assert metastore.debts_count() == 3
        assert set(metastore.debts(1)) == {share, record} == set(metastore.debts_of(version(1)))
        assert set(metastore.debts()) == {share, record, other}
        metastore.commit(Transaction(StoreState(), debts_paid=[share]))
        assert list(metastore.debts(1)) == [record]

    def test_debts_come_in_batches(self, metastore: Metastore) -> None:
        rows = [Debt(1, Owed.RECORD, SPACE, name, version(number)) for number in range(3) for name in "aé"]
        rows += [Debt(1, Owed.SHARE, SPACE, "a", version(number), index) for number in range(3) for index in range(2)]
        metastore.commit(Transaction(StoreState(), debts=[*rows, Debt(2, Owed.SHARE, SPACE, "a", version(1), 0)]))
        found = [*metastore.debts(1)]
        assert sorted(found, key=rows.index) == rows
        assert list(metastore.debts(1, 4)) == found[:4]
        for at, row in enumerate(found):
            assert list(metastore.debts(1, 4, row)) == found[at + 1 : at + 5]

    def test_what_a_reader_was_given_is_not_changed_by_later_commits(self, metastore: Metastore) -> None:
        metastore.commit(Transaction(StoreState(), [row("a", 1)], [Intent(version(1), (0,))]))
        rows, intents, state = metastore.scan(SPACE, "", None, 10), metastore.intents(), metastore.state()
        metastore.commit(Transaction(StoreState(sequence=2), [row("b", 2)], intents_done=[version(1)]))
        assert (len(rows), len(intents), state.sequence) == (1, 1, 0)

    def test_readers_in_other_threads_see_whole_transactions(self, metastore: Metastore) -> None:
        wrong: list[object] = []
        stop = threading.Event()

        def look() -> None:
            try:
                while not stop.is_set():
                    found = metastore.scan(SPACE, "", None, 10)
                    if len({each.envelope.sequence for each in found}) > 1:
                        wrong.append(found)
            except Exception as error:
                wrong.append(error)

        reader = threading.Thread(target=look)
        reader.start()
        for sequence in range(1, 100):
            metastore.commit(transaction(row("a", sequence), row("b", sequence), sequence=sequence))
            seen = metastore.get(SPACE, "a")
            assert seen is not None
            assert seen.sequence == sequence
        stop.set()
        reader.join()
        assert wrong == []

    def test_a_checkpoint_changes_nothing_that_can_be_seen(self, metastore: Metastore) -> None:
        metastore.commit(transaction(row("a", 1)))
        before = metastore.state()
        metastore.checkpoint()
        assert metastore.get(SPACE, "a") == envelope(1)
        assert metastore.state() == before

    def test_a_closed_one_takes_no_commit(self, metastore: Metastore) -> None:
        metastore.close()
        assert not metastore.writable
        with pytest.raises(MetastoreClosed):
            metastore.commit(transaction(row("a", 1)))

    def test_counters_may_go_down(self, metastore: Metastore) -> None:
        metastore.commit(Transaction(StoreState(sequence=3, reserved=9, writer=2, objects=4, bytes=40)))
        metastore.commit(Transaction(replace(metastore.state(), objects=3, bytes=30)))
        assert (metastore.state().objects, metastore.state().bytes) == (3, 30)

    def test_what_namespaces_hold_adds_up(self, metastore: Metastore) -> None:
        assert metastore.usage(SPACE) == Usage()
        for more in (Usage(2, 100), Usage(-1, 50), Usage(0, -10)):
            metastore.commit(Transaction(StoreState(sequence=1), usage={SPACE: more, OTHER_SPACE: Usage(1, 1)}))
        assert metastore.usage(SPACE) == Usage(1, 140)
        assert metastore.usages() == {SPACE: Usage(1, 140), OTHER_SPACE: Usage(3, 3)}
