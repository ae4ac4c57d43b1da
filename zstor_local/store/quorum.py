"""The error for a write that too few shards can take."""

from __future__ import annotations

from collections.abc import Mapping

from zstor_local.errors import NoSpace, NotEnoughShards, ZstorError
from zstor_local.shards.base import ShardError


def not_enough_shards(durable: int, quorum: int, failed: Mapping[str, ShardError]) -> ZstorError:
    """The error for a write that too few shards can take: `no_space` if room is what they lack."""
    shards = {name: {"state": error.state, "detail": str(error)} for name, error in sorted(failed.items())}
    full = sorted(name for name, error in failed.items() if error.state == "full")
    if full and len(full) == len(failed):
        which = "shard" if len(full) == 1 else "shards"
        return NoSpace(
            f"{which} {', '.join(full)} full: {durable} of the {quorum} shards a write needs could take it",
            hint="delete something (`zstor rm`), free room on the disk, or add a shard (`zstor shard add`)",
            shard=full[0],
            shards=shards,
        )
    return NotEnoughShards(
        f"{durable} of the {quorum} shards a write needs could take it; nothing visible changed",
        hint="bring the missing shards back (`zstor status` names them), or give the store new ones with `zstor shard replace`",
        shards=shards,
    )
