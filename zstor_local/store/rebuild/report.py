"""What a rebuild found, and why something may be missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from zstor_local.counted import counted

_SHOWN: Final = 5  # keys in a line


@dataclass(slots=True)
class Report:
    """What a rebuild found. `loss` says why something may be missing; empty if nothing can be."""

    objects: int = 0
    bytes: int = 0
    deleted: int = 0
    records: int = 0
    damaged: int = 0  # records that do not open, and for which no other copy does
    rotated: bool = False  # the master key was replaced, after the one at hand was written
    seen: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)  # shards whose disks cannot read all of their logs
    unreadable: list[str] = field(default_factory=list)  # keys of which fewer than k shares were found
    older: list[str] = field(default_factory=list)  # keys for which an older version came back, as the newest cannot be read
    ambiguous: list[str] = field(default_factory=list)  # keys with two records of one sequence: that on more shards was taken

    @property
    def loss(self) -> list[str]:
        found = []
        if self.unseen:
            found.append(f"not seen: shard {', '.join(self.unseen)}; what only they know is missing, deletes among it")
        if len(self.unread) > 1 or (self.unread and self.unread == self.seen):  # else another log holds the same
            shards = ", ".join(self.unread)
            found.append(f"the disk cannot read all of the log of shard {shards}; what is told only there is missing, deletes among it")
        if self.damaged:
            why = "; the master key was rotated, the newer one opens more" if self.rotated else ""
            found.append(f"{counted(self.damaged, 'log entry holds', 'log entries hold')} a record that does not open{why}")
        if self.unreadable:
            found.append(f"{counted(len(self.unreadable), 'object has', 'objects have')} too few shares: {_some(self.unreadable)}")
        if self.older:
            found.append(f"{counted(len(self.older), 'object')} came back in an older version: {_some(self.older)}")
        if self.ambiguous:
            keys = counted(len(self.ambiguous), "key was", "keys were")
            found.append(f"{keys} written twice under one sequence number: {_some(self.ambiguous)}")
        return found


def _some(keys: list[str]) -> str:
    shown = ", ".join(repr(key) for key in keys[:_SHOWN])
    return shown + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
