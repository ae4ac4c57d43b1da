"""One client: order, limits, cancelling, progress, the end of the input."""

from __future__ import annotations

import gc
import json
import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from tests.rpc.conftest import Client, World, error_type, request
from zstor_local import limits
from zstor_local.errors import Conflict
from zstor_local.rpc.call import Call
from zstor_local.rpc.registry import Soon
from zstor_local.rpc.strict_json import Json
from zstor_local.rpc.turns import TURN_SECONDS
from zstor_local.store.later import Later


class Gate:
    """Methods that tests hold open."""

    def __init__(self, world: World) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.gates: dict[str, trio.Event] = {}
        self.committed = trio.Event()

        @world.registry.method("hold")
        async def hold(call: Call, /, name: str) -> str:
            """Run until the test lets go."""
            self.started.append(name)
            try:
                await self.gates.setdefault(name, trio.Event()).wait()
            except trio.Cancelled:
                self.cancelled.append(name)
                raise
            return name

        @world.registry.method("urgent", urgent=True)
        async def urgent(call: Call, /) -> str:
            """Run at once."""
            return "now"

        @world.registry.method("commit")
        async def commit(call: Call, /, name: str) -> str:
            """Commit until the test lets go."""
            call.begin_commit()
            with trio.CancelScope(shield=True):
                self.started.append(name)
                await self.gates.setdefault(name, trio.Event()).wait()
                self.committed.set()
            await trio.lowlevel.checkpoint()
            return name

        @world.registry.method("work")
        async def work(call: Call, /, steps: list[int], pause: float = 0) -> str:
            """Report progress."""
            for step in steps:
                call.progress(step, 100, "working")
                if pause:
                    await trio.sleep(pause)
            return "done"

        @world.registry.method("fail")
        async def fail(call: Call, /, how: str) -> None:
            """Fail."""
            if how == "typed":
                raise Conflict("somebody was faster", hint="read it again", current=7)
            if how == "grouped":
                raise ExceptionGroup("a nursery's", [Conflict("in a nursery")])
            raise RuntimeError("secret text")

    def open(self, name: str) -> None:
        self.gates.setdefault(name, trio.Event()).set()

    async def until_started(self, count: int) -> None:
        while len(self.started) < count:
            await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def gate(world: World) -> Gate:
    return Gate(world)


async def test_replies_come_as_calls_finish(world: World, gate: Gate) -> None:
    async with world.serving(), world.client() as client:
        for name in ("slow", "fast"):
            await client.request("hold", [name], id=name)
        await gate.until_started(2)
        gate.open("fast")
        assert (await client.reply())["id"] == "fast"
        gate.open("slow")
        assert (await client.reply())["id"] == "slow"


async def test_further_calls_wait_in_order_and_the_reader_reads_on(world: World, gate: Gate) -> None:
    limit = limits.CALLS_PER_CONNECTION
    async with world.serving(), world.client() as client:
        for number in range(limit + 3):
            await client.request("hold", [str(number)], id=number)
        await client.request("urgent", id="urgent")
        assert (await client.reply())["id"] == "urgent"  # so everything before it has been read
        await gate.until_started(limit)
        assert sorted(gate.started, key=int) == [str(number) for number in range(limit)]
        for number in range(limit, limit + 3):
            gate.open(str(number))
        gate.open("5")
        assert [(await client.reply())["id"] for _ in range(4)] == [5, limit, limit + 1, limit + 2]


async def test_members_of_a_batch_take_their_turn_and_answer_together(world: World, gate: Gate) -> None:
    limit = limits.CALLS_PER_CONNECTION
    for number in range(limit + 8):
        gate.open(str(number))
    batch = ",".join(request("hold", [str(number)], id=number) for number in range(limit + 8))
    async with world.serving(), world.client() as client:
        await client.send(f"[{batch}]\n")
        replies = json.loads(await client.line())
        assert sorted(reply["id"] for reply in replies) == list(range(limit + 8))


@pytest.mark.parametrize("batch", [False, True])
async def test_who_sends_many_quick_calls_at_once_does_not_keep_the_others_waiting(
    world: World, batch: bool, mock_clock: trio.testing.MockClock
) -> None:
    called = 0

    @world.registry.method("quick")
    def quick(call: Call, /) -> None:
        """Answer where the request is read."""
        nonlocal called
        called += 1
        mock_clock.jump(TURN_SECONDS / 50)

    requests = [request("quick", id=number) for number in range(1_000)]
    async with world.serving(), world.client() as client:
        await client.send("[" + ",".join(requests) + "]\n" if batch else "\n".join(requests) + "\n")
        while called < len(requests):
            before = called
            await trio.lowlevel.checkpoint()
            assert called - before <= 2 * 55  # in two turns: ours comes before theirs, or behind


@pytest.mark.parametrize(("method", "name"), [("$/cancelRequest", "id"), ("notifications/cancelled", "requestId")])
async def test_a_cancelled_call_gets_its_one_reply(
    world: World, gate: Gate, method: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.serving(), world.client() as client:
        await client.request("hold", ["x"], id="a")
        await gate.until_started(1)
        await client.send(json.dumps({"jsonrpc": "2.0", "method": method, "params": {name: "a"}}) + "\n")
        reply = await client.reply()
        assert reply["id"] == "a"
        assert reply["error"] == {
            "code": -32800,
            "message": "Request cancelled",
            "data": {"type": "cancelled", "retryable": False, "detail": "the caller cancelled the request"},
        }
        assert gate.cancelled == ["x"]
        assert await client.result("rpc.ping") == "pong"
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


@pytest.mark.parametrize("method", ["hold", "hold_plain"])
async def test_a_cancel_that_comes_with_its_call_is_heard(world: World, gate: Gate, method: str) -> None:
    """The call has been begun, and no task has run a step of it yet."""

    @world.registry.method("hold_plain")
    def hold_plain(call: Call, /, name: str) -> Soon[str]:
        """Have a task run until the test lets go."""

        async def hold() -> str:
            await trio.sleep_forever()
            return name

        return hold()

    async with world.serving(), world.client() as client:
        cancel = json.dumps({"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": 1}})
        await client.send(f"{request(method, ['x'])}\n{cancel}\n{request('rpc.ping', id=2)}\n")
        replies = {reply["id"]: reply for reply in (await client.reply(), await client.reply())}
        assert error_type(replies[1]) == "cancelled"


async def test_a_cancel_passes_a_full_gate_and_reaches_waiting_calls(world: World, gate: Gate) -> None:
    limit = limits.CALLS_PER_CONNECTION
    async with world.serving(), world.client() as client:
        for number in range(limit + 1):
            await client.request("hold", [str(number)], id=number)
        await client.send(json.dumps({"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {"id": limit}}) + "\n")
        assert (await client.reply())["id"] == limit
        gate.open("0")
        assert (await client.reply())["id"] == 0
        assert await client.result("rpc.methods") is not None
        assert str(limit) not in gate.started


async def test_a_cancel_for_nobody_is_silent(world: World) -> None:
    async with world.serving(), world.client() as client:
        refused: list[Json] = [{"id": 99}, {"id": []}, {}, [1]]
        for params in refused:
            await client.send(json.dumps({"jsonrpc": "2.0", "method": "$/cancelRequest", "params": params}) + "\n")
        assert await client.result("rpc.ping") == "pong"


async def test_once_a_commit_has_begun_a_cancel_does_nothing(world: World, gate: Gate) -> None:
    async with world.serving(), world.client() as client:
        await client.request("commit", ["x"], id=1)
        await gate.until_started(1)
        await client.send(request("$/cancelRequest", {"id": 1}, id=2) + "\n")
        assert (await client.reply())["id"] == 2
        gate.open("x")
        assert await client.reply() == {"jsonrpc": "2.0", "result": "x", "id": 1}


async def test_a_commit_outlives_its_client(world: World, gate: Gate) -> None:
    async with world.serving() as server:
        async with world.client() as client:
            await client.request("commit", ["x"])
            await gate.until_started(1)
        gate.open("x")
        await gate.committed.wait()
        while server.connections:
            await trio.testing.wait_all_tasks_blocked()


async def test_a_dead_client_takes_its_calls_with_it(world: World, gate: Gate) -> None:
    async with world.serving() as server:
        async with world.client() as client:
            await client.request("hold", ["x"])
            await gate.until_started(1)
        while server.connections:
            await trio.testing.wait_all_tasks_blocked()
    assert gate.cancelled == ["x"]


async def test_a_client_that_dies_after_its_half_close_is_noticed(world: World, gate: Gate, mock_clock: trio.testing.MockClock) -> None:
    async with world.serving() as server:
        async with world.client() as client:
            await client.request("hold", ["x"])
            await client.half_close()
            await gate.until_started(1)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert gate.cancelled == []
        mock_clock.jump(1)
        while server.connections:
            await trio.testing.wait_all_tasks_blocked()
    assert gate.cancelled == ["x"]


async def test_a_half_close_gets_all_replies_then_at_once_the_end(world: World, gate: Gate, mock_clock: trio.testing.MockClock) -> None:
    async with world.serving(), world.client() as client:
        await client.request("hold", ["x"], id=1)
        await client.send(request("rpc.ping", id=2))  # unterminated
        await client.half_close()
        assert (await client.reply())["id"] == 2
        gate.open("x")
        assert json.loads(await client.rest())["id"] == 1


async def test_one_dead_client_does_not_end_the_others(world: World, gate: Gate) -> None:
    async with world.serving(), world.client() as client:
        for _ in range(3):
            async with world.client() as dying:
                await dying.send(request("rpc.methods") + "\n" + request("hold", ["x"]) + '\n{"half')
        assert await client.result("rpc.ping") == "pong"


async def test_a_deadline_passes(world: World, gate: Gate, mock_clock: trio.testing.MockClock) -> None:
    async with world.serving(), world.client() as client:
        await client.request("hold", {"name": "x", "_meta": {"timeoutSeconds": 5}})
        await gate.until_started(1)
        mock_clock.jump(5)
        assert error_type(await client.reply()) == "timed_out"


async def test_a_call_whose_deadline_passes_while_it_waits_for_its_turn_is_not_run(
    world: World, gate: Gate, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = False

    @world.registry.method("quick")
    def quick(call: Call, /) -> None:
        """Answer where the request is read."""
        nonlocal ran
        ran = True

    monkeypatch.setattr(limits, "CALLS_PER_CONNECTION", 1)
    async with world.serving(), world.client() as client:
        await client.send(request("hold", ["x"], id=1) + "\n" + request("quick", {"_meta": {"timeoutSeconds": 5}}, id=2) + "\n")
        await gate.until_started(1)
        mock_clock.jump(5)
        gate.open("x")
        replies = [await client.reply() for _ in range(2)]
        assert [error_type(reply) for reply in replies if reply["id"] == 2] == ["timed_out"]
        assert not ran


async def test_a_call_whose_deadline_comes_before_its_turn_is_answered_then(
    world: World, gate: Gate, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CALLS_PER_CONNECTION", 1)
    async with world.serving() as server, world.client() as client:
        await client.request("hold", ["x"], id=1)
        for number, seconds in enumerate((50, 5), 2):
            await client.request("hold", {"name": str(number), "_meta": {"timeoutSeconds": seconds}}, id=number)
        await gate.until_started(1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(5)
        late = await client.reply()
        assert (late["id"], error_type(late)) == (3, "timed_out")
        gate.open("x")
        assert (await client.reply())["id"] == 1
        await gate.until_started(2)
        gate.open("2")
        assert (await client.reply())["result"] == "2"
        assert await client.result("rpc.ping") == "pong"
        assert server.dispatcher.inputs.left == limits.INPUT_BUDGET_BYTES
    assert gate.started == ["x", "2"]


async def test_a_deadline_does_not_touch_a_commit(world: World, gate: Gate, mock_clock: trio.testing.MockClock) -> None:
    async with world.serving(), world.client() as client:
        await client.request("commit", {"name": "x", "_meta": {"timeoutSeconds": 5}})
        await gate.until_started(1)
        mock_clock.jump(6)
        gate.open("x")
        assert (await client.reply())["result"] == "x"


async def test_a_deadline_beyond_all_time_is_none(world: World) -> None:
    async with world.serving(), world.client() as client:
        assert await client.result("rpc.ping", {"_meta": {"timeoutSeconds": 10**400}}) == "pong"


@pytest.mark.parametrize("meta", [[], {"timeoutSeconds": 0}, {"timeoutSeconds": True}, {"timeoutSeconds": "1"}, {"progressToken": []}])
async def test_ill_formed_meta_is_refused(world: World, meta: Json) -> None:
    async with world.serving(), world.client() as client:
        assert error_type(await client.error("rpc.ping", {"_meta": meta})) == "invalid_params"


async def test_meta_of_others_is_left_alone_and_only_long_methods_are_detached(world: World) -> None:
    async with world.serving(), world.client() as client:
        assert await client.result("rpc.ping", {"_meta": {"example.org/trace": 1, "detach": False}}) == "pong"
        assert error_type(await client.error("rpc.ping", {"_meta": {"detach": True}})) == "not_supported"


async def progress_of(client: Client, params: str) -> list[Json]:
    await client.send('{"jsonrpc":"2.0","id":1,"method":"work",' + params + "}\n")
    seen: list[Json] = []
    while "method" in (message := await client.reply()):
        assert message["method"] == "notifications/progress"
        assert isinstance(message["params"], dict)
        assert message["params"].pop("progressToken") == "t"
        seen.append(message["params"])
    assert message["result"] == "done"
    return seen


async def test_progress_is_told_only_when_asked_for(world: World, gate: Gate) -> None:
    async with world.serving(), world.client() as client:
        assert await progress_of(client, '"params":{"steps":[1]}') == []
        told = [{"progress": 1, "total": 100, "message": "working"}]
        assert await progress_of(client, '"params":{"steps":[1],"_meta":{"progressToken":"t"}}') == told
        assert await progress_of(client, '"params":[[1]],"_meta":{"progressToken":"t"}') == told


async def test_progress_rises_and_keeps_to_its_rate(world: World, gate: Gate, mock_clock: trio.testing.MockClock) -> None:
    """A step each 50 ms, some falling: one is told each 100 ms, and only what is higher than the last."""
    steps = [1, 2, 3, 4, 3, 5, 2, 8]
    async with world.serving(), world.client() as client:
        params = f'"params":{{"steps":{steps},"pause":0.05,"_meta":{{"progressToken":"t"}}}}'
        mock_clock.rate = 0
        told: list[Json] = []
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def collect() -> None:
                told.extend(await progress_of(client, params))
                nursery.cancel_scope.cancel()

            while True:
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(0.05)
    assert [entry["progress"] for entry in told if isinstance(entry, dict)] == [1, 3, 5, 8]


async def test_errors_have_code_message_type_and_hint(world: World, gate: Gate) -> None:
    async with world.serving(), world.client() as client:
        assert await client.error("fail", ["typed"]) == {
            "code": 102,
            "message": "somebody was faster",
            "data": {"type": "conflict", "retryable": False, "hint": "read it again", "current": 7},
        }
        assert error_type(await client.error("fail", ["grouped"])) == "conflict"


async def test_an_unexpected_fault_has_an_incident_and_no_text(world: World, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    async with world.serving(), world.client() as client:
        await client.request("fail", ["surprise"])
        line = await client.line()
    assert b"secret" not in line
    error = json.loads(line)["error"]
    assert (error["code"], error["message"]) == (-32603, "Internal error")
    (record,) = caplog.records
    assert record.name == "zstor.rpc"
    assert error["data"]["incident"] in record.message
    assert "secret text" in caplog.text


async def test_notifications_are_run_and_never_answered(world: World, gate: Gate) -> None:
    async with world.serving(), world.client() as client:
        for method, params in (("hold", ["x"]), ("hold", []), ("nobody", []), ("fail", ["typed"]), ("fail", ["surprise"])):
            await client.send(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}) + "\n")
        gate.open("x")
        assert await client.result("rpc.ping") == "pong"
    assert gate.started == ["x"]


async def test_sixteen_bad_messages_in_a_row_close_the_connection(world: World) -> None:
    async with world.serving(), world.client() as client:
        for _ in range(3):
            await client.send("nope\n[]\n{}\n[1]\n7\n" * 3)
            for _ in range(15):
                assert b"error" in await client.line()
            assert await client.result("rpc.ping") == "pong"
        await client.send("nope\n" * 20)
        assert (await client.rest()).count(b"\n") == 16


async def test_a_batch_over_the_limit_is_refused(world: World) -> None:
    async with world.serving(), world.client() as client:
        await client.send("[" + ",".join(["1"] * 1000) + "]\n")
        assert len(json.loads(await client.line())) == 1000
        await client.send("[" + ",".join(["1"] * 1001) + "]\n")
        assert error_type(await client.reply()) == "too_large"


async def test_a_full_batch_answer_has_an_error_for_each_member_left_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    @world.registry.method("big")
    async def big(call: Call, /) -> str:
        """Many bytes."""
        return "x" * 600

    monkeypatch.setattr(limits, "MESSAGE_BYTES", 2000)
    async with world.serving(), world.client() as client:
        await client.send("[" + ",".join(request("big", id=number) for number in range(4)) + "]\n")
        answer = await client.line()
    replies = json.loads(answer)
    assert sorted(reply["id"] for reply in replies) == [0, 1, 2, 3]
    assert ["result" in reply for reply in replies] == [True, True, False, False]
    assert error_type(replies[3]) == "too_large"
    assert len(answer) <= limits.MESSAGE_BYTES


async def test_a_full_batch_answer_comes_with_all_of_its_errors(world: World) -> None:
    """One that they made too large waited for room that no client has, and with it whoever wanted to read on."""

    @world.registry.method("big")
    def big(call: Call, /) -> str:
        """Many bytes."""
        return "x" * 40_000

    async with world.serving() as server, world.client() as client:
        await client.send("[" + ",".join(request("big", id=number) for number in range(limits.BATCH_ITEMS)) + "]\n")
        await client.half_close()
        with trio.fail_after(60):
            answer = await client.rest()
        assert len(json.loads(answer)) == limits.BATCH_ITEMS
        assert limits.MESSAGE_BYTES - 100_000 < len(answer) - 1 <= limits.MESSAGE_BYTES
        assert server.dispatcher.replies.left == limits.REPLY_BUDGET_BYTES


async def test_a_reply_that_its_id_alone_makes_too_large_comes(world: World) -> None:
    long = "é" * (limits.MESSAGE_BYTES // 5)  # six bytes each in a reply, two in a request
    async with world.serving() as server, world.client() as client:
        await client.send('{"jsonrpc": "2.0", "method": "rpc.ping", "id": "' + long + '"}\n')
        await client.half_close()
        with trio.fail_after(60):
            reply = json.loads(await client.rest())
        assert reply["id"] == long
        assert error_type(reply) == "too_large"
        assert server.dispatcher.replies.left == limits.REPLY_BUDGET_BYTES


async def test_a_reply_over_the_limit_is_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MESSAGE_BYTES", 300)
    async with world.serving(), world.client() as client:
        assert error_type(await client.error("rpc.methods")) == "too_large"


# --- The mirrored terminator ---


async def test_a_line_client_gets_lines(world: World) -> None:
    async with world.serving(), world.client() as client:
        await client.send(request("rpc.ping") + "\n")
        await client.send(request("rpc.ping") + " \r\n")
        await client.half_close()
        assert [line[:1] for line in (await client.rest()).split(b"\n")] == [b"{", b"{", b""]


async def test_a_client_without_newlines_gets_an_empty_line_at_its_next_byte(world: World) -> None:
    async with world.serving(), world.client() as client:
        await client.send(request("rpc.ping", id=1) + request("rpc.ping", id=2) + "\n")
        await client.half_close()
        first, second = (b'{"jsonrpc":"2.0","result":"pong","id":%d}\n' % number for number in (1, 2))
        assert await client.rest() in (first + b"\n" + second, second + first + b"\n")


async def test_a_client_that_waits_for_an_empty_line_gets_it_after_the_grace(
    world: World, gate: Gate, mock_clock: trio.testing.MockClock
) -> None:
    async with world.serving(), world.client() as client:
        await client.send(request("rpc.ping", id=1))
        assert (await client.reply())["id"] == 1
        assert client.received == b""
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(limits.TERMINATOR_GRACE_SECONDS)
        assert await client.line() == b""
        # The grace may be over before the call is.
        await client.send(request("hold", ["x"], id=2))
        await gate.until_started(1)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(limits.TERMINATOR_GRACE_SECONDS)
        await trio.testing.wait_all_tasks_blocked()
        gate.open("x")
        assert (await client.reply())["id"] == 2
        assert await client.line() == b""


async def test_a_newline_that_comes_later_but_within_the_grace_counts(world: World, mock_clock: trio.testing.MockClock) -> None:
    async with world.serving(), world.client() as client:
        await client.send(request("rpc.ping", id=1))
        assert (await client.reply())["id"] == 1
        await client.send("\n")
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(limits.TERMINATOR_GRACE_SECONDS)
        assert (await client.call("rpc.ping", id=2))["id"] == 2
        assert client.received == b""


async def test_a_broken_message_without_newline_is_answered_with_an_empty_line_too(
    world: World, mock_clock: trio.testing.MockClock
) -> None:
    async with world.serving(), world.client() as client:
        await client.send('{"a"]')
        assert error_type(await client.reply()) == "parse_error"
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(limits.TERMINATOR_GRACE_SECONDS)
        assert await client.line() == b""


# --- Slow and idle clients ---


async def fill(client: Client, world: World) -> None:
    """Ask for more than the kernel buffers, and read none of it."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for number in range(40):
        await client.request("big", id=number)
    await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.fixture
def big(world: World) -> World:
    @world.registry.method("big")
    async def big_(call: Call, /) -> str:
        """Many bytes."""
        return "x" * 100_000

    return world


async def test_a_client_that_takes_nothing_is_closed_and_nobody_waits_for_it(big: World, mock_clock: trio.testing.MockClock) -> None:
    async with big.serving() as server, big.client() as slow, big.client() as other:
        await fill(slow, big)
        assert await other.result("rpc.ping") == "pong"
        mock_clock.jump(limits.SLOW_READER_SECONDS - 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert server.connections == 2
        mock_clock.jump(1)
        while server.connections == 2:
            await trio.testing.wait_all_tasks_blocked()
        assert await other.result("rpc.ping") == "pong"


async def test_what_is_committed_for_a_client_that_read_nothing_and_went_is_told_to_nobody(big: World) -> None:
    later = Later[str]()

    @big.registry.method("later")
    def later_(call: Call, /) -> Soon[str]:
        """Come by itself."""
        return later

    async with big.serving() as server:
        async with big.client() as client:
            await client.request("later")
            await fill(client, big)
        while server.connections:
            await trio.testing.wait_all_tasks_blocked()
        later.settle("too late")  # the committer does so: what it meets here would end the daemon


@pytest.fixture
def traced() -> Iterator[None]:
    """Memory is counted, and nobody looks for garbage: of what has become old that is seldom done."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.enable()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("what", ["sent half", "took nothing", "did not wait"])
async def test_a_connection_that_ended_leaves_nothing_large(world: World, what: str) -> None:
    @world.registry.method("huge")
    async def huge(call: Call, /) -> str:
        """More than the kernel buffers."""
        return "x" * 4_000_000

    @world.registry.method("working")
    async def working(call: Call, /) -> str:
        """In the midst of something large."""
        large = "x" * 4_000_000
        await trio.sleep_forever()
        return large

    async with world.serving() as server:
        async with world.client() as client:
            if what == "sent half":
                await client.send('"' + "x" * 4_000_000)
            elif what == "did not wait":
                await client.request("working")
            else:
                await client.request("huge")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert tracemalloc.get_traced_memory()[0] > 3_000_000
        while server.connections:
            await trio.testing.wait_all_tasks_blocked()
        held, _ = tracemalloc.get_traced_memory()
        assert held < 500_000
        assert not any(isinstance(each, Call) for each in gc.get_objects())


@pytest.mark.usefixtures("traced")
async def test_clients_that_have_been_answered_hold_nothing_large(world: World) -> None:
    @world.registry.method("long")
    async def long(call: Call, /, text: str) -> int:
        """How long it is."""
        return len(text)

    async with world.serving(), AsyncExitStack() as connected:
        clients = [await connected.enter_async_context(world.client()) for _ in range(4)]
        for client in clients:
            assert await client.result("rpc.ping") == "pong"
        before, _ = tracemalloc.get_traced_memory()
        for client in clients:
            for size in (4_000_000, 100_000):  # the other one comes in one read
                assert await client.result("long", ["x" * size]) == size
        await trio.testing.wait_all_tasks_blocked(0.01)
        held, _ = tracemalloc.get_traced_memory()
        assert held - before < 200_000


async def test_a_slow_client_that_takes_something_is_kept(big: World, mock_clock: trio.testing.MockClock) -> None:
    async with big.serving() as server, big.client() as slow:
        await fill(slow, big)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked(0.01)
            slow.received += await slow.stream.receive_some(40_000)
            await trio.testing.wait_all_tasks_blocked(0.01)
            mock_clock.jump(limits.SLOW_READER_SECONDS)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert server.connections == 1
        assert sorted([(await slow.reply())["id"] for _ in range(40)], key=str) == sorted(range(40), key=str)


async def test_large_replies_arrive_whole_and_each_once(big: World) -> None:
    async with big.serving(), big.client() as client:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def ask() -> None:
                for number in range(100):
                    await client.request("big", id=number)

            seen = [(await client.reply())["id"] for _ in range(100)]
        assert sorted(seen, key=str) == sorted(range(100), key=str)


async def test_an_idle_connection_is_closed_after_an_hour(world: World, gate: Gate, mock_clock: trio.testing.MockClock) -> None:
    async with world.serving(), world.client() as client:
        await client.request("hold", ["x"])
        await gate.until_started(1)
        mock_clock.jump(limits.IDLE_CONNECTION_SECONDS)
        await trio.testing.wait_all_tasks_blocked(0.01)
        gate.open("x")
        assert (await client.reply())["result"] == "x"  # the limit does not run while a call does
        mock_clock.jump(limits.IDLE_CONNECTION_SECONDS - 1)
        assert await client.result("rpc.ping") == "pong"
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(limits.IDLE_CONNECTION_SECONDS - 1)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await client.result("rpc.ping") == "pong"
        await trio.testing.wait_all_tasks_blocked(0.01)
        mock_clock.jump(limits.IDLE_CONNECTION_SECONDS)
        assert await client.rest() == b""


async def test_too_many_long_polls_are_busy(world: World) -> None:
    entered = trio.Event()

    @world.registry.method("wait")
    async def wait(call: Call, /) -> None:
        """Wait for news."""
        with call.long_poll():
            await entered.wait()

    async with world.serving(), world.client() as client:
        for number in range(limits.LONG_POLLS_PER_CONNECTION + 1):
            await client.request("wait", id=number)
        assert error_type(await client.reply()) == "busy"
        entered.set()
        assert all(["result" in await client.reply() for _ in range(limits.LONG_POLLS_PER_CONNECTION)])
        assert "result" in await client.call("wait")


async def test_what_would_wait_for_news_after_a_stop_ends_at_once(world: World, mock_clock: trio.testing.MockClock) -> None:
    looking, waiting = trio.Event(), trio.Event()

    @world.registry.method("follow")
    async def follow(call: Call, /) -> None:
        """Look, then wait for news."""
        waiting.set()
        await looking.wait()
        with call.long_poll():
            await trio.sleep_forever()

    async with world.serving() as server, world.client() as client:
        await client.request("follow")
        await waiting.wait()
        server.stop()
        await trio.testing.wait_all_tasks_blocked()
        looking.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert world.ended.is_set()
        assert error_type(await client.reply()) == "shutting_down"


async def test_a_method_sees_its_client_and_its_connections_state(world: World) -> None:
    class Counter:
        value = 0

    @world.registry.method("count")
    async def count(call: Call, /) -> list[object]:
        """How often this connection has asked."""
        call.connection.state(Counter).value += 1
        await call.connection.notify("counted", {})
        return [call.connection.state(Counter).value, call.peer.uid, call.client_gone()]

    async with world.serving(), world.client() as client, world.client() as other:
        for expected in (1, 2):
            await client.request("count")
            assert (await client.reply())["method"] == "counted"
            assert (await client.reply())["result"] == [expected, world.own_uid, False]
        await other.request("count")
        await other.reply()
        assert (await other.reply())["result"] == [1, world.own_uid, False]
