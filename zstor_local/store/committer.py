"""The committer: the one task that makes all waiting changes durable together (group commit).

A group goes: decide each change against what is committed → seal the records → append shares and record copies to the logs → flush →
one metastore transaction → wake the writers. A reply means durable. What reached a log but not the metastore is voided there by an
entry that is flushed before the error is answered; where that is impossible the answer is `outcome_unknown`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

import trio
from outcome import Outcome

from zstor_local import limits
from zstor_local.errors import CorruptRecord, OutcomeUnknown, ShuttingDown, Unavailable, ZstorError
from zstor_local.metastore.base import REBUILD_HINT, CommitRefused, CommitUnknown, Metastore, RowName, StoreState
from zstor_local.model.ids import NamespaceId
from zstor_local.model.record import Envelope
from zstor_local.runtime import Runtime
from zstor_local.shards.base import Shard
from zstor_local.shards.log_index import LogIndex
from zstor_local.shards.pool import ShardPool
from zstor_local.store.change import Committed, Decide
from zstor_local.store.later import Later
from zstor_local.store.publishing import Item, Publisher, built_on_failed, unknown
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.suspects import Suspects
from zstor_local.store.view import View

QUIET_TURNS: Final = 3  # a request is read in one turn of the event loop and decided on in the next
CHECKPOINT_EVERY: Final = 128  # commits between two checkpoints of the metastore: a short WAL soon has its room, a long one is a pause

log = logging.getLogger("zstor.store")


@dataclass(slots=True, eq=False)
class _Change:
    space: NamespaceId
    name: str
    decide: Decide
    then: Callable[[], object] | None
    later: Later[Committed] = field(default_factory=Later)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A change that was not decided, and the rows as changes before it in its group left them that it has seen."""

    error: ZstorError
    seen: Set[RowName]

    def because_of(self, broken: Set[RowName]) -> ZstorError:
        """Its error; but if what it saw never came to be, the reason never was one."""
        return self.error if broken.isdisjoint(self.seen) else built_on_failed()


class Committer:
    """One for a store. `run` is its task; `commit` is called by everybody else."""

    def __init__(
        self, runtime: Runtime, metastore: Metastore, pool: ShardPool, index: LogIndex, sealer: RecordSealer, suspects: Suspects
    ) -> None:
        self._runtime = runtime
        self._metastore = metastore
        self._pool = pool
        self._index = index
        self._suspects = suspects
        self._publisher = Publisher(metastore, pool, sealer)
        self.view = View(metastore)
        self._waiting: list[_Change] = []
        self._wake = trio.Event()
        self._stopping = False
        self._resting = False  # the task waits to be woken
        self._committing = False  # a group is under way
        self._lone = False  # the last group held one change
        self._crash: BaseException | None = None  # that the task is to end with
        self._checkpointed = 0  # commits before the last checkpoint
        self._news = trio.Event()
        self.ended = trio.Event()
        self.ended.set()

    @property
    def state(self) -> StoreState:
        """The counters of the last committed group."""
        return self._publisher.state

    @property
    def failure(self) -> str | None:
        """Why nothing more is committed in this life of the daemon."""
        return self._publisher.failure

    @failure.setter
    def failure(self, reason: str | None) -> None:
        self._publisher.failure = reason

    async def begin(self, k: int, settle: Callable[[], object]) -> None:
        """Start a life of the daemon: a higher writer number, fresh sequences, and what an earlier life never committed is void.

        `settle` is called, in the committer's thread, when shards can be appended to and nothing else has been: any entry says that
        what lies before it is settled. CommitRefused (as on a full disk) or CommitUnknown if the metastore does not take that: such a
        life only reads.
        """
        uncommitted = await self._runtime.threads.run_commit(self._publisher.begin_life)
        await self._runtime.threads.run_commit(self._start_shards, self.state.writer)
        await self._runtime.threads.run_commit(settle)
        if uncommitted:
            await self._runtime.threads.run_commit(self._publisher.void_earlier_life, uncommitted, k)

    async def run(self) -> None:
        """Commit until `stop`; ends when nothing waits any more, and sets `ended`."""
        self.ended = trio.Event()
        try:
            with trio.CancelScope(shield=True):
                while await self._has_work():
                    await self._keep_house()
                    await self._let_others_join()
                    if self._waiting:
                        self._begin_group()
        finally:
            self._stopping = True
            _give_up(self._waiting)
            self.ended.set()

    async def _has_work(self) -> bool:
        """Wait until no group is under way and there is something to do; False at the end."""
        while self._committing or not (self._waiting or self._stopping or self._house_is_due):
            self._wake = trio.Event()
            self._resting = True
            await self._wake.wait()
            self._resting = False
        if self._crash is not None:
            raise self._crash
        return bool(self._waiting) or not self._stopping

    async def _let_others_join(self) -> None:
        """Let requests that lie in the sockets already come into this group: a flush costs as much for one change as for sixteen.

        It ends after QUIET_TURNS turns of the event loop that brought nothing new. A lone writer, whose last group held one change
        too, does not wait for others.
        """
        if self._lone and len(self._waiting) == 1:
            return
        quiet, known = 0, 0
        while quiet < QUIET_TURNS and len(self._waiting) < limits.GROUP_CHANGES:
            quiet = quiet + 1 if len(self._waiting) == known else 0
            known = len(self._waiting)
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _begin_group(self) -> None:
        group = self._next_group()
        self._committing, self._lone = True, len(group) == 1
        self._runtime.threads.start_commit(functools.partial(self._commit, group), functools.partial(self._group_ended, group))

    def _next_group(self) -> list[_Change]:
        """The changes that have waited longest; one that others have to be decided after is alone."""
        group = self._waiting[: limits.GROUP_CHANGES]
        alone = next((at for at, change in enumerate(group) if change.then is not None), len(group))
        group = group[: max(alone, 1)]
        self._waiting = self._waiting[len(group) :]
        return group

    def _group_ended(self, group: list[_Change], outcome: Outcome[list[Committed | ZstorError]]) -> None:
        self._committing = False
        try:
            self._tell_group(group, outcome)
        except BaseException as error:
            _give_up(group)
            self._crash, self._stopping = error, True
        if self._waiting or self._stopping or self._house_is_due or self._crash is not None:
            self._wake.set()

    def _tell_group(self, group: list[_Change], outcome: Outcome[list[Committed | ZstorError]]) -> None:
        try:
            self._settle(group, outcome.unwrap())
        except Exception as error:
            # A fault of ours, in the middle of a group: nobody knows how far it came, so nothing more is committed in this life.
            log.exception("a group commit failed")
            self.failure = f"a commit broke off ({type(error).__name__}); see the log"
            rest = [change for change in group if not change.later.settled]
            self._settle(rest, [unknown(None) for _ in rest])

    def _settle(self, group: list[_Change], outcomes: Sequence[Committed | ZstorError]) -> None:
        self._waiting[:0] = group[len(outcomes) :]  # that were too many: the next group begins with them
        for change, outcome in zip(group[: len(outcomes)], outcomes, strict=True):
            change.later.settle(outcome)
            if isinstance(outcome, CorruptRecord):
                self._suspects.add(change.space, change.name)
        self.tell()

    def commit(
        self, space: NamespaceId, name: str, decide: Decide, *, then: Callable[[], object] | None = None
    ) -> Later[Committed]:  # fmt: skip
        """Have a change committed. `decide` runs in the committer's thread, with the row as the changes before it left it.

        It may raise a ZstorError to refuse. From here on the change takes its course: cancelling has no effect, the true result
        comes. With `then` it is a group by itself; that is called in the same thread once it is committed, before others are decided.
        """
        if self.failure is not None or not self._metastore.writable:
            raise self._unavailable()
        if self._stopping:
            raise ShuttingDown("the daemon is stopping", hint="try again when it is back")
        change = _Change(space, name, decide, then)
        self._waiting.append(change)
        if not self._committing:
            if self._resting and self._lone and not self._house_is_due:
                self._begin_group()  # without a turn of the event loop, which a small write would have to wait for
            else:
                self._wake.set()
        return change.later

    def must_take_changes(self) -> None:
        """Unavailable if nothing is committed any more in this life: for what does something before its commit."""
        if self.failure is not None or not self._metastore.writable:
            raise self._unavailable()

    async def mend_indexes(self) -> None:
        """Have the metastore make its indexes anew. Unavailable where that fails, or nothing is committed any more."""
        self.must_take_changes()
        try:
            await self._runtime.threads.run_commit(self._metastore.mend_indexes)
        except CommitRefused as error:
            hint = "make room on the disk of the store" if error.no_space else REBUILD_HINT
            raise Unavailable(f"the indexes of the metastore are not made anew: {error}", hint=hint) from None
        except CommitUnknown as error:
            log.error("the metastore failed: %s", error)
            self.failure = str(error)
            raise self._unavailable() from None

    def news(self) -> trio.Event:
        """Set when the next group is committed. Take it before looking, then nothing is missed."""
        return self._news

    def tell(self) -> None:
        """Wake those who wait for news: of something that this store follows and did not commit."""
        self._news.set()
        self._news = trio.Event()

    def stop(self) -> None:
        """Take no more changes; `run` ends after those that wait."""
        self._stopping = True
        self._wake.set()

    # --- In the committer's thread ---

    def _start_shards(self, writer: int) -> None:
        for shard in self._pool.opened():
            shard.start(writer, self._runtime.randomness)

    def _commit(self, group: Sequence[_Change]) -> list[Committed | ZstorError]:
        """The outcomes of the group's changes, or of the first ones of them."""
        if self.failure is not None:
            return [self._unavailable() for _ in group]
        decided = self._decide(group)
        items = [item for item in decided if isinstance(item, Item)]
        failed = self._publisher.publish(items) if items else {}
        broken = {row for item in items if item.error is not None for row in item.sealed}
        outcomes = [
            item.because_of(broken) if isinstance(item, _Refusal) else item.error or self._publisher.committed(item, failed)
            for item in decided
        ]
        if group[0].then is not None and isinstance(outcomes[0], Committed):
            group[0].then()
        return outcomes

    def _decide(self, group: Sequence[_Change]) -> list[Item | _Refusal]:
        """What each change comes to, in order; of the first ones alone, where all of them would take too much memory."""
        decided: list[Item | _Refusal] = []
        self.view.begin_group()
        for change in group:
            if self.view.weight > limits.GROUP_BYTES:
                break
            seen = self.view.begin_change()
            try:
                decision = change.decide(self.view.look(change.space, change.name))
            except ZstorError as error:
                decided.append(_Refusal(error, seen | self.view.weighed))
                continue
            sealed = self._publisher.seal(decision.records)
            self.view.take(change.space, decision, sealed)
            decided.append(Item(change.space, change.name, decision, sealed, seen))
        return decided

    @property
    def last_given(self) -> int:
        """The last sequence that anything was sealed with. For `decide`."""
        return self._publisher.last_given

    @property
    def all_told(self) -> bool:
        """No shard of the store has yet to hear of something that never came to be."""
        return self._publisher.all_told

    @property
    def shards(self) -> list[int]:
        """The numbers of all shards, those that are away too."""
        return self._pool.numbers

    def void_on(self, shard: Shard, sequences: Mapping[int, NamespaceId], newest: Sequence[Envelope] = ()) -> None:
        """Say in a shard's log that these, and what it has yet to hear of, never happened, and what is newer; or ShardError."""
        self._publisher.void_on(shard, sequences, newest)

    def _unavailable(self) -> Unavailable:
        return Unavailable(
            f"the metastore does not take writes: {self.failure or 'it failed'}",
            hint="reads go on; unless that says what to do, see that the disk of the store is well and can be written to, then restart",
            retryable=False,
        )

    @property
    def _house_is_due(self) -> bool:
        return self._publisher.commits - self._checkpointed >= CHECKPOINT_EVERY or self._index.is_due

    async def _keep_house(self) -> None:
        """Now and then: the metastore's checkpoint, the index of the logs."""
        if self._publisher.commits - self._checkpointed >= CHECKPOINT_EVERY:
            self._checkpointed = self._publisher.commits
            try:
                await self._runtime.threads.run_commit(self._metastore.checkpoint)
            except CommitUnknown as error:
                log.error("the metastore failed: %s", error)
                self.failure = str(error)
        if self._index.is_due:
            await self._runtime.threads.run_commit(self._index.flush)


def _give_up(changes: Sequence[_Change]) -> None:
    """Wake whoever waits for changes that nobody will answer any more: their outcome stays unknown."""
    for change in changes:
        change.later.settle(OutcomeUnknown("the commit was not answered", hint="read the key to see"))
