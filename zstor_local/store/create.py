"""A new store: key, shards, first records. Nothing counts before the key has its final name; an interrupted init is taken up again.

1  master.key.new, fsynced with its directory     ← from here on a start goes on with this init
2  each shard's directories and marker
3  the first records in every shard's log, flushed
4  the metastore with the same records, renamed into place
5  master.key.new → master.key                    ← the store exists
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from zstor_local.coding.keys import KeyHasher, KeyRing, expand
from zstor_local.config import Config
from zstor_local.counted import counted
from zstor_local.errors import errno_text
from zstor_local.metastore.base import CommitRefused, CommitUnknown, Row, StoreState, Transaction
from zstor_local.model.ids import ID_BYTES, ShardUid, StoreId
from zstor_local.model.masterkey import KEY_BYTES, UNFINISHED, MasterKey
from zstor_local.model.record import NO_VERSION, STORE_WIDE, Envelope, Kind
from zstor_local.model.storewide import Record, ShardEntry, ShardsRecord, StoreRecord
from zstor_local.runtime import Runtime
from zstor_local.shards.base import Entry, ShardError
from zstor_local.shards.directory import marker_store
from zstor_local.shards.log_index import LogIndex
from zstor_local.shards.marker import BadMarker, Marker
from zstor_local.shards.opening import ShardOpener
from zstor_local.store.engines import Engines
from zstor_local.store.faults import StoreFault
from zstor_local.store.keyfile import (
    finish_key,
    key_exists,
    make_directories,
    read_key,
    settle_unfinished_key,
    unfinished_key,
    write_unfinished_key,
)
from zstor_local.store.sealing import RecordSealer

STORE_ROW: Final = "store"
SHARDS_ROW: Final = "shards"
_HINT: Final = "mend that, then start again: it goes on from there"
FIRST_SEQUENCES: Final = 2  # of the first records: an init that is taken up again gives them anew, and they say the same

Found = Literal["nothing", "unfinished", "store"]


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """A shard as the configuration names it; `root` is its directory or URL, `url` what the list of shards says of that."""

    id: str
    root: str
    group: str
    url: str


def shard_places(config: Config) -> list[ShardPlace]:
    """The configured shards, or the default store's directories."""
    if not config.shards:
        return [ShardPlace(str(i), f"{config.store}/shards/{i}", "", f"shards/{i}") for i in range(config.policy.m)]
    roots = [_root(shard.url) for shard in config.shards]
    return [ShardPlace(shard.id, root, shard.group or "", root) for shard, root in zip(config.shards, roots, strict=True)]


def _root(url: str) -> str:
    """A directory's path, or the URL of a shard on another machine."""
    path = url.removeprefix("file://")
    return path.rstrip("/") if path.startswith("/") else url


def _check_number(config: Config) -> None:
    """StoreFault where there are fewer shards than an object has shares: of a new store. One that has lost some goes on."""
    if 0 < len(config.shards) < config.policy.m:
        raise StoreFault(
            f"the policy has m = {config.policy.m} shares and the configuration {counted(len(config.shards), 'shard')}",
            "name more shards, or lower m in [policy]",
        )


def look(runtime: Runtime, engines: Engines, config: Config) -> Found:
    """What is there. StoreFault if a part of a store is there without the others: a disk may not be mounted."""
    must_be_known(config)
    files = runtime.files
    unfinished = unfinished_key(files, config.master_key_file) is not None  # first: it becomes the key, perhaps while we look
    key = key_exists(files, config.master_key_file)
    metastore = engines.metastore_exists(config.store)
    if key and metastore:
        return "store"
    if key:
        raise StoreFault(
            f"there is a master key ({config.master_key_file}) but no store at {config.store}",
            "mount the disk that holds it, or set `store` in the configuration; if only the metastore is lost: `zstor rebuild`",
        )
    if unfinished:
        return "unfinished"
    if metastore:
        raise StoreFault(
            f"there is a store at {config.store} but no master key at {config.master_key_file}",
            "bring the key file back, or restore it with `zstor key restore` from the words of `zstor key backup`",
        )
    places = [place for place in shard_places(config) if place.root.startswith("/")]  # a shard server tells strangers nothing
    _check_apart(config, places)
    for place in places:
        if (store := marker_store(files, place.root)) is not None:
            raise StoreFault(
                f"{place.root} is a shard of store {store.hex()}, but there is neither its key nor its metastore",
                "bring both back, or start with other directories",
            )
    _check_number(config)
    return "nothing"


def _check_apart(config: Config, places: Sequence[ShardPlace]) -> None:
    """StoreFault where one part of the store would lie within another: what is copied or deleted with the one takes the other along.

    A store that is there already is not asked: it goes on as it is.
    """
    outer = [(place.root, f"the directory of shard {place.id}") for place in places]
    inner = [(place.root, f"shard {place.id}") for place in places]
    inner += [(config.store, "the store"), (config.master_key_file, "the master key")]
    for path, name in inner:
        within = [*outer, (config.store, "the store")] if path == config.master_key_file else outer
        for directory, whose in within:
            if path.startswith(f"{directory}/"):
                raise StoreFault(f"{name} ({path}) would lie within {whose}, {directory}", "give each a place outside of the others")


def must_be_known(config: Config) -> None:
    """StoreFault for settings of engines that this version does not have: nothing is ignored in silence."""
    if config.metastore_url is not None:
        raise StoreFault(f"metastore {config.metastore_url}: this version keeps its records in the store", "leave [metastore] out")


def create_store(runtime: Runtime, engines: Engines, config: Config) -> StoreId:
    """Make the store, or finish an init that was interrupted. Call `look` first. Returns its id.

    StoreFault if the disk does not take it; the next start goes on from there.
    """
    try:
        return _create(runtime, engines, config)
    except (OSError, ShardError, CommitRefused, CommitUnknown) as error:
        reason = errno_text(error) if isinstance(error, OSError) else error
        raise StoreFault(f"the store at {config.store} cannot be made: {reason}", _HINT) from error


def _create(runtime: Runtime, engines: Engines, config: Config) -> StoreId:
    files = runtime.files
    _check_number(config)
    places = shard_places(config)
    make_directories(files, os.path.dirname(config.master_key_file))
    make_directories(files, config.store)
    if not config.shards:
        make_directories(files, f"{config.store}/shards")
    master = _begin_key(runtime, config.master_key_file)
    if not engines.metastore_exists(config.store):
        _fill(runtime, engines, config, master, places)
    finish_key(files, config.master_key_file)
    return master.store_id


def begin_key(runtime: Runtime, engines: Engines, config: Config) -> MasterKey:
    """The store's master key; where there is no store yet, the one that its first start will take. StoreFault as `look` says."""
    if look(runtime, engines, config) == "store":
        return read_key(runtime.files, config.master_key_file)
    make_directories(runtime.files, os.path.dirname(config.master_key_file))
    return _begin_key(runtime, config.master_key_file)


def _begin_key(runtime: Runtime, path: str) -> MasterKey:
    """Step 1."""
    if key_exists(runtime.files, path + UNFINISHED):
        settle_unfinished_key(runtime.files, path)
    master = unfinished_key(runtime.files, path)
    if master is None:
        master = MasterKey(StoreId(runtime.randomness.bytes(ID_BYTES)), runtime.randomness.bytes(KEY_BYTES))
        write_unfinished_key(runtime.files, path, master)
    return master


def _fill(runtime: Runtime, engines: Engines, config: Config, master: MasterKey, places: list[ShardPlace]) -> None:
    """Steps 2 to 4. Everything but salts and times follows from the master key, so that doing it again gives the same store."""
    store_id = master.store_id
    sealer = RecordSealer(KeyRing(master.key, store_id), store_id, runtime.randomness)
    entries = [_entry(master, number, place) for number, place in enumerate(places)]
    rows = first_rows(sealer, master, entries, runtime.clock.now())
    opener = ShardOpener(engines.shard_engines(runtime, store_id, sealer.keys(STORE_WIDE), LogIndex(":memory:")))
    for entry, place in zip(entries, places, strict=True):
        identity = Marker(store_id, ShardUid(entry.uid), entry.number, runtime.clock.now())
        try:
            opener.create(place.root, identity)
        except BadMarker as error:
            raise StoreFault(f"{place.root}: {error}", "start with other directories") from None
        shard = opener.open(entry, place.root)
        try:
            shard.start(1, runtime.randomness)
            shard.append([Entry(row.envelope) for row in rows], 0)
            shard.flush()
        finally:
            shard.close()
    last = rows[-1].envelope.sequence
    engines.create_metastore(config.store, store_id, [Transaction(StoreState(sequence=last, reserved=last, writer=1), rows=rows)])


def _entry(master: MasterKey, number: int, place: ShardPlace) -> ShardEntry:
    uid = expand(master.key, b"zstor/1 shard uid" + number.to_bytes(2, "little"), ID_BYTES)
    return ShardEntry(number, uid, place.id, place.url, place.group)


def first_rows(sealer: RecordSealer, master: MasterKey, entries: list[ShardEntry], now: int) -> list[Row]:
    """The store's own record and the list of its shards, sequences 1 and 2."""
    hash_key = expand(master.key, b"zstor/1 hash key of init")
    records: list[tuple[str, Kind, Record]] = [
        (STORE_ROW, Kind.STORE, StoreRecord(hash_key, now)),
        (SHARDS_ROW, Kind.SHARDS, ShardsRecord(tuple(entries))),
    ]
    return [
        Row(STORE_WIDE, name, _seal(sealer, KeyHasher(hash_key), kind, name, sequence, record))
        for sequence, (name, kind, record) in enumerate(records, 1)
    ]


def _seal(sealer: RecordSealer, hasher: KeyHasher, kind: Kind, name: str, sequence: int, record: Record) -> Envelope:
    return sealer.seal(kind, STORE_WIDE, hasher.key_hash(STORE_WIDE, name), NO_VERSION, sequence, record.encode())
