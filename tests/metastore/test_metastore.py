"""Both metastores obey the laws; SQLite's file may be damaged, full, held by others or on a failing disk."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast

import pytest

from tests.descriptors import open_descriptors
from tests.metastore.conformance import OTHER_SPACE, SPACE, STORE, MetastoreLaws, envelope, names, row, transaction, version
from tests.metastore.memory import Cell, MemoryMetastore
from tests.troubled_files import TroubledFiles
from zstor_local.errors import CorruptRecord, IoError
from zstor_local.metastore.base import (
    CommitRefused,
    CommitUnknown,
    Debt,
    Garbage,
    Intent,
    Metastore,
    MetastoreClosed,
    MetastoreDamaged,
    MetastoreInUse,
    MetastoreNotOpened,
    Owed,
    StoreState,
    Transaction,
)
from zstor_local.metastore.sqlite import SqliteMetastore
from zstor_local.model.ids import ReferenceHash, ShareId
from zstor_local.model.record import Kind
from zstor_local.store.engines import METASTORE, SqliteEngines
from zstor_local.system import RealFiles

PAGE = 4_096


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A new SQLite metastore's file."""
    path = str(tmp_path / "meta?store#1.sqlite")  # characters that mean something in a URI
    SqliteMetastore.create(path, STORE)
    return path


@pytest.fixture
def sqlite(path: str) -> Iterator[SqliteMetastore]:
    with closing(SqliteMetastore(path, busy_seconds=0.0)) as metastore:
        yield metastore


class TestMemory(MetastoreLaws):
    @pytest.fixture
    def metastore(self) -> Iterator[Metastore]:
        with closing(MemoryMetastore(Cell(STORE))) as metastore:
            yield metastore

    def test_a_commit_that_broke_off_closes_it(self) -> None:
        def fail(moment: str) -> None:
            raise OSError(5, "EIO")

        metastore = MemoryMetastore(Cell(STORE), fail)
        with pytest.raises(CommitUnknown):
            metastore.commit(transaction(row("a", 1)))
        with pytest.raises(MetastoreClosed):
            metastore.commit(transaction(row("a", 1)))

    def test_a_kept_cell_is_not_changed_by_later_commits(self) -> None:
        metastore = MemoryMetastore(Cell(STORE))
        kept = metastore.cell.copy()
        metastore.commit(
            Transaction(
                StoreState(sequence=1),
                [row("a", 1)],
                [Intent(version(1), (0,))],
                garbage=[Garbage(0, ShareId(version(1), 0), small=True)],
                debts=[Debt(0, Owed.RECORD, SPACE, "a", version(1))],
            )
        )
        assert kept == Cell(STORE)


class TestSqlite(MetastoreLaws):
    @pytest.fixture
    def metastore(self, sqlite: SqliteMetastore) -> Metastore:
        return sqlite


def test_what_was_committed_is_there_for_the_next_process(path: str) -> None:
    with closing(SqliteMetastore(path)) as metastore:
        metastore.commit(transaction(row("a", 1)))
    with closing(SqliteMetastore(path)) as metastore:
        assert metastore.get(SPACE, "a") == envelope(1)
        assert metastore.state().sequence == 1


def test_what_was_committed_survives_a_kill(sqlite: SqliteMetastore, path: str, tmp_path: Path) -> None:
    sqlite.commit(transaction(row("a", 1)))
    copy = str(tmp_path / "copy.sqlite")
    shutil.copy(path, copy)
    shutil.copy(f"{path}-wal", f"{copy}-wal")
    with closing(SqliteMetastore(copy)) as metastore:
        assert metastore.get(SPACE, "a") == envelope(1)


def test_what_a_failed_sync_left_in_the_wal_is_not_taken_for_committed(tmp_path: Path) -> None:
    """The process after it is shown the whole log by the kernel, until that reads it from the disk again."""
    path = tmp_path / METASTORE
    SqliteMetastore.create(str(path), STORE)
    killed = tmp_path / "killed"
    killed.mkdir()
    with closing(SqliteMetastore(str(path))) as metastore:
        metastore.commit(transaction(row("a", 1)))
        on_disk = Path(f"{path}-wal").read_bytes()
        metastore.commit(transaction(row("a", 2), row("b", 2), sequence=2))
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", killed)

    class Forgetful(RealFiles):
        def drop_cache(self, fd: int) -> None:
            (killed / f"{METASTORE}-wal").write_bytes(on_disk)

    with closing(SqliteEngines(Forgetful()).open_metastore(str(killed))) as opened:
        assert opened.state().sequence == 1
        opened.commit(transaction(row("c", 2), sequence=2))
    with closing(SqliteEngines(RealFiles()).open_metastore(str(killed))) as opened:
        assert (opened.get(SPACE, "a"), opened.get(SPACE, "b")) == (envelope(1), None)
        assert opened.get(SPACE, "c") == envelope(2)


def test_a_wal_that_cannot_be_flushed_is_no_damage(tmp_path: Path) -> None:
    SqliteMetastore.create(str(tmp_path / METASTORE), STORE)
    Path(tmp_path / f"{METASTORE}-wal").touch()
    files = TroubledFiles()
    files.fail("fsync", lambda path: path.endswith("-wal"), errno.EIO)
    with pytest.raises(MetastoreNotOpened):
        SqliteEngines(files).open_metastore(str(tmp_path))
    SqliteEngines(files).open_metastore(str(tmp_path)).close()


def test_no_question_and_no_commit_goes_through_all_records_or_sorts_them(sqlite: SqliteMetastore) -> None:
    asked: list[str] = []
    owed, gone = Debt(1, Owed.SHARE, SPACE, "a", version(1), 0), Garbage(1, ShareId(version(1), 0), small=True)
    sqlite._db.set_trace_callback(asked.append)
    sqlite._writer.set_trace_callback(asked.append)
    state = StoreState(sequence=1, reserved=100, writer=1)
    sqlite.commit(Transaction(state, rows=[row("a", 1)], debts=[owed], garbage=[gone]))
    sqlite.commit(Transaction(state, rows=[row("a", 2)], debts_paid=[owed], garbage_freed=[gone]))
    sqlite.state(), sqlite.usage(SPACE), sqlite.intents(), sqlite.garbage(1, 10)
    sqlite.get(SPACE, "a"), sqlite.tombstone(SPACE, "a"), sqlite.named(version(1)), sqlite.debts(1), sqlite.debts_of(version(1))
    sqlite.scan(SPACE, "a", "b", 10), sqlite.changes(SPACE, 1, 10), sqlite.newest(SPACE, [1, 2]), sqlite.leads_to(row("a", 2))
    sqlite.referring(SPACE, ReferenceHash(bytes(16)), "a", 10)
    for db in (sqlite._db, sqlite._writer):
        db.set_trace_callback(None)
    plans = {step[3]: query for query in asked for step in sqlite._db.execute(f"explain query plan {query}")}
    few = {"SCAN store", "SCAN intent"}  # one row, and one for each large write that runs
    assert {plan for plan in plans if plan not in few and ("SCAN" in plan or "TEMP B-TREE" in plan)} == set(), plans


def test_commits_go_to_the_wal_until_a_checkpoint_moves_them(sqlite: SqliteMetastore, path: str, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy.sqlite")
    sqlite.commit(transaction(row("a", 1)))
    for moved in (False, True):
        shutil.copy(path, copy)
        with closing(SqliteMetastore(copy)) as metastore:
            assert (metastore.get(SPACE, "a") is not None) is moved
        sqlite.checkpoint()


def test_the_wal_keeps_its_room_when_checkpoints_come_in_time(sqlite: SqliteMetastore, path: str) -> None:
    sizes = []
    for sequence in range(1, 20):
        sqlite.commit(transaction(row("a", sequence, sealed=bytes(3 * PAGE)), sequence=sequence))
        sqlite.checkpoint()
        sizes.append(Path(f"{path}-wal").stat().st_size)
    assert sizes[-1] == sizes[1]


def test_a_tombstone_of_an_earlier_life_goes_with_a_new_object(path: str) -> None:
    with closing(SqliteMetastore(path)) as metastore:
        metastore.commit(transaction(row("a", 1, Kind.TOMBSTONE), row("b", 1)))
    with closing(SqliteMetastore(path)) as metastore:
        metastore.commit(transaction(row("a", 2), row("b", 2, Kind.TOMBSTONE), sequence=2))
        metastore.commit(transaction(row("b", 3), sequence=3))
        assert metastore.tombstone(SPACE, "a") is None
        assert metastore.tombstone(SPACE, "b") is None
        assert names(metastore.scan(SPACE, "", None, 10)) == ["a", "b"]


def test_what_is_loaded_is_all_in_the_one_file(tmp_path: Path) -> None:
    path = str(tmp_path / "loaded.sqlite")
    parts = [transaction(row("a", 1), row("b", 1)), transaction(row("a", 2, Kind.TOMBSTONE), sequence=2)]
    SqliteMetastore.create(path, STORE, parts)
    assert [file.name for file in tmp_path.iterdir()] == ["loaded.sqlite"]
    with closing(SqliteMetastore(path)) as metastore:
        assert names(metastore.scan(SPACE, "", None, 10)) == ["b"]
        assert metastore.tombstone(SPACE, "a") == envelope(2, Kind.TOMBSTONE)
        assert metastore.state() == parts[1].state


# --- A file that is no metastore ---


def refused(path: str) -> MetastoreDamaged:
    before = open_descriptors()
    with pytest.raises(MetastoreDamaged) as caught:
        SqliteMetastore(path)
    assert open_descriptors() == before
    assert "zstor rebuild" in (caught.value.hint or "")
    return caught.value


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(MetastoreNotOpened):
        SqliteMetastore(str(tmp_path / "none.sqlite"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"garbage", b"garbage" * 10_000, bytes(8_192)])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "metastore.sqlite"
    file.write_bytes(content)
    refused(str(file))


@pytest.mark.parametrize("table", ["debt", "tombstone"])
def test_one_without_a_table_is_refused(path: str, table: str) -> None:
    tamper(path, f"drop table {table}")
    refused(path)


@pytest.mark.parametrize("length", [1, 100, 511, PAGE, PAGE + 100])
def test_a_truncated_file_is_refused(path: str, length: int) -> None:
    file = Path(path)
    file.write_bytes(file.read_bytes()[:length])
    refused(path)


def test_an_empty_file_is_left_empty(tmp_path: Path) -> None:
    file = tmp_path / "metastore.sqlite"
    file.touch()
    refused(str(file))
    assert file.read_bytes() == b""


def test_where_none_can_be_made_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(CommitUnknown, match="cannot be made"):
        SqliteMetastore.create(str(tmp_path / "no such directory" / "metastore.sqlite"), STORE)


@pytest.mark.parametrize("offset", range(16))
def test_a_flipped_header_is_refused(path: str, offset: int) -> None:
    file = Path(path)
    content = bytearray(file.read_bytes())
    content[offset] ^= 0x20
    file.write_bytes(content)
    refused(path)


def test_a_newer_format_is_refused_by_name(path: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("update store set format=2")
    assert "format 2, this version reads 1" in refused(path).message


# --- Damage under a running daemon ---


def fill(metastore: SqliteMetastore, count: int = 400) -> None:
    """Rows of which each has pages of its own."""
    metastore.commit(transaction(*[row(f"key{number:04}", number, sealed=payload(number)) for number in range(count)]))


def payload(number: int) -> bytes:
    return number.to_bytes(4, "big") * 1_500


def damage_page_of(path: str, number: int) -> None:
    """Overwrite the page of the file in which a row's payload begins."""
    file = Path(path)
    at = file.read_bytes().index(payload(number)[:64]) // PAGE * PAGE
    with file.open("r+b") as opened:
        opened.seek(at)
        opened.write(b"\xff" * PAGE)


def test_a_damaged_page_hurts_only_what_lies_on_it(path: str) -> None:
    with closing(SqliteMetastore(path)) as metastore:
        fill(metastore)
        metastore.checkpoint()
    with closing(SqliteMetastore(path)) as metastore:
        damage_page_of(path, 200)
        good = hurt = 0
        for number in range(400):
            try:
                assert metastore.get(SPACE, f"key{number:04}") == envelope(number, sealed=payload(number))
                good += 1
            except MetastoreDamaged:
                hurt += 1
        assert hurt >= 1
        assert good >= 380
        with pytest.raises(MetastoreDamaged):
            metastore.scan(SPACE, "", None, 1_000)
        assert metastore.writable
        metastore.commit(transaction(row("another", 500, space=OTHER_SPACE), sequence=500))
        assert metastore.get(OTHER_SPACE, "another") is not None


def test_damage_is_a_corrupt_record_for_callers() -> None:
    assert issubclass(MetastoreDamaged, CorruptRecord)
    assert MetastoreDamaged.type == "corrupt_record"


@pytest.mark.parametrize(
    "change",
    ["kind=99", "kind='x'", "sequence=-1", "sequence='x'", "sealed='text'", "sealed=7", "version='text'", "key_hash=1"],
)
def test_a_row_with_what_was_never_written_is_damage(sqlite: SqliteMetastore, path: str, change: str) -> None:
    sqlite.commit(transaction(row("a", 1), row("b", 2), sequence=2))
    tamper(path, f"update record set {change} where name=x'61'")  # noqa: S608 (constants)
    with pytest.raises(MetastoreDamaged):
        sqlite.get(SPACE, "a")
    damaged, good = sqlite.scan(SPACE, "", None, 10)
    assert (damaged.name, damaged.envelope.sealed) == ("a", b"")
    assert good.envelope == sqlite.get(SPACE, "b") == envelope(2)
    assert [each.name for each in sqlite.changes(SPACE, 0, 10)] == (["b"] if "sequence" in change else ["a", "b"])
    assert sqlite.changes(SPACE, 2, 10) == []


def test_a_name_that_is_not_utf8_is_damage(sqlite: SqliteMetastore, path: str) -> None:
    sqlite.commit(transaction(row("a", 1)))
    tamper(path, "update record set name=x'ff'")
    with pytest.raises(MetastoreDamaged):
        sqlite.scan(SPACE, "", None, 10)


def test_bookkeeping_with_what_was_never_written_is_damage(sqlite: SqliteMetastore, path: str) -> None:
    debts = [Debt(1, Owed.RECORD, SPACE, "a", version(1))]
    sqlite.commit(Transaction(StoreState(), intents=[Intent(version(1), (0,))], debts=debts))
    tamper(path, "update debt set kind=9")
    tamper(path, "update intent set shards='x'")
    tamper(path, "delete from store")
    for read in (sqlite.intents, sqlite.debts, sqlite.state):
        with pytest.raises(MetastoreDamaged):
            read()


def tamper(path: str, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)


def test_a_scan_meets_no_row_without_the_prefix(path: str, sqlite: SqliteMetastore) -> None:
    """They may be large, and there may be many."""
    sqlite.commit(Transaction(StoreState(), [row("a/1", 1), row("b", 2)]))
    tamper(path, "update record set name=x'ff' where name=x'62'")
    assert [each.name for each in sqlite.scan(SPACE, "a/", None, 10)] == ["a/1"]
    with pytest.raises(MetastoreDamaged):
        sqlite.scan(SPACE, "", None, 10)


# --- Errors of the system ---


class FailingConnection:
    """A connection whose statements that begin with `statement` fail with one of SQLite's errors."""

    def __init__(self, db: sqlite3.Connection, statement: str, code: int, name: str) -> None:
        self._db = db
        self._statement = statement
        self._error = sqlite3.OperationalError(name)
        self._error.sqlite_errorcode = code
        self._error.sqlite_errorname = name

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        if statement.startswith(self._statement):
            raise self._error
        return self._db.execute(statement, *values)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)


def make_fail(metastore: SqliteMetastore, which: str, statement: str, code: int, name: str) -> None:
    db = getattr(metastore, which)
    setattr(metastore, which, cast(sqlite3.Connection, FailingConnection(db, statement, code, name)))


def test_a_full_disk_refuses_the_transaction_and_later_ones_work(sqlite: SqliteMetastore) -> None:
    sqlite.commit(transaction(row("a", 1)))
    pages = sqlite._writer.execute("pragma page_count").fetchone()[0]
    sqlite._writer.execute(f"pragma max_page_count={pages}")
    with pytest.raises(CommitRefused) as caught:
        sqlite.commit(transaction(row("a", 2), row("b", 3, sealed=bytes(100_000)), sequence=3))
    assert caught.value.no_space
    assert sqlite.writable
    assert sqlite.get(SPACE, "a") == envelope(1)
    assert sqlite.get(SPACE, "b") is None
    assert sqlite.state().sequence == 1
    sqlite._writer.execute("pragma max_page_count=100000")
    sqlite.commit(transaction(row("b", 4, sealed=bytes(100_000)), sequence=4))
    assert sqlite.get(SPACE, "b") is not None


HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    db.execute(statement)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another_process(path: str, *statements: str) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path, *statements], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield
        process.communicate()


def test_while_another_process_holds_the_lock_commits_are_refused_and_reads_go_on(sqlite: SqliteMetastore, path: str) -> None:
    sqlite.commit(transaction(row("a", 1)))
    with held_by_another_process(path, "begin immediate"):
        with pytest.raises(CommitRefused) as caught:
            sqlite.commit(transaction(row("a", 2), sequence=2))
        assert not caught.value.no_space
        assert sqlite.get(SPACE, "a") == envelope(1)
    sqlite.commit(transaction(row("a", 2), sequence=2))
    assert sqlite.get(SPACE, "a") == envelope(2)


def test_one_that_another_process_holds_alone_is_in_use_and_not_damaged(path: str) -> None:
    with (
        held_by_another_process(path, "pragma locking_mode=exclusive", "begin exclusive", "update store set writer=9"),
        pytest.raises(MetastoreInUse),
    ):
        SqliteMetastore(path, busy_seconds=0.0)


@pytest.mark.parametrize("statement", ["begin immediate", "update store", "commit"])
def test_an_io_error_in_a_commit_closes_it_for_life_and_reads_go_on(sqlite: SqliteMetastore, statement: str) -> None:
    sqlite.commit(transaction(row("a", 1)))
    writer = sqlite._writer
    make_fail(sqlite, "_writer", statement, sqlite3.SQLITE_IOERR_FSYNC, "SQLITE_IOERR_FSYNC")
    with pytest.raises(CommitUnknown, match="SQLITE_IOERR_FSYNC"):
        sqlite.commit(transaction(row("a", 2), sequence=2))
    sqlite._writer = writer  # the disk is well again: that must not count
    assert not sqlite.writable
    with pytest.raises(MetastoreClosed):
        sqlite.commit(transaction(row("a", 3), sequence=3))
    assert sqlite.get(SPACE, "a") == envelope(1)


def test_a_failed_rollback_after_a_full_disk_leaves_the_outcome_unknown(sqlite: SqliteMetastore) -> None:
    make_fail(sqlite, "_writer", "rollback", sqlite3.SQLITE_IOERR_WRITE, "SQLITE_IOERR_WRITE")
    make_fail(sqlite, "_writer", "update store", sqlite3.SQLITE_FULL, "SQLITE_FULL")
    with pytest.raises(CommitUnknown):
        sqlite.commit(transaction(row("a", 1)))
    assert not sqlite.writable


def test_an_io_error_in_a_checkpoint_closes_it_for_life(sqlite: SqliteMetastore) -> None:
    make_fail(sqlite, "_writer", "pragma wal_checkpoint", sqlite3.SQLITE_IOERR_WRITE, "SQLITE_IOERR_WRITE")
    with pytest.raises(CommitUnknown):
        sqlite.checkpoint()
    with pytest.raises(MetastoreClosed):
        sqlite.commit(transaction(row("a", 1)))
    sqlite.checkpoint()  # does nothing any more


def test_a_read_that_the_disk_refuses_is_an_io_error_and_not_damage(sqlite: SqliteMetastore) -> None:
    make_fail(sqlite, "_db", "select", sqlite3.SQLITE_IOERR_READ, "SQLITE_IOERR_READ")
    with pytest.raises(IoError, match="SQLITE_IOERR_READ"):
        sqlite.get(SPACE, "a")


def test_readers_cannot_write(sqlite: SqliteMetastore) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        sqlite._db.execute("update store set writer=1")


def test_closing_leaves_no_descriptor(path: str) -> None:
    before = open_descriptors()
    with closing(SqliteMetastore(path)) as metastore:
        metastore.commit(transaction(row("a", 1)))
        assert len(open_descriptors()) > len(before)
    assert open_descriptors() == before
