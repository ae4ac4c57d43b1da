"""An index that can be thrown away: whatever lies in its file, it opens."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.descriptors import open_descriptors
from zstor_local.index_file import IndexFormat, give_up, open_index, remove_index, transaction

OLD = IndexFormat(index="the index", number=1, tables="create table word(word text primary key) without rowid")
NEW = IndexFormat(
    index="the index",
    number=2,
    tables="create table word(word text primary key, count integer not null) without rowid",
    older={1: "alter table word add count integer not null default 0"},
)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    before = open_descriptors()
    yield str(tmp_path / "words.sqlite")
    assert open_descriptors() == before


def words(db: sqlite3.Connection) -> list[str]:
    return [word for (word,) in db.execute("select word from word order by word")]


def write(path: str, *new: str, form: IndexFormat = OLD) -> None:
    with closing(open_index(path, form)) as db, transaction(db):
        db.executemany("insert into word(word) values(?)", [(word,) for word in new])


def read(path: str, form: IndexFormat = OLD) -> list[str]:
    with closing(open_index(path, form)) as db:
        return words(db)


def tampered(change: str) -> Callable[[str], None]:
    def tamper(path: str) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute(change)

    return tamper


def given_up(path: str) -> None:
    with closing(open_index(path, OLD)) as db:
        give_up(db)


def test_what_was_written_is_there_the_next_time(path: str) -> None:
    write(path, "one", "two")
    write(path, "three")
    assert read(path) == ["one", "three", "two"]
    remove_index(path)
    assert read(path) == []


def test_an_older_format_is_taken_over(path: str) -> None:
    write(path, "one")
    for _ in range(2):
        assert read(path, NEW) == ["one"]
    write(path, "two", form=NEW)
    assert read(path, OLD) == []  # of a newer one nothing is known


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: Path(path).write_bytes(b"garbage"),
        lambda path: Path(path).write_bytes(b"garbage" * 2_000),
        lambda path: Path(path).write_bytes(bytes(9_000)),
        tampered("pragma user_version=99"),
        tampered("pragma user_version=0"),  # tables, and no format: it was not finished
        given_up,
    ],
    ids=["short", "long", "zeros", "other format", "no format", "given up"],
)
def test_what_is_no_index_is_begun_anew(path: str, damage: Callable[[str], None]) -> None:
    write(path, "one")
    damage(path)
    write(path, "two")
    assert read(path) == ["two"]


def no_lies(db: sqlite3.Connection) -> None:
    if "lie" in words(db):
        raise TypeError


def test_what_whoever_opens_it_cannot_read_is_begun_anew(path: str) -> None:
    write(path, "lie")
    with closing(open_index(path, OLD, no_lies)) as db:
        assert words(db) == []
    write(path, "truth")
    with closing(open_index(path, OLD, no_lies)) as db:
        assert words(db) == ["truth"]


def test_where_no_file_can_be_made_it_is_in_memory(tmp_path: Path) -> None:
    with closing(open_index(str(tmp_path / "no such directory" / "words.sqlite"), OLD)) as db:
        with transaction(db):
            db.execute("insert into word values('one')")
        assert words(db) == ["one"]


def test_where_a_damaged_file_cannot_be_taken_away_it_is_in_memory(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, "lie")
    monkeypatch.setattr("zstor_local.index_file.remove_index", lambda path: None)
    with closing(open_index(path, OLD, no_lies)) as db:
        assert words(db) == []
    assert read(path) == ["lie"]


def test_a_transaction_that_fails_leaves_nothing_and_another_may_follow(path: str) -> None:
    with closing(open_index(path, OLD)) as db:
        with pytest.raises(sqlite3.IntegrityError), transaction(db):
            db.executemany("insert into word values(?)", [("one",), ("two",), ("one",)])
        assert words(db) == []
        with transaction(db):
            db.execute("insert into word values('one')")
    assert read(path) == ["one"]
