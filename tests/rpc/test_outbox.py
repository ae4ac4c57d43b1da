"""What waits to be sent is bounded and stays in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from zstor_local import limits
from zstor_local.rpc.outbox import Outbox

LINE = b"x" * 300_000 + b"\n"  # more than the kernel buffers


@asynccontextmanager
async def outbox() -> AsyncIterator[tuple[Outbox, trio.SocketStream]]:
    ours, theirs = trio.socket.socketpair()
    box, reader = Outbox(ours), trio.SocketStream(theirs)
    async with trio.open_nursery() as nursery, reader:
        nursery.start_soon(box.run)
        yield box, reader
        nursery.cancel_scope.cancel()
    ours.close()


async def read(reader: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += await reader.receive_some(1 << 20)
    return data


async def test_a_line_waits_while_the_queue_is_full_and_goes_out_in_order() -> None:
    async with outbox() as (box, reader):
        sent: list[int] = []

        async def send(count: int) -> None:
            for number in range(count):
                await box.put(b"%d" % number + LINE)
                sent.append(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, 10)
            await trio.testing.wait_all_tasks_blocked()
            assert box.full
            assert sent == [*range(limits.SEND_QUEUE_MESSAGES)]
            data = await read(reader, 10 * (len(LINE) + 1))
        assert data == b"".join(b"%d" % number + LINE for number in range(10))
        await box.drained()
        assert box.empty


async def test_few_but_large_lines_fill_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MESSAGE_BYTES", 100_000)
    async with outbox() as (box, _):
        box.push(LINE + LINE)
        assert box.full


async def test_what_is_small_goes_out_at_once() -> None:
    async with outbox() as (box, reader):
        box.push(b"a\n")
        assert box.empty
        assert await reader.receive_some() == b"a\n"


async def test_the_writer_ends_where_the_client_is_gone() -> None:
    ours, theirs = trio.socket.socketpair()
    box = Outbox(ours)
    theirs.close()
    with pytest.RaisesGroup(trio.BrokenResourceError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.run)
            await box.put(b"a\n")
            await box.put(b"b\n")  # to nobody
            await trio.sleep_forever()
    ours.close()
