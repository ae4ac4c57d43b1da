"""Where the store looks for each of its shards.

What the configuration names as a shard's place counts alone; so do a default store's own directories, which the list of shards
names relative to the store: a copy of a store finds its own copies and never takes the original's shards. A shard that was added
while the store was in use lies where the list says, unless the store itself has come to another place since.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping

from zstor_local.config import Config
from zstor_local.model.storewide import ShardEntry, ShardsRecord
from zstor_local.shards.base import Shard, ShardError
from zstor_local.shards.marker import BadMarker
from zstor_local.shards.opening import Identified, ShardOpener
from zstor_local.shards.pool import Absent, ShardPool
from zstor_local.store.faults import StoreFault

log = logging.getLogger("zstor.store")


def place_of(config: Config, record: ShardsRecord, entry: ShardEntry) -> str:
    """The URL at which a shard is opened; ShardError where only a person can tell."""
    if entry.added:
        if record.home not in ("", config.store):
            raise ShardError(
                "missing",
                f"this store was at {record.home} when {entry.url} was added; if it was moved and not copied, "
                f"`zstor shard add {entry.url}` takes that place again",
            )
        return entry.url
    for shard in config.shards:
        if shard.id == entry.id:
            return shard.url
    if not entry.url.startswith("/") and "://" not in entry.url:
        return f"{config.store}/{entry.url}"
    if not config.shards and entry.url.endswith(f"/shards/{entry.id}"):  # a default store of format 1's first days, wherever it is now
        return f"{config.store}/shards/{entry.id}"
    return entry.url


def check_names(config: Config, record: ShardsRecord) -> list[str]:
    """The configured shards that the store does not have. StoreFault unless they may have been removed."""
    known = {entry.id for entry in record.shards}
    unknown = [shard.id for shard in config.shards if shard.id not in known]
    if unknown and len(record.shards) == record.next_number:
        raise StoreFault(
            f"the configuration names shard {unknown[0]}, which this store does not have",
            f"its shards are {', '.join(entry.id for entry in record.shards)}; `zstor shard add` gives it a new one",
        )
    return unknown


class Places:
    """The list of shards as it is now, and how each is opened at its place."""

    def __init__(self, config: Config, opener: ShardOpener, record: ShardsRecord) -> None:
        self._config = config
        self.home = config.store
        self.opener = opener
        self.record = record

    def open_all(self) -> ShardPool:
        """Every shard, as far as it is there."""
        marked = self._marked()
        slots: list[Shard | Absent] = []
        for entry in self.record.shards:
            try:
                slots.append(self._open(entry, marked))
            except ShardError as error:
                log.warning("shard %s: %s", entry.id, error)
                slots.append(Absent(entry, error.state, str(error)))
        return ShardPool([slot for slot in slots if not isinstance(slot, Absent)], [slot for slot in slots if isinstance(slot, Absent)])

    def open(self, entry: ShardEntry) -> Shard:
        """One shard, or ShardError with the reason."""
        place = place_of(self._config, self.record, entry)
        return self._open(entry, {}) if self._identify(place) is None else self._open(entry, self._marked())

    def place(self, entry: ShardEntry) -> str:
        """Where the shard is looked for, for people."""
        try:
            return place_of(self._config, self.record, entry)
        except ShardError:
            return entry.url

    def on_servers(self) -> list[int]:
        """The numbers of the shards that lie with shard servers."""
        places = {entry.number: self.place(entry).removeprefix("file://") for entry in self.record.shards}
        return [number for number, place in places.items() if not place.startswith("/")]

    def _open(self, entry: ShardEntry, marked: Mapping[bytes, Mapping[Hashable, str]]) -> Shard:
        """`marked` tells at which places each identity was seen; of two with one identity neither is opened."""
        places = sorted(marked.get(entry.uid, {}).values())
        if len(places) > 1:
            raise ShardError("failed", f"{' and '.join(places)} both are shard {entry.id}: one is a copy; take it away")
        return self.opener.open(entry, place_of(self._config, self.record, entry))

    def _marked(self) -> Mapping[bytes, Mapping[Hashable, str]]:
        found: dict[bytes, dict[Hashable, str]] = {}
        for place in dict.fromkeys(self.place(entry) for entry in self.record.shards):
            if (identified := self._identify(place)) is not None:
                found.setdefault(identified.marker.uid, {})[identified.where] = place
        return found

    def _identify(self, place: str) -> Identified | None:
        try:
            return self.opener.identify(place)
        except (ShardError, BadMarker):
            return None
