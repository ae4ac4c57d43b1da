"""What a scrub remembers over restarts: how far it is, what it has found, whether it is paused. A store-wide row, CBOR.

The position names the last object that was looked at and the shards whose part is done, by number: shards may come and go, and objects
too, and nothing that was there all along is passed over.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, field, fields
from typing import Final, TypeGuard

from zstor_local.counted import counted
from zstor_local.errors import CorruptRecord
from zstor_local.model.fields import decode, encode

# What people are told of each thing that was found, of one and of several.
WORDS: Final = {
    "bad_shares": ("bad share", "bad shares"),
    "unreadable": ("object unreadable", "objects unreadable"),
    "lacking_records": ("record given back to shards", "records given back to shards"),
    "strays_freed": ("stray share freed", "stray shares freed"),
    "strays_kept": ("share that no record names", "shares that no record names"),
    "unknown_keys": ("key that only a log knows", "keys that only a log knows"),
    "records_mended": ("record of the metastore brought back", "records of the metastore brought back"),
    "records_damaged": ("record of the metastore that does not open", "records of the metastore that do not open"),
}


@dataclass(slots=True)
class Found:
    """What a pass has looked at and found. Bad shares and lacking records are made anew; what is unknown or kept is only told."""

    objects: int = 0
    bytes: int = 0  # of shares
    bad_shares: int = 0
    unreadable: int = 0  # objects with a chunk of which fewer than k blocks are good, or whose record does not open
    lacking_records: int = 0  # copies that a shard's log had not
    strays_freed: int = 0  # shares that were left behind
    strays_kept: int = 0  # shares that no record names, and nothing later either
    unknown_keys: int = 0  # that a log has and the metastore has not
    records_mended: int = 0  # rows of the metastore that did not open, made anew from the logs
    records_damaged: int = 0  # those of which no shard that is there has a good copy

    @property
    def damage(self) -> bool:
        """Whether a person should look."""
        return bool(self.unreadable or self.strays_kept or self.unknown_keys or self.records_damaged)

    def told(self) -> str:
        """For people."""
        found = [counted(count, *words) for name, words in WORDS.items() if (count := getattr(self, name))]
        return "; ".join([f"{counted(self.objects, 'object')} looked at", *(found or ["all well"])])


@dataclass(slots=True)
class ScrubRow:
    """Epochs in microseconds; `started` None before the first pass, `ended` None while one goes on."""

    started: int | None = None
    ended: int | None = None
    last_ended: int | None = None  # of the last pass that came to its end
    paused: bool = False
    by_hand: bool = False
    namespace: str = ""
    key: str | None = None
    objects_done: bool = False
    shards: set[int] = field(default_factory=set)
    found: Found = field(default_factory=Found)

    @property
    def under_way(self) -> bool:
        return self.started is not None and self.ended is None

    def encode(self) -> bytes:
        plain: dict[int, object] = {0: 1, 4: self.paused, 5: self.by_hand, 6: self.namespace, 8: self.objects_done}
        optional = {1: self.started, 2: self.ended, 3: self.last_ended, 7: self.key}
        plain.update((number, value) for number, value in optional.items() if value is not None)
        plain[9] = sorted(self.shards)
        plain[10] = list(astuple(self.found))
        return encode(plain)

    @classmethod
    def decode(cls, data: bytes) -> ScrubRow:
        """The reverse of `encode`; CorruptRecord for anything else."""
        plain = decode(data)
        found, shards, key = plain.get(10), plain.get(9), plain.get(7)
        if plain.get(0) != 1 or not _numbers(found) or not _numbers(shards) or not isinstance(key, str | None):
            raise CorruptRecord("the position of the scrub is malformed")
        return cls(
            started=_epoch(plain.get(1)),
            ended=_epoch(plain.get(2)),
            last_ended=_epoch(plain.get(3)),
            paused=plain.get(4) is True,
            by_hand=plain.get(5) is True,
            namespace=str(plain.get(6, "")),
            key=key,
            objects_done=plain.get(8) is True,
            shards=set(shards),
            found=Found(*found[: len(fields(Found))]),
        )


def _numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(each) is int for each in value)


def _epoch(value: object) -> int | None:
    return value if type(value) is int else None
