"""Checking a whole log, from the newest page to the first, against nothing but its own hashes and rules.

Nothing is believed that can be checked: each page is hashed and compared with what the page above calls it, numbers must fall by one,
no local hash may come twice, content must be there and, if asked for, is hashed too. The index is not asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import trio

from zstor_local import limits
from zstor_local.content.cas import Cas
from zstor_local.content.logs.held import Held
from zstor_local.content.logs.logs import Logs
from zstor_local.content.logs.policy import LogPolicy, head_name
from zstor_local.content.logs.scratch import Scratch, scratch
from zstor_local.errors import CorruptRecord, NotFound, Unreadable
from zstor_local.formats import unixfs
from zstor_local.formats.cid import Cid
from zstor_local.formats.mvds import logged_message_id
from zstor_local.formats.protobuf import Malformed
from zstor_local.formats.remotelog import Entry, Page, entries, parse_page
from zstor_local.store.caller import Caller

_TURN: Final = 50  # entries between two turns of other tasks

Kind: TypeAlias = Literal["gap", "fork", "bad_hash", "missing", "malformed"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a log. `seq`: at or just above which entry; `cid`: which page or content."""

    kind: Kind
    text: str
    seq: int | None = None
    cid: Cid | None = None


@dataclass(slots=True)
class Verified:
    """What a check found, from the newest entry to the oldest. Without problems the log is whole."""

    entries: int = 0
    pages: int = 0
    scrubbed: int = 0
    contents: int = 0  # present, and hashed if that was asked for
    problems: list[Problem] = field(default_factory=list)

    def note(self, problem: Problem) -> None:
        if len(self.problems) < limits.LOG_PROBLEMS:
            self.problems.append(problem)


class Verifying:
    """The use case."""

    def __init__(self, logs: Logs, cas: Cas) -> None:
        self._logs = logs
        self._cas = cas

    async def verify(self, name: str, caller: Caller, *, contents: bool = False, known: tuple[int, bytes] | None = None) -> Verified:
        """Check every page, and that content is there; with `contents` that it is what its id says.

        `known` is a number and the local hash that somebody saw there once: another one there now is a fork.
        """
        policy = self._logs.record(name).policy
        head = self._logs.names.find(head_name(name))
        with scratch() as notes:
            check = _Check(Held(self._cas, name), policy, self._cas, caller, contents, known, notes)
            await check.run(b"" if head is None else head.value)
            return check.found


class _Check:
    def __init__(
        self, held: Held, policy: LogPolicy, cas: Cas, caller: Caller, contents: bool, known: tuple[int, bytes] | None, notes: Scratch
    ) -> None:
        self.found = Verified()
        self._held = held
        self._policy = policy
        self._cas = cas
        self._caller = caller
        self._contents = contents
        self._known = known
        self._notes = notes
        self._due: int | None = None  # the number that comes next

    async def run(self, head: bytes) -> None:
        page = self._parsed(head, None)
        total = 0 if page is None else page.last
        while page is not None:
            self.found.pages += 1
            for position, entry in enumerate(page.entries):
                if position % _TURN == 0:
                    await trio.lowlevel.checkpoint()
                await self._entry(entry)
            self._caller.progress(self.found.entries, total)
            page = None if page.tail is None else await self._below(page.tail)
        if self._due is not None and self._due > 0 and not self.found.problems:
            self.found.note(Problem("gap", f"the log lacks {entries(1, self._due)}", self._due))
        if self._known is not None and self._known[0] > total:
            self.found.note(Problem("gap", f"entry {self._known[0]} is not there, the log ends with {total}", total))

    async def _below(self, cid: Cid) -> Page | None:
        """The page that is called so by the one above; None where the chain ends with a problem."""
        due = self._due
        try:
            data = await self._held.get(cid)
        except NotFound:
            self.found.note(Problem("missing", f"the page with entry {due} is not there", due, cid))
            return None
        except (Unreadable, CorruptRecord) as error:
            self.found.note(Problem("missing", f"the page with entry {due} cannot be read: {error.message}", due, cid))
            return None
        if unixfs.content_id(data) != cid:
            self.found.note(Problem("bad_hash", f"the page with entry {due} is not what its id says", due, cid))
            return None
        return self._parsed(data, cid)

    def _parsed(self, data: bytes, cid: Cid | None) -> Page | None:
        try:
            return parse_page(data)
        except Malformed as error:
            which = "the newest page" if cid is None else f"the page with entry {self._due}"
            self.found.note(Problem("malformed", f"{which} is no page: {error}", self._due, cid))
            return None

    async def _entry(self, entry: Entry) -> None:
        self.found.entries += 1
        self.found.scrubbed += entry.scrubbed
        for problem in self._order(entry):
            self.found.note(problem)
        self._due = entry.seq - 1
        if entry.cid is not None:
            await self._content(entry, entry.cid)

    def _order(self, entry: Entry) -> Iterator[Problem]:
        """What the numbers and local hashes tell."""
        if self._due is not None and entry.seq < self._due:
            yield Problem("gap", f"the log lacks {entries(entry.seq + 1, self._due)}", self._due)
        if self._due is not None and entry.seq > self._due:
            yield Problem("fork", f"entry {entry.seq} comes below entry {self._due + 1}", entry.seq)
        if not entry.local_hash:
            yield Problem("malformed", f"entry {entry.seq} has no local hash", entry.seq)
        elif (twin := self._notes.first(entry.local_hash, entry.seq)) != entry.seq:
            yield Problem("fork", f"entries {twin} and {entry.seq} have the same local hash", entry.seq)
        if self._known is not None and self._known[0] == entry.seq and self._known[1] != entry.local_hash:
            text = f"entry {entry.seq} is {entry.local_hash.hex()}, it was {self._known[1].hex()} before"
            yield Problem("fork", text, entry.seq)

    async def _content(self, entry: Entry, cid: Cid) -> None:
        if entry.data and unixfs.content_id(entry.data) != cid:
            self.found.note(Problem("bad_hash", f"what is embedded of entry {entry.seq} is not its content", entry.seq, cid))
        try:
            content = self._held.find(cid)
            if self._contents:
                await self._cas.verify(content, self._caller)
            if self._policy.messages == "mvds":
                await self._message(entry, cid)
        except NotFound:
            self.found.note(Problem("missing", f"the content of entry {entry.seq} is not there", entry.seq, cid))
        except Unreadable as error:
            self.found.note(Problem("missing", f"the content of entry {entry.seq} cannot be read: {error.message}", entry.seq, cid))
        except CorruptRecord:
            self.found.note(Problem("bad_hash", f"the content of entry {entry.seq} is not what its id says", entry.seq, cid))
        else:
            self.found.contents += 1

    async def _message(self, entry: Entry, cid: Cid) -> None:
        """That the local hash is the id of the MVDS message."""
        try:
            message_id = logged_message_id(entry.data or await self._held.get(cid))
        except Malformed as error:
            self.found.note(Problem("malformed", f"entry {entry.seq} is no MVDS message: {error}", entry.seq, cid))
            return
        if message_id != entry.local_hash:
            self.found.note(Problem("bad_hash", f"entry {entry.seq} has the message id {message_id.hex()}", entry.seq, cid))
