"""`health.*`: the store as a whole, proved, repaired and tidied; `daemon.metrics`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal, NotRequired, TypedDict

from zstor_local.counted import counted
from zstor_local.errors import Busy, ShuttingDown
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.failures import COMMIT_ERRORS, Failures
from zstor_local.rpc.registry import Registry
from zstor_local.store.metrics import metrics
from zstor_local.store.pace import unpaced
from zstor_local.store.scrub import ScrubState, ScrubStatus
from zstor_local.store.store import Store
from zstor_local.store.strays import Judged

CHANGE_ERRORS: Final[Failures] = [*COMMIT_ERRORS, ShuttingDown]


class ScrubFound(TypedDict):
    """What the present pass has looked at and found, or the last one.

    Bad shares and lacking records are made anew, strays that were left behind are freed. Objects with too few good shares, shares that
    no record names and keys that only a log knows are counted: `object.check` and `health.collect` tell more. Records of the metastore
    that do not open are made anew from a good copy in the shards' logs; of the others `zstor rebuild` chooses what there is.
    """

    objects: int
    bytes: int
    bad_shares: int
    unreadable: int
    lacking_records: int
    strays_freed: int
    strays_kept: int
    unknown_keys: int
    records_mended: int
    records_damaged: int


class ScrubView(TypedDict):
    """The scrub. Epochs in microseconds, null before the first pass; `eta_seconds` null unless it runs.

    `overdue`: no pass has ended for twice as long as one may take ([scrub] days).
    """

    state: ScrubState
    cursor_percent: float
    started_epoch: int | None
    last_ended_epoch: int | None
    eta_seconds: int | None
    overdue: bool
    found: ScrubFound


class NotRepairedView(TypedDict):
    """An object that stays as it is; `error` is the type of what hindered its repair."""

    namespace: str
    key: str
    error: str
    message: str


class RepairedAllView(TypedDict):
    """Of `repaired` objects shares were made anew; `failed` could not be repaired, the first 1,000 of them are in `found`.

    `lacking` objects can be read but still have bad shares: their shards are away, and no other could take them. `owed` counts what
    shards that are away have still to be given.
    """

    objects: int
    repaired: int
    failed: int
    lacking: int
    owed: int
    found: list[NotRepairedView]


class KeptShare(TypedDict):
    """A share that no record names, and that is kept.

    unknown: a record of it opens, and the metastore knows nothing later of its key. no_record: of one of our namespaces, without any
    record. foreign: not of this store; never touched.
    """

    shard: str
    version: str
    index: int
    reason: Literal["unknown", "no_record", "foreign"]
    namespace: NotRequired[str]
    key: NotRequired[str]


class CollectedShares(TypedDict):
    """Shares that were freed, that wait to be (their shard is away, they are being read, or it was a dry run), and that are kept.

    `found` tells the first 1,000 that are kept, `unseen` the shards that could not be looked at.
    """

    dry_run: bool
    looked_at: int
    freed: int
    waiting: int
    kept: int
    found: list[KeptShare]
    unseen: list[str]


def register(registry: Registry, store: Store) -> None:
    """Add the methods."""

    @registry.method("health.scrub", errors=[*CHANGE_ERRORS, Busy], long=True)
    async def scrub(
        call: Call,
        /,
        action: Annotated[Literal["start", "pause", "resume"], "start: begin a pass now, or hurry the one under way"],
        wait: Annotated[bool, "answer when the pass has ended; it goes on if the call is cancelled"] = False,
    ) -> ScrubView:
        """Steer the scrub, which reads and proves everything in the background.

        By itself a pass is spread over the days of [scrub] in the configuration. One that is started reads as fast as [scrub] rate.
        A pause lasts, over restarts too, until it is resumed or started.
        """
        steer = {"start": store.scrub.start, "pause": store.scrub.pause, "resume": store.scrub.resume}
        await steer[action]()
        while wait:
            news = store.scrub.news()  # before looking, so that nothing is missed
            status = store.scrub.status()
            if status.state != "running":
                break
            found = status.found
            call.progress(status.percent, 100, f"{counted(found.objects, 'object')}, {counted(found.bad_shares, 'bad share')}")
            with call.long_poll():
                await news.wait()
        return scrub_view(store.scrub.status())

    @registry.method("health.repair_all", errors=CHANGE_ERRORS, long=True)
    async def repair_all(call: Call, /) -> RepairedAllView:
        """Check every object block by block, and make what is bad anew; progress counts objects.

        Shares of shards that are away go to spare shards, where there are any.
        """
        report = await store.repair_all.run(call)
        return {
            "objects": report.objects,
            "repaired": report.repaired,
            "failed": report.failed,
            "lacking": report.lacking,
            "owed": report.owed,
            "found": [
                {"namespace": each.namespace, "key": each.key, "error": each.trouble, "message": each.message} for each in report.found
            ],
        }

    @registry.method("health.collect", errors=CHANGE_ERRORS, long=True)
    async def collect(
        call: Call,
        /,
        dry_run: Annotated[bool, "free nothing, only tell"] = False,
        accept_loss: Annotated[bool, "free also what no record names and nothing later buries: it can never be read again"] = False,
    ) -> CollectedShares:
        """Free the shares that nothing needs any more; progress counts the shares that were looked at. Writers are not stopped.

        Freed is only what a broken-off write, a tombstone, a newer record or a void leaves behind. Any other share without a record is
        told and kept: the metastore may have lost its record, and a rebuild would bring it back.
        """
        report = await store.collect.everything(call, dry_run=dry_run, accept_loss=accept_loss, spend=unpaced)
        return {
            "dry_run": dry_run,
            "looked_at": report.looked_at,
            "freed": report.freed,
            "waiting": report.waiting,
            "kept": report.kept,
            "found": _kept(report.found),
            "unseen": report.unseen,
        }

    @registry.method("daemon.metrics")
    async def metrics_(call: Call, /) -> str:
        """Tell the store's figures in the text format of Prometheus."""
        return metrics(store)

    def _kept(found: Sequence[Judged]) -> list[KeptShare]:
        shares: list[KeptShare] = []
        for each in found:
            if each.reason == "left_behind":
                continue
            stray = each.stray
            share: KeptShare = {
                "shard": store.pool.name(stray.shard),
                "version": stray.share.version.hex(),
                "index": stray.share.index,
                "reason": each.reason,
            }
            namespace = None if each.space is None else store.namespaces.by_id(each.space)
            if namespace is not None and each.key is not None:
                share["namespace"], share["key"] = namespace.name, each.key
            shares.append(share)
        return shares


def scrub_view(status: ScrubStatus) -> ScrubView:
    """The scrub as `daemon.status` shows it too."""
    found = status.found
    return {
        "state": status.state,
        "cursor_percent": status.percent,
        "started_epoch": status.started,
        "last_ended_epoch": status.last_ended,
        "eta_seconds": status.eta_seconds,
        "overdue": status.overdue,
        "found": {
            "objects": found.objects,
            "bytes": found.bytes,
            "bad_shares": found.bad_shares,
            "unreadable": found.unreadable,
            "lacking_records": found.lacking_records,
            "strays_freed": found.strays_freed,
            "strays_kept": found.strays_kept,
            "unknown_keys": found.unknown_keys,
            "records_mended": found.records_mended,
            "records_damaged": found.records_damaged,
        },
    }
