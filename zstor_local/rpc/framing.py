"""Bytes of a connection to messages: a state machine without I/O, in linear time however the input is cut.

One reader takes newline-delimited, concatenated and pretty-printed JSON:

- A whole line that parses is a message. That is the common case and costs one search for the newline and one parse.
- Where it does not parse, or its newline has not come yet, a scan for brackets and quotes finds the end of the message. Brackets that
  do not match, a newline inside a string, and a value where a comma was due end the scan with an error.
- After an error the reader goes on behind the last newline before it, or, where there is none, behind the next one. So a truncated
  line costs one error and the line after it is served.
- Anything that does not begin with a bracket ends at its newline; the end of the input ends whatever is left.

The position of the search is kept for every state: no byte is searched twice for the same thing, at most one line is read again
after an error. `Framer.scanned` counts the bytes looked at.

Clients differ in the end of line they expect of a reply (docs/wire.md): one that ends its own messages with a newline reads lines,
one that does not waits for an empty line. So every event tells whether a newline followed (`line`); None means that the next byte
will tell, in a `Terminator` event.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from zstor_local import limits
from zstor_local.errors import ParseError, TooLarge, ZstorError
from zstor_local.rpc.strict_json import Json, decode, parse_error


@dataclass(frozen=True, slots=True)
class Message:
    """One JSON value, and how many bytes it took."""

    value: Json
    length: int
    line: bool | None


@dataclass(frozen=True, slots=True)
class Fault:
    """Input that is no message; the reader has found, or looks for, the place to go on. After the `last` one there is none."""

    error: ZstorError
    line: bool | None
    last: bool = False

    def __post_init__(self) -> None:
        self.error.bare()  # else it holds the whole text that was no message


@dataclass(frozen=True, slots=True)
class Terminator:
    """What followed the last event whose `line` was None."""

    line: bool


Event = Message | Fault | Terminator


class _State(enum.Enum):
    BETWEEN = enum.auto()  # white space before a message
    BRACKETS = enum.auto()  # in an object or array
    LINE = enum.auto()  # a scalar or garbage, up to its newline
    DISCARD = enum.auto()  # after an error, up to a newline


_NOT_SPACE: Final = re.compile(rb"[^ \t\r\n]")
_NOT_BLANK: Final = re.compile(rb"[^ \t]")
_BRACKET_OR_QUOTE: Final = re.compile(rb'[\[\]{}"]')
# Possessive: a string of a million escapes must not keep a million ways back.
_STRING_REST: Final = re.compile(rb'[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+')
_SPACE, _QUOTE, _NEWLINE, _OPEN_LIST, _OPEN_OBJECT, _CLOSE_LIST, _CLOSE_OBJECT = b' "\n[{]}'
_CLOSER: Final = {_OPEN_LIST: _CLOSE_LIST, _OPEN_OBJECT: _CLOSE_OBJECT}


class _Broken(Exception):
    """The scan met an error; `position` is the first byte that cannot belong to the message."""

    def __init__(self, reason: str, detail: str | None, position: int) -> None:
        super().__init__(reason)
        self.error = parse_error(reason, detail)
        self.position = position


class Framer:
    """Feed it with `receive` and `end`, take events with `next_event` until it answers None."""

    def __init__(self, limit: int = limits.MESSAGE_BYTES) -> None:
        self.scanned = 0
        self._limit = limit
        self._buffer = bytearray()
        self._state = _State.BETWEEN
        self._start = 0  # of the message at hand
        self._position = 0  # where the search goes on
        self._fresh = True  # the message begins its line
        self._undecided = False  # the last event's `line` was None
        self._ended = False
        # The scan's own state.
        self._closers: list[int] = []
        self._in_string = False
        self._last = 0  # end of the last bracket or string
        self._last_opened = False  # it was an opening bracket
        self._tokens = 0

    @property
    def pending(self) -> int:
        """Bytes held for a message that has begun."""
        return 0 if self._state in (_State.BETWEEN, _State.DISCARD) else len(self._buffer) - self._start

    def receive(self, data: bytes) -> None:
        """Take what was read."""
        self._buffer += data

    def end(self) -> None:
        """Nothing will follow."""
        self._ended = True

    def discard(self) -> None:
        """Give up the message that has begun: go on behind the next newline."""
        self._position = len(self._buffer)
        self._state = _State.DISCARD
        self._let_go()

    def next_event(self) -> Event | None:
        """The next event in what was received, or None if it takes more bytes."""
        while True:
            if self._state is _State.BETWEEN:
                if self._undecided and (line := self._line_follows()) is not None:
                    self._undecided = False
                    return Terminator(line)
                if not self._begin():
                    return None
                if self._fresh and (event := self._try_line()):
                    return event
            elif self._state is _State.DISCARD:
                if not self._skip_line() and not self._ended:
                    self._let_go()
                    return None
                self._state, self._fresh = _State.BETWEEN, True
                if self._undecided:
                    self._undecided = False
                    return Terminator(True)
                if self._ended:
                    return None
            else:
                taken = self._take_scanned() if self._state is _State.BRACKETS else self._take_line()
                if taken is None:
                    self._let_go()
                return taken

    def _let_go(self) -> None:
        """Keep no byte of what was dealt with: it would stay until the next ones come, which may be never."""
        used = self._start if self._state in (_State.BRACKETS, _State.LINE) else self._position
        if used:
            del self._buffer[:used]
            self._start -= used
            self._position -= used
            self._last -= used

    def _begin(self) -> bool:
        """Skip white space; True at the first byte of a message."""
        found, size = self._position, len(self._buffer)
        if found < size and self._buffer[found] <= _SPACE:  # it seldom is: a line begins with its message
            position, match = found, _NOT_SPACE.search(self._buffer, found)
            found = match.start() if match else size
            self.scanned += found - position
            self._fresh = self._fresh or self._buffer.find(b"\n", position, found) >= 0
            self._position = found
        if found == size:
            self._let_go()
            return False
        self._start = found
        if self._buffer[found] in _CLOSER:
            self._state = _State.BRACKETS
            self._closers.clear()
            self._in_string = False
            self._last, self._last_opened = found, True
            self._tokens = 0
        else:
            self._state = _State.LINE
        return True

    def _try_line(self) -> Message | None:
        """The message, if the rest of the line is one."""
        self._fresh = False
        newline = self._buffer.find(b"\n", self._start)
        if newline < 0 or newline - self._start > self._limit:
            self.scanned += min(len(self._buffer), self._start + self._limit) - self._start
            return None
        self.scanned += newline - self._start
        try:
            value = decode(self._buffer, self._start, newline)
        except ParseError:
            return None
        return self._message(value, newline, newline + 1, line=True)

    def _take_line(self) -> Event | None:
        newline = self._buffer.find(b"\n", self._position)
        end = newline if newline >= 0 else len(self._buffer)
        self.scanned += end - self._position
        self._position = end
        if end - self._start > self._limit:
            return self._too_large()
        if newline < 0 and not self._ended:
            return None
        try:
            value = decode(self._buffer, self._start, end)
        except ParseError as error:
            self._state, self._fresh = _State.BETWEEN, True
            return Fault(error, line=True)
        return self._message(value, end, min(end + 1, len(self._buffer)), line=True)

    def _take_scanned(self) -> Event | None:
        try:
            end = self._scan(min(len(self._buffer), self._start + self._limit))
        except _Broken as broken:
            return self._resynchronise(broken)
        if end is None:
            if len(self._buffer) - self._start > self._limit:
                return self._too_large()
            if not self._ended:
                return None
            end = len(self._buffer)
        self._position = end
        try:
            value = decode(self._buffer, self._start, end)
        except ParseError as error:
            self._state = _State.BETWEEN
            return Fault(error, self._look_ahead())
        return self._message(value, end, end, line=self._look_ahead())

    def _message(self, value: Json, end: int, position: int, *, line: bool | None) -> Message:
        message = Message(value, end - self._start, line)
        self._state = _State.BETWEEN
        self._fresh = position > end
        self._position = position
        return message

    def _scan(self, stop: int) -> int | None:
        """The end of the message that begins at `_start`, or None if it is not before `stop`."""
        buffer, closers = self._buffer, self._closers
        position = began = self._position
        try:
            while True:
                if self._in_string:
                    position = self._scan_string(position, stop)
                    if self._in_string:
                        return None
                match = _BRACKET_OR_QUOTE.search(buffer, position, stop)
                if match is None:
                    position = stop
                    return None
                found = match.start()
                mark = buffer[found]
                position = found + 1
                if mark in (_CLOSE_OBJECT, _CLOSE_LIST):
                    if closers.pop() != mark:
                        raise _Broken("syntax", f"{chr(mark)} closes another bracket", found)
                    self._last, self._last_opened = position, False
                    if not closers:
                        return position
                else:
                    self._check_due(found)
                    if mark == _QUOTE:
                        self._in_string = True
                    else:
                        closers.append(_CLOSER[mark])
                        self._last, self._last_opened = position, True
                        if len(closers) > limits.JSON_DEPTH:
                            raise _Broken("too_deep", None, found)
        finally:
            self.scanned += position - began
            self._position = position

    def _scan_string(self, position: int, stop: int) -> int:
        match = _STRING_REST.match(self._buffer, position, stop)
        end = match.end() if match else position
        if end == stop:
            return end
        mark = self._buffer[end]
        if mark == _QUOTE:
            self._in_string = False
            self._last, self._last_opened = end + 1, False
            return end + 1
        if mark != _NEWLINE and end + 1 == stop:  # a backslash whose other half has not come
            return end
        # That newline is where the next message may begin.
        raise _Broken("syntax", "a newline inside a string", end + (1 if mark == _NEWLINE else 2))

    def _check_due(self, found: int) -> None:
        """A value or name may begin here only behind an opening bracket, a comma or a colon."""
        self._tokens += 1
        if self._tokens > 2 * limits.MESSAGE_VALUES:  # a name and a bracket or quote per value is the most there can be
            raise _Broken("too_many_values", None, found)
        before = self._buffer[self._last : found].rstrip(b" \t\r\n")
        if not before.endswith((b",", b":")) and (before or not self._last_opened):
            raise _Broken("syntax", "a value where a comma or a bracket was due", found)

    def _resynchronise(self, broken: _Broken) -> Fault:
        newline = self._buffer.rfind(b"\n", self._start, broken.position)
        if newline >= 0:
            self._state, self._fresh = _State.BETWEEN, True
            self._position = newline + 1
            return Fault(broken.error, line=True)
        return self._discarding(broken.error, broken.position)

    def _too_large(self) -> Fault:
        error = TooLarge(
            f"a message of more than {self._limit} bytes",
            hint="send large values as a descriptor (fd), a path or a stream",
            limit=self._limit,
        )
        return self._discarding(error, self._start + self._limit)

    def _discarding(self, error: ZstorError, position: int) -> Fault:
        self._position = position
        if self._skip_line():
            self._state, self._fresh = _State.BETWEEN, True
            return Fault(error, line=True)
        self._state = _State.DISCARD
        self._undecided = True
        return Fault(error, line=None)

    def _skip_line(self) -> bool:
        newline = self._buffer.find(b"\n", self._position)
        end = newline + 1 if newline >= 0 else len(self._buffer)
        self.scanned += end - self._position
        self._position = end
        return newline >= 0

    def _look_ahead(self) -> bool | None:
        line = self._line_follows()
        self._undecided = line is None
        return line

    def _line_follows(self) -> bool | None:
        """Whether a newline is next; None if what is next has not come. The end of the input counts as a newline."""
        match = _NOT_BLANK.search(self._buffer, self._position)
        if match is None:
            return True if self._ended else None
        return self._buffer[match.start()] in b"\r\n"
