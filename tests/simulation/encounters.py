"""How often histories come to what matters: figures that are counted inside the store while it runs, and change nothing.

What is never met is not tested, however many histories there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import Any

import pytest

from zstor_local.metastore.base import Garbage
from zstor_local.model.ids import NamespaceId
from zstor_local.model.record import STORE_WIDE, Kind
from zstor_local.shards.base import Shard
from zstor_local.shards.log_index import Progress
from zstor_local.shards.recovery import CatchingUp
from zstor_local.store.change import Decision
from zstor_local.store.compaction import Compaction, _Segment
from zstor_local.store.edits import Edits
from zstor_local.store.freeing import Freeing
from zstor_local.store.mending import Mending
from zstor_local.store.presence import Presence
from zstor_local.store.publishing import Item, Publisher


@contextmanager
def counted(counts: Counter[str]) -> Iterator[None]:
    """Count into `counts` while it lasts."""
    with pytest.MonkeyPatch.context() as patch:
        for watch in (_groups, _decisions, _compaction, _shards, _freeing, _recovery):
            watch(patch, counts)
        yield


def _groups(patch: pytest.MonkeyPatch, counts: Counter[str]) -> None:
    publish, to_metastore, void, void_on = Publisher.publish, Publisher._to_metastore, Publisher._void, Publisher.void_on
    append = Publisher._append

    def counted_publish(self: Publisher, items: list[Item]) -> dict[int, Any]:
        rows = Counter(row for item in items for row in item.sealed if row[0] != STORE_WIDE)
        counts["group: several changes of one row"] += any(count > 1 for count in rows.values())
        counts["group: a change that saw another row of it"] += any(item.seen - item.sealed.keys() for item in items)
        counts["group: a row deleted and written"] += any(
            len({record.kind for item in items for at, (record, _) in item.sealed.items() if at == row}) > 1 for row in rows
        )
        failed = publish(self, items)
        counts["group: a shard failed in it"] += bool(failed)
        counts["group: a part of it failed"] += 0 < sum(item.error is not None for item in items) < len(items)
        counts["group: a shard failed, several changes of one row"] += bool(failed) and any(count > 1 for count in rows.values())
        return failed

    def counted_to_metastore(self: Publisher, items: list[Item], failed: dict[int, Any]) -> None:
        before = self.failure
        to_metastore(self, items, failed)
        if self.failure is not before:
            counts["metastore: outcome unknown"] += 1
        elif any(item.error is not None for item in items):
            counts["metastore: refused"] += 1
        counts["void: untold shards"] += bool(self._untold)

    def counted_void(self: Publisher, items: list[Item], failed: dict[int, Any]) -> None:
        counts["void: of a group that failed"] += 1
        void(self, items, failed)

    def counted_void_on(self: Publisher, shard: Shard, sequences: dict[int, NamespaceId], newest: list[Any] = []) -> None:  # noqa: B006
        counts["void: on a shard that came back, or at a start"] += bool(sequences) or shard.number in self._untold
        counts["a newer record told to a shard that ends with an older one"] += bool(newest)
        void_on(self, shard, sequences, newest)

    def counted_append(self: Publisher, entries: dict[int, Any]) -> dict[int, Any]:
        counts["void: told late, before the next entries"] += any(number in self._untold for number in entries)
        failed = append(self, entries)
        counts["log: some failed, others not"] += 0 < len(failed) < len(entries)
        return failed

    patch.setattr(Publisher, "publish", counted_publish)
    patch.setattr(Publisher, "_to_metastore", counted_to_metastore)
    patch.setattr(Publisher, "_void", counted_void)
    patch.setattr(Publisher, "void_on", counted_void_on)
    patch.setattr(Publisher, "_append", counted_append)


def _decisions(patch: pytest.MonkeyPatch, counts: Counter[str]) -> None:
    decision = Edits.decision

    def counted_decision(self: Edits, *args: Any, **options: Any) -> Decision:
        made = decision(self, *args, **options)
        pool = self._committer._pool
        away = any(pool.get(number) is None or pool.state(number) in ("missing", "failed") for number in pool.numbers)
        full = any(pool.state(number) == "full" for number in pool.numbers)
        spread = len(pool.numbers)
        for key, before in self._before.items():
            after = self._after[key]
            if before is None or before == after:
                continue
            what = "delete" if after is None else "overwrite" if after.version != before.version else "change of a record"
            counts[f"{what} with a shard away"] += away
            counts[f"{what} with a full disk"] += full
            counts[f"{what} with more shards than m"] += spread > before.record.policy.m
            counts["overwrite on other shards"] += after is not None and {*after.record.placement} != {*before.record.placement}
            counts[f"{what} in a list"] += before.record.previous_key is not None or before.record.next_key is not None
            counts[f"{what} of a copy"] += len(self._committer.view.named(self._namespace.id, before.version)) > 1
        return made

    patch.setattr(Edits, "decision", counted_decision)


def _compaction(patch: pytest.MonkeyPatch, counts: Counter[str]) -> None:
    compact, forgotten, replaced = Compaction._compact_segment, _Segment._may_be_forgotten, _Segment._replaced

    async def counted_compact(self: Compaction, *args: Any) -> bool:
        done = await compact(self, *args)
        counts["compaction: a segment went"] += done
        counts["compaction: a segment went, with a shard away"] += done and any(self._pool.get(n) is None for n in self._pool.numbers)
        counts["compaction: a segment went, with debts"] += done and self._metastore.debts_count() > 0
        return done

    def counted_forgotten(self: _Segment, *args: Any) -> bool:
        done = forgotten(self, *args)
        counts["compaction: a tombstone forgotten"] += done
        return done

    def counted_replaced(self: _Segment, envelope: Any, *args: Any, look_only: bool) -> Any:
        found = replaced(self, envelope, *args, look_only=look_only)
        if not look_only and found and found[0].entry.envelope != envelope:
            kind = "tombstone" if found[0].entry.envelope.kind is Kind.TOMBSTONE else "record"
            counts[f"compaction: a newer {kind} in place of an old record"] += 1
        return found

    patch.setattr(Compaction, "_compact_segment", counted_compact)
    patch.setattr(_Segment, "_may_be_forgotten", counted_forgotten)
    patch.setattr(_Segment, "_replaced", counted_replaced)


def _shards(patch: pytest.MonkeyPatch, counts: Counter[str]) -> None:
    bring_back, pay = Presence._bring_back, Mending._pay

    def counted_bring_back(self: Presence, number: int) -> bool:
        back = bring_back(self, number)
        counts["a shard came back"] += back
        counts["a shard came back, and is owed something"] += back and bool(self._metastore.debts(number))
        return back

    async def counted_pay(self: Mending, number: int) -> None:
        counts["debts paid"] += len(self._metastore.debts(number))
        await pay(self, number)

    patch.setattr(Presence, "_bring_back", counted_bring_back)
    patch.setattr(Mending, "_pay", counted_pay)


def _freeing(patch: pytest.MonkeyPatch, counts: Counter[str]) -> None:
    free = Freeing._free_batch

    async def counted_free(self: Freeing, needless: Set[Garbage]) -> int:
        rows = [row for number in self._pool.numbers for row in self._metastore.garbage(number, 1_000)]
        counts["freeing beside a reader of it"] += any(self.leased(row.share.version) for row in rows)
        done = await free(self, needless)
        counts["shares freed"] += done
        return done

    patch.setattr(Freeing, "_free_batch", counted_free)


def _recovery(patch: pytest.MonkeyPatch, counts: Counter[str]) -> None:
    holds = CatchingUp._holds

    def counted_holds(self: CatchingUp, known: Progress) -> bool:
        held = holds(self, known)
        short = not held and (last := self._segments.header(known.segment)) is not None and last.id == known.segment_id
        counts["a segment that ends before its index"] += short
        return held

    patch.setattr(CatchingUp, "_holds", counted_holds)
