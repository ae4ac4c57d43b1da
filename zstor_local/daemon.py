"""`zstor daemon`: everything put together, one nursery for each lifetime.

    main ─ lock of the socket ─ open_store (committer, freeing) ─ server (connections ─ calls)

Stopping goes from the inside out: no new connections, running calls end, the committer commits what it accepted, everything closes.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio

from zstor_local import __version__, limits, process
from zstor_local.access.authority import Authority
from zstor_local.access.joining import Joining
from zstor_local.access.letters import Letters
from zstor_local.access.opening import open_authority
from zstor_local.access.ownership import OwnerKeys, OwnerTokens, owner_document
from zstor_local.access.publishing import Publishing
from zstor_local.access.spaces import Spaces
from zstor_local.access.trust import TrustDocument
from zstor_local.activation import inherited_listener
from zstor_local.coding.keys import NamespaceKeys
from zstor_local.config import Config, ConfigError
from zstor_local.content.cas import Cas
from zstor_local.content.logs.leftovers import Leftovers
from zstor_local.content.logs.logs import Logs
from zstor_local.content.logs.page_index import PageIndex
from zstor_local.content.names import Names
from zstor_local.listener import AlreadyServed, handed_down, listening
from zstor_local.model.ids import StoreId
from zstor_local.model.masterkey import MasterKey
from zstor_local.network import open_network
from zstor_local.rpc.methods import access as access_methods
from zstor_local.rpc.methods import cas as content_methods
from zstor_local.rpc.methods import changes as change_methods
from zstor_local.rpc.methods import daemon as daemon_methods
from zstor_local.rpc.methods import health as health_methods
from zstor_local.rpc.methods import jobs as job_methods
from zstor_local.rpc.methods import keys as key_methods
from zstor_local.rpc.methods import listing as listing_methods
from zstor_local.rpc.methods import logcare as log_care_methods
from zstor_local.rpc.methods import logs as log_methods
from zstor_local.rpc.methods import namespaces as namespace_methods
from zstor_local.rpc.methods import ns as name_methods
from zstor_local.rpc.methods import objects as object_methods
from zstor_local.rpc.methods import references as reference_methods
from zstor_local.rpc.methods import renaming as renaming_methods
from zstor_local.rpc.methods import rpc as rpc_methods
from zstor_local.rpc.methods import shards as shard_methods
from zstor_local.rpc.methods import sharing as sharing_methods
from zstor_local.rpc.methods import streams as stream_methods
from zstor_local.rpc.methods import upkeep as upkeep_methods
from zstor_local.rpc.methods import walk as walk_methods
from zstor_local.rpc.methods.daemon import Identity
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.server import Server
from zstor_local.runtime import Files, Network, Runtime
from zstor_local.sandbox import Sandbox
from zstor_local.sd_notify import Notifier
from zstor_local.shards.http.engine import SCHEMES, HttpEngine
from zstor_local.shards.opening import ShardEngine
from zstor_local.signals import heard, heed
from zstor_local.store.engines import Engines, SqliteEngines
from zstor_local.store.faults import Refused, StoreFault, StoreInUse
from zstor_local.store.keyfile import finish_key, key_exists, make_directories, write_unfinished_key
from zstor_local.store.opening import known_keys, make_store, open_store
from zstor_local.store.paths import Paths
from zstor_local.store.protected import Protected
from zstor_local.store.store import Store
from zstor_local.system import RealClientFiles, real_runtime
from zstor_local.watchdog import keep_telling

if TYPE_CHECKING:
    from zstor_local.store.rebuild import Report

T = TypeVar("T")

EXIT_IN_USE: Final = 75  # EX_TEMPFAIL of sysexits(3)
EXIT_FAULT: Final = 78  # EX_CONFIG

LOGS_INDEX: Final = "logs.sqlite"  # where entries of logs lie; made anew if it is lost
_STORE_HINT: Final = "six directories on one disk survive damaged files, not a lost disk: give shards on other disks in [[shard]]"
_SYSTEM_HINT: Final = "set `store`, `socket` or `master_key_file` in the configuration to a place that you may write to"

_RECOVERY_SECONDS: Final = 900.0  # reading the logs of all shards again, on slow disks
_FLUSH_SECONDS: Final = 60.0  # the last commit

log = logging.getLogger("zstor.daemon")


class Say(Protocol):
    """Tells people and programs what happens: a line for the ones, the same in members for the others."""

    def __call__(self, text: str, /, **members: object) -> None: ...


def main(config: Config, reread: Callable[[], Config], say: Say) -> None:
    """Serve until a signal. Refused says why not. `reread` gives the configuration as it is now; it may raise ConfigError."""
    process.log_to_stderr()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it writes a line for each request, with its URL
    os.umask(0o077)
    process.keep_memory_private()
    process.keep_buffers()
    process.allow_descriptors()
    notifier = Notifier.from_environment(os.environ)
    with _refusing():
        trio.run(_serve, real_runtime(), config, reread, notifier, say)


def init_store(config: Config, say: Say) -> None:
    """`zstor init`: make the store and say where it is; what is there stays. Refused says why it cannot be."""
    os.umask(0o077)
    runtime = real_runtime()
    with _refusing():
        created = trio.run(_with_engines, runtime, config, lambda engines: make_store(runtime, engines, config))
    if created is None:
        say(f"there is a store at {config.store} already; it stays as it is", store=config.store, created=False)
    else:
        _announce(config, say, created)


def own_trust(config: Config) -> TrustDocument:
    """`zstor shard trust`: what shard servers must be told. The master key is made if there is none. Refused says why it cannot be."""
    os.umask(0o077)
    runtime = real_runtime()
    with _refusing():
        ring = known_keys(runtime, SqliteEngines(runtime.files), config)
    return owner_document(OwnerKeys(ring.store_wide()).now()[:1], ring.store_id, config.authority.organization)


def keep_key(path: str, key: MasterKey) -> None:
    """Write a restored master key, 0600 and durable; FileExistsError if there is one."""
    os.umask(0o077)
    files = real_runtime().files
    make_directories(files, os.path.dirname(path))
    if key_exists(files, path):
        raise FileExistsError(path)
    write_unfinished_key(files, path, key)
    finish_key(files, path)


def rebuild_store(config: Config, *, accept_loss: bool, progress: Callable[[str, int], None]) -> Report:
    """`zstor rebuild`: a new metastore from the shards and the master key. Refused says why it cannot be."""
    from zstor_local.store.rebuild import rebuild

    os.umask(0o077)
    runtime = real_runtime()

    def work(engines: Engines) -> Report:
        return rebuild(runtime, engines, config, accept_loss=accept_loss, progress=progress)

    with _refusing():
        return trio.run(_with_engines, runtime, config, work)


@contextmanager
def _refusing() -> Iterator[None]:
    """The faults that only a person can mend, as Refused."""
    try:
        yield
    except (StoreFault, StoreInUse, AlreadyServed, OSError, BaseExceptionGroup) as error:
        cause = _first(error)
        hint = getattr(cause, "hint", None)
        if isinstance(cause, (StoreInUse, AlreadyServed)):
            raise Refused("in_use", str(cause), hint, EXIT_IN_USE) from None
        if isinstance(cause, StoreFault):
            raise Refused("fault", str(cause), hint, EXIT_FAULT) from None
        if isinstance(cause, OSError):
            raise Refused("fault", _words(cause), _SYSTEM_HINT, EXIT_FAULT) from None
        raise


async def _with_engines(runtime: Runtime, config: Config, work: Callable[[Engines], T]) -> T:
    """Work that blocks, with the engines of a daemon."""
    async with open_network() as network:
        return await runtime.threads.run_commit(work, _engines(runtime, network, config))


def _engines(runtime: Runtime, network: Network, config: Config) -> Engines:
    """Where everything is kept: SQLite files, directories, and shard servers that the store's own tokens open."""

    def remote(runtime: Runtime, store_id: StoreId, keys: NamespaceKeys) -> Mapping[str, ShardEngine]:
        tokens = OwnerTokens(OwnerKeys(keys).now, store_id, config.authority.organization, runtime.clock, runtime.randomness)
        return dict.fromkeys(SCHEMES, HttpEngine(runtime, network, tokens, store_id, keys))

    return SqliteEngines(runtime.files, remote)


async def _serve(runtime: Runtime, config: Config, reread: Callable[[], Config], notifier: Notifier, say: Say) -> None:
    inherited = inherited_listener(os.environ)
    if inherited is not None:
        config = replace(config, socket=os.path.abspath(inherited.getsockname()))
    listener = listening(runtime.files, config.socket) if inherited is None else handed_down(runtime.files, inherited)
    async with open_network() as network, trio.open_nursery() as nursery:
        engines = _engines(runtime, network, config)
        with closing(PageIndex(f"{config.store}/{LOGS_INDEX}")) as pages, listener as socket:
            notifier.extend(_RECOVERY_SECONDS)
            announce = functools.partial(_announce, config, say)
            async with open_store(runtime, engines, config, on_created=announce) as store, open_authority(store) as authority:
                paths = _paths(store, config)
                names, cas = Names(store.rows), Cas(store)
                logs = Logs(store.runtime, store.rows, names, cas, pages)
                leftovers = Leftovers(logs, cas, runtime.clock)
                publishing = Publishing(store, authority)
                letters, joining = Letters(store, authority), Joining(store, authority, network)

                async def told() -> None:
                    await publishing.soon()
                    await letters.soon()

                async def all_told() -> None:
                    await publishing.publish()
                    await letters.soon()  # with tokens of keys that count

                registry = _registry(store, authority, publishing, told, joining, config, paths, logs, leftovers, names, cas)
                key_methods.register(registry, store, told=all_told)
                sharing_methods.register(registry, store, letters, joining, told=publishing.publish)
                server = Server(registry, runtime.randomness, jobs=store.jobs, mounts_of=paths.client_files.mount_namespace)

                def stop() -> None:
                    notifier.stopping()
                    notifier.extend(limits.STOP_SECONDS + _FLUSH_SECONDS)
                    say("stopping: running calls end first; another signal stops at once", stopping=True)
                    server.stop()

                def reload() -> None:
                    notifier.reloading()
                    _reload(store, paths, reread)
                    notifier.ready(_state(store))

                with heard() as signals:
                    heeding = functools.partial(heed, signals, gently=stop, at_once=nursery.cancel_scope.cancel, reload=reload)
                    nursery.start_soon(heeding)
                    async with (
                        trio.open_nursery() as beside,
                        _twirp(runtime.files, config.twirp, cas, names) as places,
                    ):
                        await beside.start(joining.run)
                        for place in places:
                            say(f"serving Twirp at {place}", twirp=str(place))
                        say(_state(store), health=store.health)
                        say(f"listening on {config.socket}", listening=config.socket)
                        notifier.ready(_state(store))
                        if notifier.heard:
                            nursery.start_soon(keep_telling, notifier, server, runtime.threads, lambda: _state(store))
                        beside.start_soon(publishing.run)
                        beside.start_soon(letters.run)
                        beside.start_soon(cas.collect_daily, leftovers.let_go)
                        await server.serve([socket])
                        beside.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _twirp(files: Files, wanted: Sequence[str], cas: Cas, names: Names) -> AsyncIterator[Sequence[str]]:
    """Twirp where the configuration wants it: few do, and the others need not import it."""
    if not wanted:
        yield []
        return
    from zstor_local.twirp.listening import serving
    from zstor_local.twirp.services import routes

    async with serving(files, wanted, routes(cas, names)) as places:
        yield places


def _state(store: Store) -> str:
    """One line for people."""
    return f"store {store.health}, {len(store.pool.usable())} of {len(store.pool.numbers)} shards"


def _reload(store: Store, paths: Paths, reread: Callable[[], Config]) -> None:
    """Take what can change while clients are served; say what else has changed. A faulty configuration changes nothing."""
    try:
        new = reread()
        paths.allow(new.allowed_roots)
    except (ConfigError, OSError) as error:
        log.error("the configuration was read again and is not taken: %s", error)
        return
    old = store.config
    store.config = replace(old, allowed_roots=new.allowed_roots, default_namespace=new.default_namespace)
    late = [field.name for field in fields(Config) if getattr(new, field.name) != getattr(store.config, field.name)]
    late = [name for name in late if name not in ("socket", "file")]  # who handed a socket down says where it is
    log.info("read the configuration again%s", f"; for {', '.join(late)} a restart is needed" if late else "")


def _registry(
    store: Store, authority: Authority, publishing: Publishing, told: Callable[[], Awaitable[None]], joining: Joining, config: Config,
    paths: Paths, logs: Logs, leftovers: Leftovers, names: Names, cas: Cas,
) -> Registry:  # fmt: skip
    """Every method of this daemon."""
    identity = Identity(__version__, os.getpid(), store.runtime.randomness.bytes(8).hex(), config.socket)
    registry = Registry()
    rpc_methods.register(registry, version=__version__)
    daemon_methods.register(registry, store, identity, publishing.warnings)
    health_methods.register(registry, store)
    upkeep_methods.register(registry, store)
    object_methods.register(registry, store, paths)
    listing_methods.register(registry, store)
    reference_methods.register(registry, store)
    renaming_methods.register(registry, store)
    change_methods.register(registry, store)
    walk_methods.register(registry, store)
    stream_methods.register(registry)
    job_methods.register(registry, store)
    content_methods.register(registry, store, paths, cas, leftovers)
    name_methods.register(registry, names)
    log_methods.register(registry, logs, cas)
    log_care_methods.register(registry, store, paths, logs, cas)
    namespace_methods.register(registry, store, Spaces(store, authority), joining)
    access_methods.register(registry, authority, told=told)
    shard_methods.register(registry, store)
    return registry


def _paths(store: Store, config: Config) -> Paths:
    """The rules for clients' files."""
    real = functools.cache(os.path.realpath)

    def added() -> Iterator[str]:
        """The directories of all shards as they are now."""
        for number in store.pool.numbers:
            shard = store.pool.get(number)
            entry = store.pool.entry(number)
            for url in (shard and shard.url, entry and entry.url):
                if url and (root := url.removeprefix("file://")).startswith("/"):
                    yield real(root.rstrip("/"))

    runtime = store.runtime
    protected = Protected.of(config, os.path.realpath, added)
    return Paths(runtime.files, RealClientFiles(), runtime.randomness, protected, config.allowed_roots, Sandbox.of_this_process())


# --- Words for people ---


def _announce(config: Config, say: Say, store_id: StoreId) -> None:
    """What a first start says."""
    restores = f"{config.policy.k} of {config.policy.m} shares restore any object"
    say(f"created the store {store_id.hex()} at {config.store}: {restores}", store=config.store, store_id=store_id.hex(), created=True)
    key = config.master_key_file
    say(f"created the master key {key}; without it everything is lost: keep a copy (zstor key backup)", master_key_file=key)
    if not config.shards:
        say(_STORE_HINT, warning=_STORE_HINT)


def _first(error: BaseException) -> BaseException:
    """The error that a nursery's groups wrap."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _words(error: OSError) -> str:
    """What the system says against what, as it would say it itself."""
    said = error.strerror or str(error)
    return f"{error.filename}: {said}" if isinstance(error.filename, str) else said
