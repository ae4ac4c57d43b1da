"""Of one thing no plural is said."""

from __future__ import annotations

from zstor_local.counted import counted
from zstor_local.store.rebuild.report import Report
from zstor_local.store.scrubrow import Found


def test_a_count_and_its_noun_agree() -> None:
    assert [counted(number, "share") for number in (0, 1, 2, 1_000)] == ["0 shares", "1 share", "2 shares", "1,000 shares"]
    assert [counted(number, "entry", "entries") for number in (1, 2)] == ["1 entry", "2 entries"]


def test_a_scrub_that_found_one_of_each_says_so() -> None:
    assert Found(1, 1, 1, 1, 1, 1, 1, 1, 1, 1).told() == (
        "1 object looked at; 1 bad share; 1 object unreadable; 1 record given back to shards; 1 stray share freed; "
        "1 share that no record names; 1 key that only a log knows; 1 record of the metastore brought back; "
        "1 record of the metastore that does not open"
    )
    assert Found(objects=2, bad_shares=1_000).told() == "2 objects looked at; 1,000 bad shares"


def test_a_rebuild_that_lost_one_of_each_says_so() -> None:
    assert Report(damaged=1, unreadable=["a"], older=["b"], ambiguous=["c"]).loss == [
        "1 log entry holds a record that does not open",
        "1 object has too few shares: 'a'",
        "1 object came back in an older version: 'b'",
        "1 key was written twice under one sequence number: 'c'",
    ]
