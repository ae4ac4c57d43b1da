"""A store over directories, shard servers as processes, and a server that lies."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.remote.liar import Liar, lying
from tests.shardserver.server import LIMIT, Server
from zstor_local.access.ownership import OwnerKeys, OwnerTokens, owner_document
from zstor_local.coding.keys import KeyRing, NamespaceKeys
from zstor_local.config import Config, ShardConfig
from zstor_local.model.ids import StoreId
from zstor_local.model.policy import Policy
from zstor_local.network import open_network
from zstor_local.runtime import Runtime
from zstor_local.shards.http.ask import Deadlines
from zstor_local.shards.http.engine import SCHEMES, HttpEngine
from zstor_local.shards.opening import ShardEngine
from zstor_local.store.create import begin_key
from zstor_local.store.engines import SqliteEngines
from zstor_local.store.opening import open_store
from zstor_local.store.store import Store
from zstor_local.system import real_runtime

CHUNK = 256 * 1024
PATIENT = Deadlines(connect=LIMIT, request=LIMIT, durable=LIMIT, probe=LIMIT)  # a disk that others keep busy makes no server a late one


@dataclass
class House:
    """An open store: shards 0 to `near` − 1 are directories, then come the processes, then the liar."""

    store: Store
    servers: list[Server]
    liar: Liar | None
    config: Config

    async def settle(self) -> None:
        """Look until every shard is there, and everything owed is paid. What lacks is the test's to wait for: it has a limit."""
        await self.store.presence.look()  # what was seen before may be no more
        while self.store.health != "ok":
            await self.store.presence.look()
        await self.store.mending.mend()


@dataclass
class Ground:
    """Where a store's shards are, and what opens them. The store need not be open, nor have its metastore."""

    engines: SqliteEngines
    config: Config
    servers: list[Server]
    liar: Liar | None


@asynccontextmanager
async def housing(
    path: Path, *, near: int, servers: int, liar: bool = False, policy: Policy, deadlines: Deadlines = PATIENT
) -> AsyncIterator[House]:
    async with (
        serving(path, near=near, servers=servers, liar=liar, policy=policy, deadlines=deadlines) as ground,
        open_store(real_runtime(), ground.engines, ground.config) as store,
    ):
        store.on_bad_shares = lambda stored, states: None  # nothing is mended but what the test has repaired
        yield House(store, ground.servers, ground.liar, ground.config)


@asynccontextmanager
async def serving(
    path: Path, *, near: int, servers: int, liar: bool = False, policy: Policy, deadlines: Deadlines = PATIENT
) -> AsyncIterator[Ground]:
    runtime = real_runtime()
    async with AsyncExitStack() as stack:
        processes = stack.enter_context(ExitStack())
        network = await stack.enter_async_context(open_network())
        bare = Config(store=f"{path}/store", socket=f"{path}/socket", master_key_file=f"{path}/config/master.key", policy=policy)
        master = begin_key(runtime, SqliteEngines(runtime.files), bare)
        trust = owner_document(OwnerKeys(KeyRing(master.key, master.store_id).store_wide()).now(), master.store_id, "local")
        document = path / "trust.json"
        document.write_text(json.dumps(trust))
        running = []
        for number in range(servers):
            server = Server(path / f"server{number}", [document], f"unix:{path}/server{number}.sock")
            processes.callback(server.stop)
            running.append(server)
        urls = [*(f"{path}/near{number}" for number in range(near)), *(server.url for server in running)]
        false: Liar | None = None
        if liar:
            url, false = await stack.enter_async_context(lying(runtime, path / "liar", trust))
            urls.append(url)
        config = Config(
            store=bare.store,
            socket=bare.socket,
            master_key_file=bare.master_key_file,
            shards=tuple(ShardConfig(f"shard{number}", url) for number, url in enumerate(urls)),
            policy=policy,
        )

        def remote(runtime: Runtime, store_id: StoreId, keys: NamespaceKeys) -> Mapping[str, ShardEngine]:
            tokens = OwnerTokens(OwnerKeys(keys).now, store_id, "local", runtime.clock, runtime.randomness)
            return dict.fromkeys(SCHEMES, HttpEngine(runtime, network, tokens, store_id, keys, deadlines))

        yield Ground(SqliteEngines(runtime.files, remote), config, running, false)
