"""What a shard may tell of its shares and its log, at most: a server that makes things up could go on for ever."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

from zstor_local.metastore.base import Metastore
from zstor_local.shards.base import Shard, ShardError

TIMES: Final = 4  # that an entry may lie in a log: what is owed, or copied by a compaction that broke off, is there again
ALWAYS: Final = 100_000

T = TypeVar("T")


def no_more_than_written(shard: Shard, told: Iterable[T], metastore: Metastore) -> Iterator[T]:
    """What the shard tells of, as long as this store may have written so much: each record of it bears another sequence.

    ShardError behind that.
    """
    most = ALWAYS + TIMES * metastore.state().sequence
    for count, each in enumerate(told):
        if count >= most:
            raise ShardError("failed", f"{shard.url} tells of more than this store ever wrote")
        yield each
