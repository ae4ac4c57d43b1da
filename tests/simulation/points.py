"""Crash points, faults and call sites: everything about a simulated call but its work.

Every call that changes something, or makes a change durable, is a *crash point*: it is counted, and logged with its *site*, the
function that made it: `zstor_local.shards.log.Log.append:pwritev`. Functions of `runtime.py` and `shardserver/disk.py` stand for
their callers; an fsync of a directory is called `fsync_directory`. The number lets a sweep cut the power before each call, the site
lets it take a single call out of the program (`skip`) to see whether the sweep notices.
"""

from __future__ import annotations

import dis
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType, FrameType
from typing import Final, NamedTuple, NoReturn, TypeVar

from outcome import Outcome, capture

from tests.simulation.disk import failure

SKIPPABLE: Final = ("fsync", "fsync_directory", "fdatasync", "syncfs", "rename")
_WRITES: Final = ("pwritev", "writev")
_OUTSIDE: Final = (
    "outcome._impl",
    "zstor_local.disks",
    "zstor_local.runtime",
    "zstor_local.shardserver.disk",
    "tests.simulation.points",
    "tests.simulation.files",
    "tests.simulation.world",
)

T = TypeVar("T")
Where = Callable[[str], bool]


class PowerLoss(BaseException):  # not an error that a program may handle
    """The power went. The world it went in is dead: every later call raises this too."""


class Site(NamedTuple):
    """One crash point that was reached: its number (from 1), who called what, on which path."""

    number: int
    name: str
    path: str


@dataclass(slots=True)
class Fault:
    """Something that goes wrong with an operation, `times` times or (None) for ever."""

    operation: str
    where: Where
    code: int | None = None
    at_most: int | None = None
    times: int | None = None


class CrashPoints:
    """The half of `SimulatedFiles` that tests talk to."""

    def __init__(self) -> None:
        self.sites: list[Site] = []
        self._dead = False
        self._crash_at = 0
        self._torn = False
        self._fail_from: tuple[int, int, bool] | None = None
        self._faults: list[Fault] = []
        self._hanging: list[Where] = []
        self._held: list[Callable[[], object]] = []
        self.asked = 0  # calls of disks that may hang
        self._skipped: set[str] = set()
        self._history = hashlib.blake2b(digest_size=16)

    def follow(self, other: CrashPoints) -> None:
        """Take over what stays in force over a crash: the skipped sites and the history."""
        self._skipped = other._skipped.copy()
        self._history = other._history.copy()

    def history(self) -> str:
        """A hash of all calls so far, their arguments included: equal for equal runs."""
        return self._history.hexdigest()

    @property
    def points(self) -> int:
        """How many crash points have been passed."""
        return len(self.sites)

    @property
    def dead(self) -> bool:
        """Whether the power has gone."""
        return self._dead

    def crash_at(self, number: int, *, torn: bool = False) -> None:
        """Cut the power before crash point `number` (from 1) does its work; torn: a write does the first half of it first."""
        self._crash_at, self._torn = number, torn

    def fail_at(self, number: int, code: int, *, and_after: bool = False) -> None:
        """Crash point `number`, and with `and_after` all later ones, fail with this errno instead of doing their work."""
        self._fail_from = (number, code, and_after)

    def fail(self, operation: str, where: Where, code: int, times: int | None = 1) -> None:
        """The operation (a method's name, `fsync_directory`, or `*` for all) fails with this errno on paths where `where` holds."""
        self._faults.append(Fault(operation, where, code=code, times=times))

    def shorten(self, operation: str, where: Where, at_most: int, times: int | None = None) -> None:
        """Reads or writes (`pwritev`, `preadv`, ... or `*`) move at most so many bytes."""
        self._faults.append(Fault(operation, where, at_most=at_most, times=times))

    def hang(self, where: Where) -> None:
        """Disks at the paths where `where` holds do not answer: what is asked of them is done once they do."""
        self._hanging.append(where)

    def ask(self, fn: Callable[[], T], deliver: Callable[[Outcome[T]], object], name: str) -> None:
        """What asks the disk at the path `name` in place of a thread: see zstor_local.disks.Start."""

        def do() -> None:
            deliver(capture(fn))

        self.asked += 1
        if any(where(name) for where in self._hanging):
            self._held.append(do)
        else:
            do()

    @property
    def held(self) -> int:
        """How many calls hang."""
        return len(self._held)

    def answer(self) -> None:
        """Every disk answers again."""
        self._hanging.clear()
        held, self._held = self._held, []
        for do in held:
            do()

    def heal(self) -> None:
        """No more crash, no more faults, and what was asked of disks that did not answer is done; skipped sites stay skipped."""
        self._crash_at, self._torn, self._fail_from = 0, False, None
        self._faults.clear()
        self.answer()

    def skip(self, site: str) -> None:
        """The call at this site (see `skippable`) does nothing and says that it worked. Stays in force over crash and copy."""
        if _operation(site) not in SKIPPABLE:
            raise ValueError(f"{site} is not a sync or a rename")
        self._skipped.add(site)

    def skippable(self) -> list[str]:
        """The sites of syncs and renames reached so far, each once, sorted: the mutants to make."""
        return sorted({site.name for site in self.sites if _operation(site.name) in SKIPPABLE})

    def point(self, name: str) -> None:
        """A crash point of somebody else, as a simulated metastore's commit."""
        self._point(_operation(name), name, site=name)

    def _show(self) -> None:
        """Called at each crash point, before it does its work."""

    @property
    def _tears(self) -> bool:
        """Whether the write at the present crash point is to be torn."""
        return self._crash_at == len(self.sites)

    def _alive(self) -> None:
        if self._dead:
            raise PowerLoss

    def _die(self) -> NoReturn:
        self._dead = True
        raise PowerLoss

    def _begin(self, operation: str, path: str, *details: object) -> None:
        """Every call that changes nothing passes here."""
        self._alive()
        self._history.update(repr((operation, path, details)).encode())
        self._break(operation, path)

    def _point(self, operation: str, path: str, *details: object, other: str = "", site: str = "") -> bool:
        """Every crash point passes here. True if the call is to be skipped."""
        self._alive()
        site = site or _site(operation)
        self.sites.append(Site(len(self.sites) + 1, site, path))
        self._history.update(repr((operation, path, other, details)).encode())
        self._show()
        if self._crash_at == len(self.sites) and not (self._torn and operation in _WRITES):
            self._die()
        if self._fail_from is not None:
            number, code, and_after = self._fail_from
            if len(self.sites) == number or (and_after and len(self.sites) > number):
                raise failure(code, path)
        self._break(operation, path, other)
        return site in self._skipped

    def _break(self, operation: str, *paths: str) -> None:
        for fault in self._faults:
            if fault.code is not None and self._strikes(fault, operation, paths):
                raise failure(fault.code, paths[0])

    def _shortened(self, operation: str, path: str, length: int) -> int:
        for fault in self._faults:
            if fault.at_most is not None and self._strikes(fault, operation, (path,)):
                return min(length, fault.at_most)
        return length

    def _strikes(self, fault: Fault, operation: str, paths: Sequence[str]) -> bool:
        if fault.operation not in ("*", operation) or fault.times == 0 or not any(fault.where(path) for path in paths if path):
            return False
        if fault.times is not None:
            fault.times -= 1
        return True


def under(prefix: str) -> Where:
    """A predicate for `fail` and `shorten`: the path itself or anything below it."""
    return lambda path: path == prefix or path.startswith(prefix.rstrip("/") + "/")


def _operation(site: str) -> str:
    return site.rpartition(":")[2].partition("#")[0]


def _site(operation: str) -> str:
    """The innermost function outside of the seam and the simulation, and what it calls.

    Where one function has several calls of the same name, they are numbered from the top: `sweep:rename#2`.
    """
    frame: FrameType | None = sys._getframe(1)
    called = ""
    while frame is not None:
        code = frame.f_code
        module = frame.f_globals.get("__name__", "")
        if module not in _OUTSIDE:
            lines = _lines_naming(code, called)
            number = f"#{max(1, sum(line <= frame.f_lineno for line in lines))}" if len(lines) > 1 else ""
            return f"{module}.{code.co_qualname}:{operation}{number}"
        called = code.co_name
        frame = frame.f_back
    return f"?:{operation}"


@cache
def _lines_naming(code: CodeType, name: str) -> Sequence[int]:
    """The lines of a function on which a name or attribute is looked up."""
    found = {each.positions.lineno for each in dis.get_instructions(code) if each.positions and each.argval == name}
    return sorted(line for line in found if line is not None)
