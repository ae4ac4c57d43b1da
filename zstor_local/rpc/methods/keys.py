"""`key.rotate`. The keys themselves never pass the socket: whoever may read the key file reads it there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypedDict

import trio

from zstor_local.errors import Busy, ShuttingDown, ZstorError
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.failures import COMMIT_ERRORS
from zstor_local.rpc.registry import Registry
from zstor_local.store.store import Store


class Rotated(TypedDict):
    """`job` seals the records anew; `key_file` is where the key lies. `new`: the store has another master key; false where this goes on
    with an earlier rotation, and the key is that one's.
    """

    store: str
    key_file: str
    job: str
    new: bool


class Retired(TypedDict):
    """Older master keys are for no shard server any more."""

    store: str


def register(registry: Registry, store: Store, *, told: Callable[[], Awaitable[None]]) -> None:
    """Add the methods. `told` tells the shard servers that are there of the keys as they are now, and waits for them."""

    @registry.method("key.rotate", errors=[Busy, ShuttingDown, *COMMIT_ERRORS])
    async def rotate(call: Call, /) -> Rotated:
        """Give the store a new master key.

        The words of earlier backups open nothing that is written from now on: write the new ones down. The old key is kept, sealed
        under the new one, on every shard, and opens what is old until the job has sealed it anew; that goes on over restarts. Somebody
        who had the old key and copies of the shards can read those copies for ever. Shard servers let in who has the old key until
        `key.retire`.

        A record that does not open, and of which no shard has a good copy, fails the job once all others are sealed anew: the older
        keys stay needed. Then, and where it was broken off, another call goes on with it and makes no new key.
        """
        call.begin_commit()
        with trio.CancelScope(shield=True):
            job, new = await store.rotation.rotate()
            with suppress(ZstorError):  # they are told again
                await told()  # before anybody destroys the words of the key that they know
        return {"store": store.sealer.store_id.hex(), "key_file": store.config.master_key_file, "job": job.id, "new": new}

    @registry.method("key.retire", errors=[Busy, ShuttingDown, *COMMIT_ERRORS])
    async def retire(call: Call, /) -> Retired:
        """Have shard servers let in nobody any more who has an older master key; for when the words of the present one are kept.

        With it end all tokens that the daemon has signed for users until now: who has an older key may have what signs them. Servers
        that are away are told once they are there; until then `daemon.status` warns of them. The store still opens what is old.
        """
        call.begin_commit()
        with trio.CancelScope(shield=True):
            await store.rotation.retire()
            with suppress(ZstorError):  # they are told again
                await told()
        return {"store": store.sealer.store_id.hex()}
