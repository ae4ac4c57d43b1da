"""Remote logs: entries in order, each with the hash that its writers know it by and the id of its content.

The newest page of a log is the value of the name `log/<log>`; the pages before it are in the content store, each named by the one
above. A log's policy and mark are a store-wide row, so a rebuild brings logs back whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final
from weakref import WeakValueDictionary

from zstor_local.content.cas import Cas
from zstor_local.content.logs.held import Held
from zstor_local.content.logs.opened import OpenLog
from zstor_local.content.logs.page_index import PageIndex
from zstor_local.content.logs.policy import DEFAULT_LOG, TABLE, LogPolicy, LogRecord, check_log
from zstor_local.content.names import Names
from zstor_local.errors import AlreadyExists, NotFound
from zstor_local.runtime import Runtime
from zstor_local.store.storewide import StoredRow, StoreWide

RECENT_LOGS: Final = 128  # kept in memory, with their newest page


class Logs:
    """The logs of one store."""

    def __init__(self, runtime: Runtime, rows: StoreWide, names: Names, cas: Cas, index: PageIndex) -> None:
        self._runtime = runtime
        self._rows = rows
        self._cas = cas
        self._index = index
        self._open: WeakValueDictionary[str, OpenLog] = WeakValueDictionary()  # one object for a log: it has the lock
        self._recent: deque[OpenLog] = deque(maxlen=RECENT_LOGS)
        self.names: Final = names

    async def create(self, name: str, policy: LogPolicy) -> OpenLog:
        """A new, empty log; AlreadyExists. Its policy stays as it is."""
        record = LogRecord(policy, self._runtime.clock.now())

        def change(current: StoredRow | None) -> bytes:
            if current is not None:
                raise AlreadyExists(f"there is a log {name!r} already", hint="`zstor log ls` shows it")
            return record.encode()

        await self._rows.change(TABLE, check_log(name), change)
        log = await self.open(name)
        log.record = record  # the default log may have been looked at before it was there
        return log

    def list(self, after: str | None, limit: int) -> Iterator[str]:
        """Names of logs behind `after`, in order, at most `limit`."""
        yield from self._rows.names(TABLE, "", after, limit)

    async def open(self, name: str) -> OpenLog:
        """The log, read and with its index complete; NotFound. The default log is there, empty, before anything is appended to it."""
        log = self._open.get(name)
        if log is None:
            log = OpenLog(name, self.record(name), self._rows, self.names, self._index, Held(self._cas, name))
            self._open[name] = log
            self._recent.append(log)
        if not log.loaded:
            async with log.lock:
                await log.load()
        return log

    async def ensure_row(self, log: OpenLog) -> None:
        """Make the default log known; the others are, from `create` on. The caller holds the log's lock."""
        if not log.record.created:
            fresh = LogRecord(log.record.policy, self._runtime.clock.now())
            row = await self._rows.change(TABLE, log.name, lambda current: fresh.encode() if current is None else current.value)
            if row is not None:
                log.record = LogRecord.decode(row.value)

    def record(self, name: str) -> LogRecord:
        """What the log's row says, without opening the log; NotFound."""
        row = self._rows.get(TABLE, check_log(name))
        if row is not None:
            return LogRecord.decode(row.value)
        if name == DEFAULT_LOG:
            return LogRecord(LogPolicy(), 0)
        raise NotFound(f"there is no log {name!r}", hint="`zstor log create` makes one, `zstor log ls` lists them", log=name)
