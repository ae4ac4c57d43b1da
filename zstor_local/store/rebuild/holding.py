"""Which shares of a version lie where its record says. Nothing of them is read: a check does that."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from zstor_local.model.ids import ShareId, Version
from zstor_local.model.record import ObjectRecord
from zstor_local.shards.base import Shard, ShardError
from zstor_local.shards.log_index import IndexDamaged, LogIndex


class Holding:
    """Shares on the shards of a rebuild, by shard number. Of directories the index of their logs knows the small ones."""

    def __init__(self, shards: Mapping[int, Shard], index: LogIndex) -> None:
        self._shards = shards
        self._index = index
        self._indexed = {number for number, shard in shards.items() if shard.on_disk is not None}
        self._expected: list[Mapping[Version, Collection[tuple[int, int]]]] = [{}, {}]

    def expect(self, versions: Sequence[Version]) -> None:
        """These will be asked for next, and perhaps once more those before them: small shares are looked up together."""
        try:
            held: Mapping[Version, Collection[tuple[int, int]]] = self._index.held(versions)
        except IndexDamaged:
            held = {}  # each is asked for alone: the part of the index where it stands may be whole
        self._expected = [held, self._expected[0]]

    def lacking(self, version: Version, record: ObjectRecord) -> list[int]:
        """The indices of the shares that are not where the record says."""
        small = record.small
        held = (self._expected[0].get(version) or self._expected[1].get(version, ())) if small else ()
        # An index may know shards that are not there.
        known = held if self._indexed.issuperset(record.placement) else [each for each in held if each[0] in self._indexed]
        missing = [index for index, number in enumerate(record.placement) if (number, index) not in known]
        return [index for index in missing if not self._has(record.placement[index], ShareId(version, index), small=small)]

    def _has(self, number: int, share: ShareId, *, small: bool) -> bool:
        shard = self._shards.get(number)
        if shard is None:
            return False
        try:
            return shard.has(share, small=small)
        except ShardError:
            return False
