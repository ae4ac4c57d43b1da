"""What stands on an open store: content, logs, permissions, the rules for files; and the methods that offer it all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from zstor_local import __version__
from zstor_local.access.authority import Authority
from zstor_local.access.joining import Joining
from zstor_local.access.letters import Letters
from zstor_local.access.spaces import Spaces
from zstor_local.access.telling import Telling
from zstor_local.config import Config
from zstor_local.content.cas import Cas
from zstor_local.content.logs.leftovers import Leftovers
from zstor_local.content.logs.logs import Logs
from zstor_local.content.logs.page_index import PageIndex
from zstor_local.content.names import Names
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
from zstor_local.runtime import Network
from zstor_local.sandbox import Sandbox
from zstor_local.store.paths import Paths
from zstor_local.store.protected import Protected
from zstor_local.store.store import Store
from zstor_local.system import RealClientFiles


class Parts:
    """The use cases above a store and its authority, wired up."""

    def __init__(self, store: Store, authority: Authority, network: Network, pages: PageIndex, real_path: Callable[[str], str]) -> None:
        """`real_path` gives a path without links (os.path.realpath), and is asked often."""
        self.store = store
        self.authority = authority
        self.paths = _paths(store, store.config, real_path)
        self.names = Names(store.rows)
        self.cas = Cas(store)
        self.logs = Logs(store.runtime, store.rows, self.names, self.cas, pages)
        self.leftovers = Leftovers(self.logs, self.cas, store.runtime.clock)
        self.telling = Telling(store, authority)
        self.letters = Letters(store, authority)
        self.joining = Joining(store, authority, network)

    def warnings(self) -> list[str]:
        """What a person should look at beside the store itself."""
        return [*self.telling.warnings(), *self.joining.warnings()]

    async def tell_soon(self) -> None:
        """Have servers and users told of permissions, without waiting long for who is slow."""
        await self.telling.soon()
        await self.letters.soon()

    async def tell_keys(self) -> None:
        """Have every server told of new keys, then users, with tokens of keys that count."""
        await self.telling.tell()
        await self.letters.soon()


def methods(parts: Parts) -> Registry:
    """Every method of this daemon."""
    store, paths, cas, logs = parts.store, parts.paths, parts.cas, parts.logs
    identity = Identity(__version__, os.getpid(), store.runtime.randomness.bytes(8).hex(), store.config.socket)
    registry = Registry()
    rpc_methods.register(registry, version=__version__)
    daemon_methods.register(registry, store, identity, parts.warnings)
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
    content_methods.register(registry, store, paths, cas, parts.leftovers)
    name_methods.register(registry, parts.names)
    log_methods.register(registry, logs, cas)
    log_care_methods.register(registry, store, paths, logs, cas)
    namespace_methods.register(registry, store, Spaces(store, parts.authority), parts.joining)
    access_methods.register(registry, parts.authority, told=parts.tell_soon)
    shard_methods.register(registry, store, told=parts.letters.soon)
    key_methods.register(registry, store, told=parts.tell_keys)
    sharing_methods.register(registry, store, parts.letters, parts.joining, told=parts.telling.tell)
    return registry


def _paths(store: Store, config: Config, real_path: Callable[[str], str]) -> Paths:
    """The rules for clients' files."""

    def added() -> Iterator[str]:
        """The directories of all shards as they are now."""
        for number in store.pool.numbers:
            shard = store.pool.get(number)
            entry = store.pool.entry(number)
            for url in (shard and shard.url, entry and entry.url):
                if url and (root := url.removeprefix("file://")).startswith("/"):
                    yield root.rstrip("/")

    runtime = store.runtime
    protected = Protected.of(config, real_path, added)
    return Paths(runtime.files, RealClientFiles(), runtime.randomness, protected, config.allowed_roots, Sandbox.of_this_process())
