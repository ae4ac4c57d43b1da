"""What waits to be sent is bounded and stays in order."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from zstor_local import limits
from zstor_local.rpc.outbox import Cork, Outbox

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
    monkeypatch.setattr(limits, "SEND_QUEUE_BYTES", 100_000)
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


@asynccontextmanager
async def corked(count: int) -> AsyncIterator[tuple[list[Outbox], list[trio.SocketStream]]]:
    """So many outboxes whose replies are kept together."""
    cork = Cork()
    pairs = [trio.socket.socketpair() for _ in range(count)]
    boxes = [Outbox(ours, cork) for ours, _ in pairs]
    async with trio.open_nursery() as nursery:
        for box in boxes:
            nursery.start_soon(box.run)
        await trio.testing.wait_all_tasks_blocked()
        yield boxes, [trio.SocketStream(theirs) for _, theirs in pairs]
        nursery.cancel_scope.cancel()
    for pair in pairs:
        for end in pair:
            end.close()


async def test_replies_of_one_turn_go_out_with_its_end_but_the_first_at_once() -> None:
    async with corked(3) as (boxes, readers):
        for _ in range(2):  # the same in the next turn
            for box in boxes:
                box.push(b"a\n")
            boxes[2].push(b"b\n")
            assert [box.empty for box in boxes] == [True, False, False]
            await trio.lowlevel.checkpoint()
            assert [box.empty for box in boxes] == [True, True, True]
            assert [await reader.receive_some() for reader in readers] == [b"a\n", b"a\n", b"a\nb\n"]


async def test_not_many_replies_are_kept_for_a_turns_end() -> None:
    async with corked(12) as (boxes, _):
        for box in boxes:
            box.push(b"a\n")
        assert [box.empty for box in boxes] == [True] * 9 + [False] * 3


async def test_a_kept_reply_does_not_fill_the_queue() -> None:
    async with corked(2) as (boxes, readers):
        boxes[0].push(b"a\n")
        for number in range(limits.SEND_QUEUE_MESSAGES):
            await boxes[1].put(b"%d\n" % number)
        assert boxes[1].empty
        assert await readers[1].receive_some() == b"".join(b"%d\n" % number for number in range(limits.SEND_QUEUE_MESSAGES))


async def test_what_is_drained_has_left_at_once() -> None:
    async with corked(2) as (boxes, _):
        for box in boxes:
            box.push(b"a\n")
        with trio.fail_after(60):
            await boxes[1].drained()
            await trio.lowlevel.checkpoint()  # too slow if it was the limit's end that woke it
        assert boxes[1].empty


async def test_a_kept_reply_that_the_kernel_has_no_room_for_goes_on_at_once() -> None:
    async with corked(2) as (boxes, readers):
        fd, loop, done = readers[1].socket.fileno(), trio.lowlevel.current_trio_token(), trio.Event()
        read = bytearray()

        def read_elsewhere() -> None:
            while len(read) < len(LINE):
                select.select([fd], [], [])
                read.extend(os.read(fd, 1 << 20))
            loop.run_sync_soon(done.set)

        reading = threading.Thread(target=read_elsewhere, daemon=True)
        reading.start()
        boxes[0].push(b"a\n")
        boxes[1].push(LINE)
        with trio.fail_after(60):
            await done.wait()
        reading.join()
        assert read == LINE


async def test_a_client_that_is_gone_when_its_reply_was_kept_ends_only_its_own() -> None:
    cork = Cork()
    pairs = [trio.socket.socketpair() for _ in range(3)]
    boxes = [Outbox(ours, cork) for ours, _ in pairs]
    pairs[1][1].close()
    for box in boxes:
        box.push(b"a\n")
    await trio.lowlevel.checkpoint()
    assert await pairs[2][1].recv(9) == b"a\n"
    with pytest.raises(trio.BrokenResourceError):
        await boxes[1].run()
    for pair in pairs:
        for end in pair:
            end.close()


async def test_more_pieces_than_the_kernel_takes_at_once_go_out_in_order() -> None:
    async with outbox() as (box, reader):
        box.push(LINE)
        for number in range(2_000):
            box.push(b"%d\n" % number)
        assert not box.empty
        wanted = LINE + b"".join(b"%d\n" % number for number in range(2_000))
        assert await read(reader, len(wanted)) == wanted
        await box.drained()
