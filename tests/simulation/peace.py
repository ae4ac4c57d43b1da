"""When the trouble is over: everything is made whole, and then a metastore made anew from the shards alone says the same."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Final

import trio
import trio.testing

from tests.metastore.memory import Cell
from tests.simulation.engines import SimulatedEngines, cell
from tests.simulation.ground import Ground
from tests.simulation.house import STORE
from tests.simulation.oracle import BadState, live_records
from tests.simulation.points import under
from tests.simulation.sweep import first_error
from tests.simulation.trouble import scrub, spare_disk, staying
from tests.simulation.world import World, run
from zstor_local.errors import NotEnoughShards
from zstor_local.metastore.base import Owed
from zstor_local.model.ids import NamespaceId, ObjectName
from zstor_local.model.record import STORE_WIDE
from zstor_local.store.caller import Nobody
from zstor_local.store.create import FIRST_SEQUENCES, SHARDS_ROW, STORE_ROW
from zstor_local.store.faults import StoreFault
from zstor_local.store.opening import open_store
from zstor_local.store.pace import unpaced
from zstor_local.store.rebuild import Report, rebuild
from zstor_local.store.rewriterow import MOVED
from zstor_local.store.rewriterow import TABLE as REWRITE
from zstor_local.store.sources import BytesSource
from zstor_local.store.store import Store
from zstor_local.store.unlocking import KEYS_ROW
from zstor_local.store.writes import WriteOptions

PATIENCE: Final = 10_000.0  # seconds in which upkeep comes to its end when nothing fails


async def mended(store: Store, *, accept_loss: bool) -> None:
    """Everything that the upkeep does is done; BadState where something is left that it should have come to the end of.

    `accept_loss` frees shares of which no log has a record: a metastore that was lost knew that they were being written.
    """
    with trio.move_on_after(PATIENCE) as patience:
        await store.presence.look()
        for job in store.jobs.list():
            while job.running:
                await job.news().wait()
        for _ in range(2):
            await store.repair_all.run(Nobody())
            await scrub(store)
            await store.mending.mend()
        await store.collect.everything(Nobody(), dry_run=False, accept_loss=accept_loss, spend=unpaced)
        store.removal.wake()
        await trio.testing.wait_all_tasks_blocked()
        while await store.freeing.free_some():
            pass
        while await store.compaction.compact(unpaced, least=0.0001):
            pass
        await trio.testing.wait_all_tasks_blocked()
    if patience.cancelled_caught:
        raise BadState(f"the upkeep does not come to its end: {[(job.method, job.state, job.message) for job in store.jobs.list()]}")


async def nothing_left(store: Store, truth: Cell, m: int) -> None:
    """What is to be done by itself was done; but for shards that cannot be drained, as fewer stay than objects have shares. Of two
    scrubs the second one finds nothing that the first one should have found.
    """
    for _ in range(2):
        await scrub(store)
        await trio.testing.wait_all_tasks_blocked()
    found = store.scrub.status().found
    if found.lacking_records or found.strays_freed or found.records_mended:
        raise BadState(f"a second scrub finds what the first one did not: {found.told()}")
    if truth.debts:
        raise BadState(f"{len(truth.debts)} debts are left: {[(debt.shard, debt.kind.name, debt.name) for debt in truth.debts]}")
    if truth.garbage:
        raise BadState(f"{len(truth.garbage)} shares were not freed")
    if truth.intents:
        raise BadState(f"{len(truth.intents)} intents are left")
    if store.namespaces.half_deleted():
        raise BadState("a namespace is half deleted")
    if staying(store) >= m and (rows := [*store.rows.names(REWRITE), *store.rows.names(MOVED)]):
        raise BadState(f"rewrites are not at their end: {rows}; {[job.error for job in store.jobs.list()]}")
    if store.rotation.pending:
        raise BadState("records are still to be sealed anew")
    draining = [entry.id for entry in store.places.record.shards if entry.draining]
    if draining and staying(store) >= m:
        raise BadState(f"shards are still being drained: {draining}; {[job.error for job in store.jobs.list()]}")
    if bad := {n: store.pool.reason(n) for n in store.pool.numbers if store.pool.state(n) != "ok"}:
        raise BadState(f"shards do not come back: {bad}")


async def optimal(store: Store, names: Sequence[ObjectName]) -> None:
    """No object lacks a share for which there is a shard."""
    for name in names:
        namespace = store.namespaces.find(name.namespace)
        if namespace is None or store.metastore.get(namespace.id, name.key) is None:
            continue
        stored = store.objects.find(name)
        checked = await store.shares_health.check(stored, Nobody())
        if checked.states.count("ok") < min(stored.record.policy.m, staying(store)):
            raise BadState(f"{name} is {checked.status}: {checked.states} with {staying(store)} shards")


async def goes_on(ground: Ground, store: Store) -> None:
    """The store takes a write, or refuses it where it has too few shards for one."""
    enough = len(store.places.record.shards) >= ground.house.policy.write_quorum
    try:
        await store.writer.write(ObjectName("default", "last"), BytesSource(b"life goes on"), WriteOptions(), Nobody())
    except NotEnoughShards as error:
        if enough:
            raise BadState(f"the store takes no writes any more: {error}") from error
        ground.history.counts["a write refused for want of shards, at rest"] += 1
    else:
        if not enough:
            raise BadState(f"a write is acknowledged with {len(store.places.record.shards)} shards")


async def given_shards(ground: Ground, store: Store) -> None:
    """As many shards as objects have shares, in new directories: what a removed one left was perhaps not cleared away."""
    while staying(store) < ground.house.policy.m:
        disk = spare_disk(ground, store)
        await store.membership.add(f"{disk}{'/' if ground.apart else '-'}{store.places.record.next_number}", None)


def can_spare(store: Store, truth: Cell) -> int:
    """How many shards may be away with every object still readable: those that a share is owed to hold none."""
    owed = {(debt.version, debt.shard) for debt in truth.debts if debt.kind is Owed.SHARE}
    listed = {entry.number for entry in store.places.record.shards}
    return min(
        (
            sum(number in listed and (version, number) not in owed for number in record.placement) - record.policy.k
            for version, record in live_records(store, truth)
        ),
        default=len(listed) - 1,
    )


async def without_spare_disks(ground: Ground, store: Store, names: Sequence[ObjectName]) -> None:
    """All that may be lost is lost, in each way: everything still reads the same."""
    owed = {(debt.version, debt.shard) for debt in cell(ground.world, STORE).debts if debt.kind is Owed.SHARE}
    roots = {shard.number: shard.url for shard in store.pool.opened()}
    for name in names:
        namespace = store.namespaces.find(name.namespace)
        if namespace is None or store.metastore.get(namespace.id, name.key) is None:
            continue
        stored = store.objects.find(name)
        expected = await store.objects.read(stored)
        holders = [number for number in stored.record.placement if number in roots and (stored.version, number) not in owed]
        for out in combinations(holders, max(len(holders) - stored.record.policy.k, 0)):
            for number in out:
                ground.world.files.fail("*", under(roots[number]), errno.EIO, times=None)
            try:
                if await store.objects.read(stored) != expected:
                    raise BadState(f"without the disks {out} {name} has other bytes")
            finally:
                ground.world.files.heal()


def rebuilt(ground: Ground, world: World, *, accept_loss: bool) -> Report:
    return rebuild(world.runtime, SimulatedEngines(world), ground.house.config(), accept_loss=accept_loss, progress=lambda *_: None)


def places(ground: Ground) -> Mapping[int, str]:
    """Where the store has its shards, by number. Nothing is told to them."""
    trial = ground.world.copy()
    for disk in ground.disks:
        trial.files.fail("*", under(disk), errno.EIO, times=None)

    async def look() -> dict[int, str]:
        async with open_store(trial.runtime, SimulatedEngines(trial), ground.house.config()) as store:
            return {entry.number: store.places.place(entry) for entry in store.places.record.shards}

    return run(trial, look)


def known_to_logs(ground: Ground) -> bool:
    """Whether for each row that shards are owed the newest record lies in a log that is not: one whose flush did not fail, and whose
    disk does not rot. Without the older keys, which have to be where a rebuild begins, it opens no shard.
    """
    truth, files = cell(ground.world, STORE), ground.world.files
    doubtful = [disk for disk, doubt in ((ground.rotten, ground.rotted), (ground.weak, ground.failed_sync)) if disk and doubt]
    trusted = {number: place for number, place in places(ground).items() if not any(under(disk)(place) for disk in doubtful)}
    logs = {number: [data for path, data in files.tree(place).items() if path.endswith(".log")] for number, place in trusted.items()}
    begin = {number for number in logs if trusted[number] in ground.disks[: ground.house.shards]}  # where a rebuild finds the keys
    owed: dict[tuple[NamespaceId, str], set[int]] = {}
    for debt in truth.debts:
        if debt.kind is Owed.RECORD:
            owed.setdefault((debt.space, debt.name), set()).add(debt.shard)

    def known(row: tuple[NamespaceId, str]) -> bool:
        newest = truth.records.get(row) or truth.tombstones.get(row)
        heard = logs.keys() - owed[row] if row != (STORE_WIDE, KEYS_ROW) else begin - owed[row]
        return newest is None or any(newest.sealed in data for number in heard for data in logs[number])

    return all(map(known, owed))


def comes_back(ground: Ground, names: Sequence[ObjectName]) -> None:
    """A store at rest: the shards alone say what the metastore says, also with as many of them away as may be."""
    truth = cell(ground.world, STORE)
    tries: list[Sequence[str]] = [[]]
    if ground.apart:
        spare = max(0, min(ground.house.policy.m - ground.house.policy.k, ground.can_spare))
        tries.append(ground.draw.sample(ground.disks[1:], spare))
    for away in tries:
        trial = ground.world.copy()
        for disk in away:
            trial.files.take_out(disk)
        try:
            report = rebuilt(ground, trial, accept_loss=bool(away))
        except StoreFault as error:
            raise BadState(f"the rebuild is refused: {error}") from error
        if loss := [line for line in report.loss if not line.startswith("not seen")]:
            raise BadState(f"the rebuild tells of a loss where there is none, without {away}: {loss}")
        same(truth, cell(trial, STORE), away)
        for disk in away:
            trial.files.put_back(disk)
        reads_the_same(ground, trial, names)
        ground.history.counts[f"rebuilt for a comparison{', with shards away' * bool(away)}"] += 1


def same(truth: Cell, made: Cell, away: Sequence[str]) -> None:
    for what in ("records", "references", "usage"):
        one, other = getattr(truth, what), getattr(made, what)
        if what == "usage":
            one, other = ({space: each for space, each in usage.items() if each.objects or each.bytes} for usage in (one, other))
        differ = [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
        if what == "records":  # an init that was taken up again seals the first two anew
            first = {STORE_ROW, SHARDS_ROW}
            differ = [key for key in differ if key[1] not in first or key not in one or one[key].sequence > FIRST_SEQUENCES]
        if differ:
            raise BadState(f"rebuilt without {[*away]}, the {what} are others: {sorted(differ)[:5]}")
    if (truth.state.objects, truth.state.bytes) != (made.state.objects, made.state.bytes):
        raise BadState(f"rebuilt, {made.state.objects} objects are counted, not {truth.state.objects}")
    if not away and (owed := [debt for debt in made.debts if debt.kind is Owed.SHARE]):
        raise BadState(f"rebuilt, {len(owed)} shares are said to be lacking")


def reads_the_same(ground: Ground, world: World, names: Sequence[ObjectName]) -> None:
    """Every key has the same bytes in both worlds, and the shards are well."""

    async def contents(world: World) -> dict[ObjectName, bytes]:
        found: dict[ObjectName, bytes] = {}
        async with open_store(world.runtime, SimulatedEngines(world), ground.house.config()) as store:
            await trio.testing.wait_all_tasks_blocked()
            if bad := {n: store.pool.reason(n) for n in store.pool.numbers if store.pool.state(n) != "ok"}:
                raise BadState(f"shards do not come back: {bad}")
            for name in names:
                namespace = store.namespaces.find(name.namespace)
                if namespace is not None and store.metastore.get(namespace.id, name.key) is not None:
                    found[name] = await store.objects.read(store.objects.find(name))
        return found

    try:
        if run(ground.world.copy(), contents, ground.world.copy()) != run(world, contents, world):
            raise BadState("rebuilt, a key has other bytes")
    except BaseExceptionGroup as error:
        raise BadState(f"rebuilt, and then: {first_error(error)!r}") from error
    except Exception as error:
        raise error if isinstance(error, BadState) else BadState(f"rebuilt, and then: {error!r}") from error


def refuses_writes(ground: Ground, old: Cell) -> None:
    """An older copy of the metastore is put back: the store says so, and only reads."""
    trial = ground.world.copy()
    trial.survivors[STORE] = old.copy()

    async def look() -> None:
        async with open_store(trial.runtime, SimulatedEngines(trial), ground.house.config()) as store:
            if store.read_only is None:
                raise BadState("an older copy of the metastore is taken for the newest")
            if "rebuild" not in store.read_only:
                raise BadState(f"whoever put an older copy back is told {store.read_only}")

    try:
        run(trial, look)
    except StoreFault as error:
        if "rebuild" not in error.hint:
            raise BadState(f"whoever put an older copy back is told {error}: {error.hint}") from error
    except BaseExceptionGroup as error:
        raise BadState(f"with an older copy of the metastore: {first_error(error)!r}") from error
    ground.history.counts["an older copy of the metastore put back"] += 1
