"""Opening a store: its lock, metastore, keys and shards; what a crash left is recovered, then its tasks run until it is left."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager, suppress

import trio

from zstor_local.coding.keys import KeyHasher, KeyRing
from zstor_local.config import Config
from zstor_local.errors import CorruptRecord
from zstor_local.metastore.base import Metastore, MetastoreDamaged, MetastoreInUse, MetastoreNotOpened
from zstor_local.metastore.routed import RoutedMetastore
from zstor_local.model.ids import StoreId
from zstor_local.model.record import STORE_WIDE
from zstor_local.model.storewide import ShardsRecord, StoreRecord
from zstor_local.runtime import Runtime
from zstor_local.shards.base import Shard, ShardError
from zstor_local.shards.opening import ShardOpener
from zstor_local.shards.pool import Absent, ShardPool
from zstor_local.store.committer import Committer
from zstor_local.store.core import Core
from zstor_local.store.create import SHARDS_ROW, STORE_ROW, begin_key, create_store, look
from zstor_local.store.engines import Engines
from zstor_local.store.faults import StoreFault, StoreInUse
from zstor_local.store.keyfile import make_directories, read_key
from zstor_local.store.lock import store_lock
from zstor_local.store.places import Places, check_names
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.store import Store
from zstor_local.store.suspects import Suspects
from zstor_local.store.unlocking import KEYS_ROW, ring_beside, settled_ring

log = logging.getLogger("zstor.store")


@asynccontextmanager
async def open_store(
    runtime: Runtime, engines: Engines, config: Config, *, on_created: Callable[[StoreId], None] = lambda store_id: None
) -> AsyncIterator[Store]:
    """The store, recovered and running. Left with everything committed that was accepted. StoreFault or StoreInUse if it does not open.

    The very first start creates it and says so.
    """
    with _locked(runtime, engines, config):
        # In a thread: shards on other machines are waited for.
        if (created := await runtime.threads.run_commit(_created, runtime, engines, config)) is not None:
            on_created(created)
        store = await runtime.threads.run_commit(_open, runtime, engines, config)
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await nursery.start(store.jobs.run)
                    if store.read_only is None:
                        await store.recover()
                    if store.committer.failure is None:
                        nursery.start_soon(store.committer.run)
                        await store.recover_intents()
                        await store.recover_from_removals()
                        nursery.start_soon(store.freeing.run)
                        nursery.start_soon(store.mending.run)
                        nursery.start_soon(store.compaction.run)
                        nursery.start_soon(store.scrub.run)
                        nursery.start_soon(store.removal.run)
                        nursery.start_soon(store.retiring.run)
                        store.removal.wake()
                        store.freeing.wake()
                        store.mending.wake()
                        store.rotation.go_on()
                        store.departures.resume()
                        store.rewriting.go_on()
                    nursery.start_soon(store.presence.run)
                    yield store
                finally:
                    with trio.CancelScope(shield=True):
                        await store.scrub.rest()
                    store.committer.stop()
                    with trio.CancelScope(shield=True):
                        await store.committer.ended.wait()
                    nursery.cancel_scope.cancel()
        finally:
            store.pool.close()
            store.index.close()
            store.metastore.close()


def make_store(runtime: Runtime, engines: Engines, config: Config) -> StoreId | None:
    """Make the store; None if there is one. StoreFault or StoreInUse if that cannot be."""
    if look(runtime, engines, config) == "store":
        return None
    with _locked(runtime, engines, config):
        return _created(runtime, engines, config)


def _created(runtime: Runtime, engines: Engines, config: Config) -> StoreId | None:
    """The id of the store if it had to be made. Under the lock nobody else makes it meanwhile."""
    return None if look(runtime, engines, config) == "store" else create_store(runtime, engines, config)


@contextmanager
def _locked(runtime: Runtime, engines: Engines, config: Config) -> Iterator[None]:
    """Hold the store's lock. Its directory is made, unless parts of a store are there without the others."""
    if look(runtime, engines, config) != "store":
        make_directories(runtime.files, config.store)
    with store_lock(runtime, config.store):
        yield


def _open(runtime: Runtime, engines: Engines, config: Config) -> Store:
    with ExitStack() as opened, _as_faults(config):
        metastore = engines.open_metastore(config.store)
        opened.callback(metastore.close)
        sealer, hasher, shards = _unlock(runtime, config, metastore)
        for name in check_names(config, shards):
            log.warning("the configuration names shard %s, which this store does not have any more", name)
        index = engines.open_index(config.store)
        opened.callback(index.close)
        opener = ShardOpener(engines.shard_engines(runtime, sealer.store_id, sealer.keys(STORE_WIDE), index))
        places = Places(config, opener, shards)
        pool = places.open_all()
        opened.callback(pool.close)
        suspects = Suspects()
        committer = Committer(runtime, metastore, pool, index, sealer, suspects)
        core = Core(runtime, metastore, RoutedMetastore(metastore), pool, committer, sealer, hasher, suspects)
        store = Store(core, config, places, index, _rolled_back(metastore, pool, sealer))
        opened.pop_all()
        return store


def known_keys(runtime: Runtime, engines: Engines, config: Config) -> KeyRing:
    """The keys of a store that may be in use, or of one that is not made yet: then the one that its first start will take. StoreFault
    or StoreInUse as for opening it.
    """
    master = begin_key(runtime, engines, config)
    if not engines.metastore_exists(config.store):
        return KeyRing(master.key, master.store_id)
    with _as_faults(config), closing(engines.open_metastore(config.store)) as metastore:
        return ring_beside(runtime, config.master_key_file, metastore.get(STORE_WIDE, KEYS_ROW))


@contextmanager
def _as_faults(config: Config) -> Iterator[None]:
    try:
        yield
    except MetastoreInUse as error:
        raise StoreInUse(f"{config.store}: {error}") from None
    except MetastoreNotOpened as error:
        raise StoreFault(f"{config.store}: {error}", error.hint) from None
    except MetastoreDamaged as error:
        raise StoreFault(f"{config.store}: {error.message}", error.hint or "") from None


def _unlock(runtime: Runtime, config: Config, metastore: Metastore) -> tuple[RecordSealer, KeyHasher, ShardsRecord]:
    """The store's own records, opened with the master key."""
    master = read_key(runtime.files, config.master_key_file)
    if metastore.store_id != master.store_id:
        raise StoreFault(
            f"the master key {config.master_key_file} belongs to store {master.store_id.hex()}, "
            f"the store at {config.store} is {metastore.store_id.hex()}",
            "give the key of this store, or the store of this key",
        )
    ring = settled_ring(runtime, config.master_key_file, metastore.get(STORE_WIDE, KEYS_ROW))
    sealer = RecordSealer(ring, master.store_id, runtime.randomness)
    try:
        envelopes = [metastore.get(STORE_WIDE, row) for row in (STORE_ROW, SHARDS_ROW)]
        opened = [sealer.open(envelope) for envelope in envelopes if envelope is not None]
        own, shards = StoreRecord.decode(opened[0]), ShardsRecord.decode(opened[1])
    except (CorruptRecord, IndexError):
        raise StoreFault(
            f"the store at {config.store} does not open with the master key {config.master_key_file}",
            "it is another store's key, or the metastore is damaged: give the right key, or `zstor rebuild`",
        ) from None
    return sealer, KeyHasher(own.hash_key), shards


def _rolled_back(metastore: Metastore, pool: ShardPool, sealer: RecordSealer) -> str | None:
    """Why this metastore must not be written: it is older than what the logs have seen. A server that only says so is away, and so is a
    shard that cannot tell: it is asked again before it is used.
    """
    state = metastore.state()
    if state.reserved < state.sequence:  # what was given next would be below what is there: a rebuild took the older for the newer
        return "the counters of the metastore are damaged; `zstor rebuild` makes a new one"
    for shard in pool.opened():
        try:
            committed, writer = shard.newest_committed(), shard.newest_writer()
        except ShardError as error:
            shard.close()
            pool.put(Absent(shard.entry, error.state, str(error)))
            continue
        later = committed > state.sequence or writer > state.writer
        if later and shard.on_disk is None and not _shows_later(shard, state.sequence, sealer):
            pool.put(Absent(shard.entry, "failed", f"{shard.url} tells of later writes than this store's, and has none"))
            continue
        if committed > state.sequence:
            return f"the metastore is older than shard {shard.id}: it was rolled back; `zstor rebuild` makes a new one"
        if writer > state.writer:
            return f"shard {shard.id} was written by a later daemon than this metastore knows; `zstor rebuild` makes a new one"
    return None


def _shows_later(shard: Shard, sequence: int, sealer: RecordSealer) -> bool:
    """Whether it has a record of ours with a later sequence: each life begins with one, and each commit is told of by one."""
    try:
        later = [envelope for envelope in shard.unsettled() if envelope.sequence > sequence]
    except ShardError:
        return False
    for envelope in later:
        with suppress(CorruptRecord):
            sealer.open(envelope)
            return True
    return False
