"""The index of logs finds an entry in a long log as fast as in a short one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from zstor_local.content.logs.page_index import PageIndex
from zstor_local.formats.cid import raw


@pytest.mark.parametrize(
    "look",
    [
        lambda index: index.page("log", raw(b"")),
        lambda index: index.find("log", b"hash"),
        lambda index: index.uses("log", raw(b"")),
        lambda index: index.page_with("log", 1),
    ],
    ids=["page", "find", "uses", "page_with"],
)
def test_no_look_goes_through_the_whole_log(look: Callable[[PageIndex], object], tmp_path: Path) -> None:
    index = PageIndex(str(tmp_path / "logs.sqlite"))
    index.page("log", raw(b""))  # the log has its number
    asked: list[str] = []
    connection = index._connection
    assert connection is not None
    connection.set_trace_callback(asked.append)
    look(index)
    connection.set_trace_callback(None)
    plans = [row[3] for query in asked for row in connection.execute(f"explain query plan {query}")]
    index.close()
    assert plans
    for plan in plans:
        assert "(log=? AND " in plan, plan  # SQLite could do with the log's number alone, and look at every entry
