"""`zstor daemon`: everything put together, one nursery for each lifetime.

    main ─ lock of the socket ─ open_store (committer, freeing) ─ server (connections ─ calls)

Stopping goes from the inside out: no new connections, running calls end, the committer commits what it accepted, everything closes.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio

from zstor_local import limits, process
from zstor_local.access.opening import check_authority, open_authority
from zstor_local.access.ownership import OwnerKeys, OwnerTokens, owner_document
from zstor_local.access.trust import TrustDocument
from zstor_local.activation import inherited_listener
from zstor_local.coding.keys import NamespaceKeys
from zstor_local.config import Config, ConfigError
from zstor_local.content.cas import Cas
from zstor_local.content.logs.page_index import PageIndex
from zstor_local.content.names import Names
from zstor_local.disks import Disks
from zstor_local.errors import errno_text
from zstor_local.listener import AlreadyServed, handed_down, listening
from zstor_local.model.ids import StoreId
from zstor_local.model.masterkey import MasterKey
from zstor_local.network import open_network
from zstor_local.parts import Parts, methods
from zstor_local.rpc.server import Server
from zstor_local.runtime import Files, Network, Runtime
from zstor_local.sandbox import Sandbox
from zstor_local.sd_notify import Notifier
from zstor_local.shards.http.engine import SCHEMES, HttpEngine
from zstor_local.shards.opening import ShardEngine, nothing_against
from zstor_local.signals import heard, heed
from zstor_local.store.engines import Engines, SqliteEngines
from zstor_local.store.errorgroups import single
from zstor_local.store.faults import Refused, StoreFault, StoreInUse
from zstor_local.store.keyfile import finish_key, key_exists, make_directories, write_unfinished_key
from zstor_local.store.opening import known_keys, make_store, open_store
from zstor_local.store.paths import Paths
from zstor_local.store.store import Store
from zstor_local.system import real_runtime
from zstor_local.watchdog import keep_telling

if TYPE_CHECKING:
    from zstor_local.store.rebuild import Report

T = TypeVar("T")

EXIT_IN_USE: Final = 75  # EX_TEMPFAIL of sysexits(3)
EXIT_FAULT: Final = 78  # EX_CONFIG

LOGS_INDEX: Final = "logs.sqlite"  # where entries of logs lie; made anew if it is lost
_STORE_HINT: Final = "six directories on one disk survive damaged files, not a lost disk: give shards on other disks in [[shard]]"
_SYSTEM_HINT: Final = "set `store`, `socket` or `master_key_file` in the configuration to a place that you may write to"
_READ_ONLY_HINT: Final = (
    "a service may write where `zstor systemd install` found the store: run it again if that has changed; a disk that failed is made "
    "read-only too (the system's log tells): copy the store to another one, and name that as `store` in the configuration"
)

_RECOVERY_SECONDS: Final = 900.0  # reading the logs of all shards again, on slow disks
_FLUSH_SECONDS: Final = 60.0  # the last commit
_CANCEL_SECONDS: Final = 5.0  # until what is cancelled has ended

log = logging.getLogger("zstor.daemon")


class Say(Protocol):
    """Tells people and programs what happens: a line for the ones, the same in members for the others."""

    def __call__(self, text: str, /, **members: object) -> None: ...


def main(config: Config, reread: Callable[[], Config], say: Say) -> None:
    """Serve until a signal. Refused says why not. `reread` gives the configuration as it is now; it may raise ConfigError."""
    process.log_to_stderr()
    process.keep_secrets()
    process.keep_buffers()
    process.collect_seldom()
    process.allow_descriptors()
    notifier = Notifier.from_environment(os.environ)
    with _refusing():
        trio.run(_serve, real_runtime(), config, reread, notifier, say)


def init_store(config: Config, say: Say) -> None:
    """`zstor init`: make the store and say where it is; what is there stays. Refused says why it cannot be."""
    process.keep_secrets()
    runtime = real_runtime()
    with _refusing():
        created = trio.run(_with_engines, runtime, config, lambda engines: make_store(runtime, engines, config))
    if created is None:
        say(f"there is a store at {config.store} already; it stays as it is", store=config.store, created=False)
    else:
        _announce(config, say, created)


def own_trust(config: Config) -> TrustDocument:
    """`zstor shard trust`: what shard servers must be told. The master key is made if there is none. Refused says why it cannot be."""
    process.keep_secrets()
    runtime = real_runtime()
    with _refusing():
        ring = known_keys(runtime, SqliteEngines(runtime.files), config)
    return owner_document(OwnerKeys(ring.store_wide()).now()[:1], ring.store_id, config.authority.organization)


def keep_key(path: str, key: MasterKey) -> None:
    """Write a restored master key, 0600 and durable; FileExistsError if there is one."""
    process.keep_secrets()
    files = real_runtime().files
    make_directories(files, os.path.dirname(path))
    if key_exists(files, path):
        raise FileExistsError(path)
    write_unfinished_key(files, path, key)
    finish_key(files, path)


def rebuild_store(config: Config, *, accept_loss: bool, progress: Callable[[str, int], None]) -> Report:
    """`zstor rebuild`: a new metastore from the shards and the master key. Refused says why it cannot be."""
    from zstor_local.store.rebuild import rebuild

    process.keep_secrets()
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
        cause = single(error)
        hint = getattr(cause, "hint", None)
        if isinstance(cause, (StoreInUse, AlreadyServed)):
            raise Refused("in_use", str(cause), hint, EXIT_IN_USE) from None
        if isinstance(cause, StoreFault):
            raise Refused("fault", str(cause), hint, EXIT_FAULT) from None
        if isinstance(cause, OSError):
            raise Refused("fault", _words(cause), _READ_ONLY_HINT if cause.errno == errno.EROFS else _SYSTEM_HINT, EXIT_FAULT) from None
        raise


async def _with_engines(runtime: Runtime, config: Config, work: Callable[[Engines], T]) -> T:
    """Work that blocks, with the engines of a daemon."""
    async with open_network() as network:
        return await runtime.threads.run_commit(work, _engines(runtime, network, Disks(runtime.files, config.store), config))


def _engines(runtime: Runtime, network: Network, disks: Disks, config: Config) -> Engines:
    """Where everything is kept: SQLite files, directories, and shard servers that the store's own tokens open."""

    def remote(runtime: Runtime, store_id: StoreId, keys: NamespaceKeys) -> Mapping[str, ShardEngine]:
        tokens = OwnerTokens(OwnerKeys(keys).now, store_id, config.authority.organization, runtime.clock, runtime.randomness)
        return dict.fromkeys(SCHEMES, HttpEngine(runtime, network, tokens, store_id, keys))

    sandbox = Sandbox.of_this_process()
    against = nothing_against if sandbox is None else sandbox.against_shard
    return SqliteEngines(runtime.files, remote, disks.device, against)


class _Heeding:
    """What signals ask for."""

    def __init__(
        self, parts: Parts, server: Server, disks: Disks, reread: Callable[[], Config], notifier: Notifier, say: Say
    ) -> None:  # fmt: skip
        self._parts = parts
        self._server = server
        self._disks = disks
        self._reread = reread
        self._notifier = notifier
        self._say = say

    def stop(self) -> None:
        self._notifier.stopping()
        self._notifier.extend(limits.STOP_SECONDS + _FLUSH_SECONDS)
        process.end_after(limits.STOP_SECONDS + _FLUSH_SECONDS)
        self._say("stopping: running calls end first; another signal stops at once", stopping=True)
        self._server.stop()

    def reload(self) -> None:
        self._notifier.reloading()
        _reload(self._parts.store, self._parts.paths, self._disks, self._reread)
        self._notifier.ready(_state(self._parts.store))


async def _serve(runtime: Runtime, config: Config, reread: Callable[[], Config], notifier: Notifier, say: Say) -> None:
    inherited = inherited_listener(os.environ)
    if inherited is not None:
        config = replace(config, socket=os.path.abspath(inherited.getsockname()))
    disks = Disks(runtime.files, config.store)
    _check(runtime.files, disks, config)
    listener = listening(runtime.files, config.socket) if inherited is None else handed_down(runtime.files, inherited)
    async with open_network() as network, trio.open_nursery() as nursery:
        engines = _engines(runtime, network, disks, config)
        with closing(PageIndex(f"{config.store}/{LOGS_INDEX}")) as pages, listener as socket:
            notifier.extend(_RECOVERY_SECONDS)
            announce = functools.partial(_announce, config, say)
            async with open_store(runtime, engines, config, on_created=announce) as store, open_authority(store) as authority:
                parts = Parts(store, authority, network, pages, disks.real_path)
                server = Server(
                    methods(parts),
                    runtime.randomness,
                    jobs=store.jobs,
                    mounts_of=parts.paths.client_files.mount_namespace,
                    make_way=store.streams.make_way,
                )
                heeding = _Heeding(parts, server, disks, reread, notifier, say)

                def at_once() -> None:
                    process.end_after(_CANCEL_SECONDS)
                    nursery.cancel_scope.cancel()

                def ready() -> None:
                    notifier.ready(_state(store))
                    if notifier.heard:
                        nursery.start_soon(keep_telling, notifier, server, runtime.threads, lambda: _state(store))

                with heard() as signals:
                    nursery.start_soon(functools.partial(heed, signals, gently=heeding.stop, at_once=at_once, reload=heeding.reload))
                    await _serve_clients(parts, server, socket, say, ready)
        nursery.cancel_scope.cancel()


async def _serve_clients(parts: Parts, server: Server, socket: trio.SocketListener, say: Say, ready: Callable[[], None]) -> None:
    """Until the server is told to stop; beside it what goes on by itself."""
    store, config = parts.store, parts.store.config
    async with trio.open_nursery() as beside, _twirp(store.runtime.files, config.twirp, parts.cas, parts.names) as places:
        await beside.start(parts.joining.run)
        for place in places:
            say(f"serving Twirp at {place}", twirp=str(place))
        say(_state(store), health=store.health)
        say(f"listening on {config.socket}", listening=config.socket)
        ready()
        beside.start_soon(process.give_back_memory, process.resident_bytes, process.cpu_seconds, process.give_back)
        beside.start_soon(parts.telling.run)
        beside.start_soon(parts.letters.run)
        beside.start_soon(parts.cas.keeping.collect_daily, parts.leftovers.let_go)
        await server.serve([socket])
        beside.cancel_scope.cancel()


def _check(files: Files, disks: Disks, config: Config) -> None:
    """StoreFault for what would fail once a first start has made store and key: they are made when all else is well."""
    check_authority(files, config.authority)
    for root in config.allowed_roots:
        try:
            disks.must_open(root)
        except OSError as error:
            message = f"allowed_roots: {root} cannot be opened: {error.strerror}"
            raise StoreFault(message, "make or mount it, or take it out of `allowed_roots` in the configuration") from None


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


def _reload(store: Store, paths: Paths, disks: Disks, reread: Callable[[], Config]) -> None:
    """Take what can change while clients are served; say what else has changed. A faulty configuration changes nothing."""
    try:
        new = reread()
        for root in new.allowed_roots:
            disks.must_open(root)
        paths.allow(new.allowed_roots)
    except (ConfigError, OSError) as error:
        log.error("the configuration was read again and is not taken: %s", error)
        return
    old = store.config
    store.config = replace(old, allowed_roots=new.allowed_roots, default_namespace=new.default_namespace)
    late = [field.name for field in fields(Config) if getattr(new, field.name) != getattr(store.config, field.name)]
    late = [name for name in late if name not in ("socket", "file")]  # who handed a socket down says where it is
    log.info("read the configuration again%s", f"; for {', '.join(late)} a restart is needed" if late else "")


# --- Words for people ---


def _announce(config: Config, say: Say, store_id: StoreId) -> None:
    """What a first start says."""
    restores = f"{config.policy.k} of {config.policy.m} shares restore any object"
    say(f"created the store {store_id.hex()} at {config.store}: {restores}", store=config.store, store_id=store_id.hex(), created=True)
    key = config.master_key_file
    say(f"created the master key {key}; without it everything is lost: keep a copy (zstor key backup)", master_key_file=key)
    if not config.shards:
        say(_STORE_HINT, warning=_STORE_HINT)


def _words(error: OSError) -> str:
    """What the system says against what, as it would say it itself."""
    said = errno_text(error)
    return f"{error.filename}: {said}" if isinstance(error.filename, str) else said
