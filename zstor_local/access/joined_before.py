"""What a reader knows of the records that newer ones stand before: those may be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from zstor_local import limits
from zstor_local.model.record import Envelope

BEFORE_BYTES: Final = 8 * limits.MIB  # of records that newer ones stand before
_COST_BYTES: Final = 500  # of each, and of a key, beside the sealed bytes


@dataclass(frozen=True, slots=True)
class Older:
    """Records of a key below the one that is shown, the newest first. `whole`: nothing else was heard of it."""

    records: Sequence[Envelope] = ()
    whole: bool = True

    @property
    def size(self) -> int:
        return _COST_BYTES + sum(_COST_BYTES + len(each.sealed) for each in self.records)


class Before:
    """The older records of the keys that changed last, as many as there is room for."""

    def __init__(self) -> None:
        self._of: dict[str, Older] = {}
        self._size = 0

    def get(self, key: str) -> Older | None:
        """None where nothing is known any more."""
        return self._of.get(key)

    def put(self, key: str, older: Older) -> None:
        if (before := self._of.pop(key, None)) is not None:
            self._size -= before.size
        if len(older.records) > limits.GROUP_CHANGES:
            older = Older(older.records[: limits.GROUP_CHANGES], whole=False)  # as many as can be taken back together
        self._of[key] = older
        self._size += older.size
        while self._size > BEFORE_BYTES:
            self._size -= self._of.pop(next(iter(self._of))).size
