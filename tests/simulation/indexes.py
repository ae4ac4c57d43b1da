"""Indexes beside the simulated disks, as SQLite would leave them: after a kill as the last commit made them, after a power loss as one
of the last did, and anybody may throw them away.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tests.simulation.world import World
from zstor_local.shards.log_index import LogIndex, Progress

INDEXES: Final = "indexes"  # a survivor of the world
LATE_COMMITS: Final = 4  # of an index that a power loss may take back


@dataclass
class Indexes:
    """What SQLite committed of each index, by path, oldest first; and how many lives of a shard server's owner there were."""

    commits: dict[str, list[bytes]] = field(default_factory=dict)
    lives: int = 0

    def copy(self) -> Indexes:
        return Indexes({path: commits.copy() for path, commits in self.commits.items()}, self.lives)

    def lose(self, seed: int) -> None:
        """A power loss."""
        draw = random.Random(seed)
        for commits in self.commits.values():
            del commits[len(commits) - draw.randrange(min(LATE_COMMITS, len(commits) + 1)) :]

    def put_back(self, seed: int) -> None:
        """Each index is as some earlier commit left it, or gone: a file of it was lost, or an older copy put back."""
        draw = random.Random(seed)
        for commits in self.commits.values():
            back = draw.choice([LATE_COMMITS, 4 * LATE_COMMITS, len(commits)])
            del commits[max(0, len(commits) - draw.randrange(back + 1)) :]

    def keeper(self, path: str, database: sqlite3.Connection) -> Callable[[], None]:
        """Give an empty database what was committed last. What is returned keeps what it is then as the next commit."""
        if before := self.commits.get(path):
            database.deserialize(before[-1])

        def keep() -> None:
            commits, now = self.commits.setdefault(path, []), database.serialize()
            if commits[-1:] != [now]:
                commits.append(now)

        return keep


def indexes(world: World) -> Indexes:
    found = world.survivors.setdefault(INDEXES, Indexes())
    assert isinstance(found, Indexes)
    return found


class KeptLogIndex(LogIndex):
    def __init__(self, kept: Indexes, path: str) -> None:
        super().__init__(":memory:")
        self._keep = kept.keeper(path, self._db)
        self._progress = {number: Progress(*about) for number, *about in self._db.execute("select * from progress")}

    def flush(self) -> None:
        super().flush()
        self._keep()
