"""The shards that a rebuild reads, and the keys that open what lies on them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from zstor_local.coding.keys import KeyRing
from zstor_local.config import Config
from zstor_local.model.ids import StoreId
from zstor_local.model.masterkey import MasterKey
from zstor_local.model.record import Envelope
from zstor_local.model.storewide import ShardEntry, ShardsRecord
from zstor_local.runtime import Runtime
from zstor_local.shards.base import Shard, ShardError
from zstor_local.shards.marker import BadMarker
from zstor_local.shards.opening import ShardOpener
from zstor_local.store.create import shard_places
from zstor_local.store.faults import StoreFault
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.unlocking import older_keys

log = logging.getLogger("zstor.store")


def record_sealer(runtime: Runtime, masters: list[MasterKey], envelopes: Iterable[Envelope]) -> RecordSealer:
    """What opens the records of the store, by its records of older keys if there are some."""
    found = older_keys(runtime, masters, envelopes)
    master, older = (masters[-1], ()) if found is None else (found[0], found[1].older)
    return RecordSealer(KeyRing(master.key, master.store_id, older), master.store_id, runtime.randomness)


def keys_in_logs(config: Config, masters: list[MasterKey], opener: ShardOpener) -> Iterator[Envelope]:
    """Records of older keys, where the master key alone, which the opener has, does not open the marker of a shard."""
    for place in shard_places(config):
        with suppress(ShardError):
            with suppress(BadMarker):
                if opener.identify(place.root) is None or len(masters) == 1:
                    continue
            yield from opener.older_keys(place.root)


def open_shards(config: Config, opener: ShardOpener, store_id: StoreId, opened: ExitStack) -> dict[int, Shard]:
    """Every place of the configuration that is a shard of the key's store."""
    found: dict[int, Shard] = {}
    left_out: list[str] = []
    for place in shard_places(config):
        try:
            identity = opener.identify(place.root)
            if identity is None:
                continue
            marker = identity.marker
            if marker.number in found:
                raise StoreFault(
                    f"both {found[marker.number].url} and {place.root} are shard {place.id}", "one is a copy: take it away"
                )
            shard = opener.open(ShardEntry(marker.number, marker.uid, place.id, place.root, place.group), place.root)
        except (BadMarker, ShardError) as error:
            log.warning("shard %s is left out, as it cannot be read: %s", place.id, error)
            left_out.append(f"\n  shard {place.id}: {error}")
            continue
        opened.callback(shard.close)
        found[marker.number] = shard
    if not found:
        raise StoreFault(
            f"there is no shard of store {store_id.hex()} where the configuration looks{''.join(left_out)}",
            "mount the disks, or name them in [[shard]]; at least one has to be there that was when the master key was last replaced",
        )
    return found


@dataclass(slots=True)
class Opening:
    """The shards that are read: by number those that the newest list of shards names, as far as they are there."""

    opener: ShardOpener
    shards: dict[int, Shard]
    opened: ExitStack
    tried: set[int] = field(default_factory=set)

    def leave_out(self, failed: Mapping[int, ShardError]) -> None:
        """Close these, which cannot be read: they count as not seen."""
        for number, error in failed.items():
            shard = self.shards.pop(number)
            log.warning("shard %s is left out, as it cannot be read: %s", shard.id, error)
            self.tried.add(number)
            shard.close()

    def follow(self, listed: ShardsRecord) -> bool:
        """Open what the list names and the configuration does not, and leave out what is no shard any more. Whether that changes it."""
        entries = {entry.number: entry for entry in listed.shards}
        strangers = [n for n, shard in self.shards.items() if n not in entries or shard.entry.uid != entries[n].uid]
        for number in strangers:
            self.shards.pop(number).close()
        new = [entry for entry in listed.shards if entry.number not in self.shards and entry.number not in self.tried and entry.added]
        for entry in new:
            self.tried.add(entry.number)
            with suppress(ShardError):
                self.shards[entry.number] = shard = self.opener.open(entry, entry.url)
                self.opened.callback(shard.close)
        return bool(strangers) or any(entry.number in self.shards for entry in new)
