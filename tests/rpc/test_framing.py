"""The reader: the same events however the bytes are cut, in linear time."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zstor_local.errors import ParseError, TooLarge
from zstor_local.rpc.framing import Event, Fault, Framer, Message, Terminator
from zstor_local.rpc.strict_json import Json

CUTS = [1, 2, 3, 7, 64, 1 << 20]


@dataclass
class Run:
    """What a reader made of its input."""

    events: list[Event]
    scanned: int

    @property
    def values(self) -> list[Json]:
        return [event.value for event in self.events if isinstance(event, Message)]

    @property
    def outline(self) -> list[object]:
        """Values, error types and line decisions, the late ones put where they belong."""
        rows: list[list[object]] = []
        for event in self.events:
            if isinstance(event, Terminator):
                assert rows[-1][1] is None
                rows[-1][1] = event.line
            elif isinstance(event, Message):
                rows.append([json.dumps(event.value), event.line])
            else:
                rows.append([(event.error.type, event.error.data.get("reason")), event.line])
        return [tuple(row) for row in rows]


def read(data: bytes, cut: int = 1 << 20, *, limit: int = 1 << 24) -> Run:
    framer = Framer(limit)
    events = []
    for start in range(0, len(data), cut):
        framer.receive(data[start : start + cut])
        while (event := framer.next_event()) is not None:
            events.append(event)
    framer.end()
    while (event := framer.next_event()) is not None:
        events.append(event)
    return Run(events, framer.scanned)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
containers = st.lists(json_values, max_size=4) | st.dictionaries(st.text(max_size=6), json_values, max_size=4)


@st.composite
def written(draw: st.DrawFn) -> tuple[list[Json], bytes]:
    """Messages, and a way to write them down: on lines, joined, pretty-printed, escaped or not."""
    values: list[Json] = [*draw(st.lists(containers, min_size=1, max_size=31))]
    text = ""
    for value in values:
        indent = draw(st.sampled_from([None, None, 2]))
        text += json.dumps(value, indent=indent, ensure_ascii=draw(st.booleans()))
        text += draw(st.sampled_from(["\n", "\n", "", " ", "\r\n", "\n\n", "\t\n", "  "]))
    return values, text.encode()


@given(written())
def test_lines_joined_and_pretty_printed_messages_come_out_as_they_went_in(case: tuple[list[Json], bytes]) -> None:
    values, data = case
    assert read(data).values == values


@given(written(), st.sampled_from(CUTS))
def test_the_events_do_not_depend_on_how_the_input_is_cut(case: tuple[list[Json], bytes], cut: int) -> None:
    assert read(case[1], cut).outline == read(case[1]).outline


@given(st.lists(st.sampled_from([b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\n", b" ", b"1", b'{"a":1}', b"\xff", b"x"])))
def test_garbage_ends_in_the_same_events_however_it_is_cut(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    whole = read(data, limit=40).outline
    for cut in CUTS:
        assert read(data, cut, limit=40).outline == whole


@given(st.lists(st.sampled_from([b"{", b"[", b'"', b"}", b"x", b" ", b",", b'"a":', b"1"]), max_size=40))
def test_after_any_garbage_a_later_line_is_served(pieces: list[bytes]) -> None:
    """One line is lost at most: the one that the garbage may have swallowed."""
    events = read(b"".join(pieces) + b'"\n"\n{"lost":1}\n{"served":1}\n').events
    assert [event.value for event in events if isinstance(event, Message)][-1] == {"served": 1}


def test_thirty_one_requests_in_each_form() -> None:
    requests: list[Json] = [{"jsonrpc": "2.0", "id": n, "method": "m", "params": {"text": 'a"\\]}{' * n}} for n in range(31)]
    for indent in (None, 1):
        for joint in ("\n", "", " \r\n"):
            data = (joint.join(json.dumps(request, indent=indent) for request in requests)).encode()
            for cut in CUTS:
                assert read(data, cut).values == requests


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("data", "outline"),
    [
        pytest.param(b'{"a":1}\n', [('{"a": 1}', True)], id="a line"),
        pytest.param(b'{"a":1}\r\n', [('{"a": 1}', True)], id="a line ended by CR LF"),
        pytest.param(b'{"a":1} \t\n', [('{"a": 1}', True)], id="blanks before the newline"),
        pytest.param(b'{"a":1}', [('{"a": 1}', True)], id="the end of the input counts as a newline"),
        pytest.param(b'{"a":1}{"b":2}\n', [('{"a": 1}', False), ('{"b": 2}', True)], id="joined messages"),
        pytest.param(b'{"a":1} [] 3\n', [('{"a": 1}', False), ("[]", False), ("3", True)], id="a scalar at the end of a line"),
        pytest.param(b"42\n", [("42", True)], id="a scalar ends at its newline"),
        pytest.param(b"42", [("42", True)], id="a scalar ends at the end of the input"),
        pytest.param(b'hello\n{"a":1}\n', [(("parse_error", "syntax"), True), ('{"a": 1}', True)], id="garbage costs its line"),
        pytest.param(b'{"a":\n', [(("parse_error", "syntax"), True)], id="an unterminated last message"),
        pytest.param(b'{"a":"x\n{"b":2}\n', [(("parse_error", "syntax"), True), ('{"b": 2}', True)], id="cut in a string"),
        pytest.param(b'{"a":[1,\n{"b":2}\n', [(("parse_error", "syntax"), True)], id="cut before a value: it may belong inside"),
        pytest.param(b'{"a":1\n{"b":2}\n', [(("parse_error", "syntax"), True), ('{"b": 2}', True)], id="cut behind a value"),
        pytest.param(b'{"a"]\n{"b":2}\n', [(("parse_error", "syntax"), True), ('{"b": 2}', True)], id="brackets that do not match"),
        pytest.param(
            b'[\n {"a":1},\n {"b"\n]\n{"c":3}\n',
            [(("parse_error", "syntax"), True), (("parse_error", "syntax"), True), ('{"c": 3}', True)],
            id="a broken pretty-printed batch leaves one more error for its last line",
        ),
        pytest.param(b'{"a":nul}{"b":2}\n', [(("parse_error", "syntax"), False), ('{"b": 2}', True)], id="its end is known"),
        pytest.param(b"[" * 65 + b"\n[]\n", [(("parse_error", "too_deep"), True), ("[]", True)], id="too deep"),
        pytest.param(b'{"\xff":1}\n[]\n', [(("parse_error", "encoding"), True), ("[]", True)], id="not UTF-8"),
    ],
)
def test_where_messages_end_and_where_reading_goes_on(data: bytes, cut: int, outline: list[object]) -> None:
    assert read(data, cut).outline == outline


@pytest.mark.parametrize("cut", CUTS)
def test_a_message_over_the_limit_costs_its_line(cut: int) -> None:
    fits, over = b'{"a":"' + b"x" * 92 + b'"}', b'{"a":"' + b"x" * 93 + b'"}'
    for separator in (b"\n", b" \n"):
        run = read(fits + separator + over + separator + b'{"b":2}\n', cut, limit=100)
        assert [type(event.error) for event in run.events if isinstance(event, Fault)] == [TooLarge]
        assert run.values == [json.loads(fits), {"b": 2}]


def test_a_line_longer_than_the_limit_may_hold_messages_that_fit() -> None:
    assert len(read(b'{"a":1}' * 50 + b"\n", limit=100).values) == 50


def test_what_followed_a_message_is_told_when_it_is_known() -> None:
    framer = Framer()
    framer.receive(b"[]")
    assert framer.next_event() == Message([], 2, None)
    framer.receive(b" ")
    assert framer.next_event() is None
    framer.receive(b"\n")
    assert framer.next_event() == Terminator(True)
    framer.receive(b"[]")
    framer.next_event()
    framer.receive(b"[")
    assert framer.next_event() == Terminator(False)


def test_a_message_that_was_given_up_ends_at_its_newline() -> None:
    framer = Framer()
    framer.receive(b'{"a":')
    assert framer.next_event() is None
    assert framer.pending == 5
    framer.discard()
    assert framer.pending == 0
    framer.receive(b"1}\n[]\n")
    event = framer.next_event()
    assert isinstance(event, Message)
    assert event.value == []


LONG = 200_000
WORST = {
    "one long string": b'{"a":"' + b"x" * LONG + b'"}\n',
    "one long string, its newline missing": b'{"a":"' + b"x" * LONG + b'"}',
    "a string of escapes": b'{"a":"' + b"\\n" * (LONG // 2) + b'"}\n',
    "garbage without a newline": b"x" * LONG,
    "garbage lines": b"x\n" * (LONG // 16),  # fewer: each makes an event, and that takes far longer than the looks
    "white space": b" " * LONG,
    "empty lines": b"\n" * LONG,
    "joined messages": b"[]" * (LONG // 2) + b"\n",
    "a pretty-printed list": b"[\n" + b" 1,\n" * (LONG // 4) + b"1]\n",
    "a list of lists that is never closed": b"[" + b"[1],\n" * (LONG // 8),
    "lines that break each other": b'{"a":"\n' * (LONG // 7),
    "errors far behind their newline": (b"[" + b"1,\n" * 50 + b"}" + b"\n") * (LONG // 153),
    "an error that is found late": b'{"a":1,\n' * 60 + b'"x' * LONG,
}


@pytest.mark.parametrize("cut", [7, 4096, 1 << 20])
@pytest.mark.parametrize("case", WORST)
def test_each_byte_is_looked_at_a_few_times_at_most(case: str, cut: int) -> None:
    data = WORST[case]
    assert read(data, cut).scanned <= 4 * len(data)


def test_errors_are_parse_errors_with_a_reason() -> None:
    (event,) = read(b"nope\n").events
    assert isinstance(event, Fault)
    assert isinstance(event.error, ParseError)
    assert event.error.data == {"reason": "syntax"}


MANY = 4_000_000
DEALT_WITH = {
    "a line": [b'"' + b"x" * MANY + b'"\n'],
    "a line that comes in two reads": [b'["' + b"x" * MANY, b'"]\n'],
    "a message without a newline": [b'["' + b"x" * MANY, b'"]'],
    "a message before the beginning of the next": [b'["' + b"x" * MANY, b'"]\n["'],
    "garbage": [b"[}" + b"x" * MANY],
}


@pytest.mark.parametrize("case", DEALT_WITH)
def test_what_was_dealt_with_leaves_nothing_behind(case: str) -> None:
    framer = Framer()
    tracemalloc.start()
    events = 0
    for position in range(len(DEALT_WITH[case])):
        framer.receive(DEALT_WITH[case][position])
        while framer.next_event() is not None:
            events += 1
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert events > 0
    assert held < 100_000


def test_a_message_that_was_given_up_leaves_nothing_behind() -> None:
    framer = Framer()
    tracemalloc.start()
    framer.receive(b'["' + b"x" * MANY)
    assert framer.next_event() is None
    framer.discard()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100_000
