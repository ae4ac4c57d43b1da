"""What a person should look at among the shards: who is away, whether a disk may be lost, drains; each line says what to do."""

from __future__ import annotations

from collections import Counter

from zstor_local.counted import counted
from zstor_local.model.policy import Policy
from zstor_local.shards.placement import groups_to_lose
from zstor_local.shards.pool import ShardPool
from zstor_local.store.departures import Departures


def shard_warnings(pool: ShardPool, departures: Departures, policy: Policy) -> list[str]:
    """One line each."""
    return [*_away(pool), *_unread(pool), *_drained(pool, departures), *_few(pool, policy), *_groups(pool, policy)]


def _away(pool: ShardPool) -> list[str]:
    states = {number: state for number in pool.numbers if (state := pool.state(number)) != "ok"}
    return [f"shard {pool.name(number)} is {state}: {pool.reason(number)}" for number, state in states.items()]


def _unread(pool: ShardPool) -> list[str]:
    logs = ((shard, shard.segments()) for shard in pool.opened())
    return [
        f"the disk of shard {shard.id} cannot read a part of its log: a scrub makes anew what lay there; where that lasts, "
        f"`zstor shard replace {shard.id}` with another disk"
        for shard, segments in logs
        if segments is not None and segments.unread()
    ]


def _drained(pool: ShardPool, departures: Departures) -> list[str]:
    found = []
    for number in sorted(pool.draining):
        name = pool.name(number)
        if (job := departures.job_of(number)) is not None:
            percent = "" if not job.total else f", {min(100, int(100 * job.done / job.total))} % looked at"
            found.append(f"shard {name} is being drained by job {job.id}{percent}{job.message and f'; {job.message}'}")
        else:
            found.append(f"shard {name} is not drained yet; `zstor shard rm {name}` goes on with it and says what is in the way")
    return found


def _few(pool: ShardPool, policy: Policy) -> list[str]:
    staying = len({*pool.numbers} - pool.draining)
    if staying >= policy.m:
        return []
    return [
        f"objects have {policy.m} shares, and {counted(staying, 'shard is', 'shards are')} there for them: "
        "what is written now lacks the others; `zstor shard add` on another disk, and a scrub makes them"
    ]


def _groups(pool: ShardPool, policy: Policy) -> list[str]:
    shards = [shard for shard in pool.opened() if shard.number not in pool.draining]
    groups = Counter(shard.group for shard in shards)
    if len(shards) < 2:
        return []
    if len(groups) == 1:
        return ["all shards lie on one file system: damaged files are survived, a lost disk is not; `zstor shard add` on other disks"]
    lost, wanted = groups_to_lose(groups, policy.k, policy.m), policy.m - policy.k
    if lost >= wanted or pool.absent():  # while shards are away the warning about them is the one to see to
        return []
    return [
        f"{policy.k} of {policy.m} shares lie in {len(groups)} groups (disks or hosts): any {lost} of them may be lost, not {wanted}; "
        f"`zstor shard add` on other disks makes it {wanted}"
    ]
