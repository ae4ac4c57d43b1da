"""Bytes through pipes and sockets: exact at every size, whole or not at all, in little memory."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import blake3
import pytest

from tests.daemon.client import Client, close, error_type, pipe
from tests.daemon.process import Daemon
from zstor_local import limits
from zstor_local.model.policy import Policy

CHUNK = Policy().chunk_size
SIZES = [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK + 1]


def socket_pair(opened: ExitStack) -> tuple[int, int]:
    ends = [end.detach() for end in socket.socketpair()]
    for end in ends:
        opened.callback(close, end)
    return ends[0], ends[1]


WAYS: dict[str, Callable[[ExitStack], tuple[int, int]]] = {"a pipe": pipe, "a socket": socket_pair}


def fill(fd: int, parts: Iterator[bytes]) -> None:
    """Write all, until the other end is closed; then close ours."""
    with suppress(BrokenPipeError, ConnectionResetError):
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(fd, view) :]
    close(fd)


def drained(fd: int) -> Iterator[bytes]:
    while part := os.read(fd, limits.MIB):
        yield part


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES)
def test_bytes_go_in_and_come_out(client: Client, way: str, size: int) -> None:
    content = random.Random(size).randbytes(size)
    digest = "blake3:" + blake3.blake3(content).hexdigest()
    with ExitStack() as opened:
        theirs, ours = WAYS[way](opened)
        request = client.request(
            "object.write_stream", {"key": "k", "fd": 0, "expected_size": size, "expected_digest": digest}, fds=[theirs]
        )
        close(theirs)
        fill(ours, iter([content]))
        reply = client.reply()
        assert (reply["id"], reply["result"]["metadata"]["size"], reply["result"]["metadata"]["digest"]) == (request, size, digest)
    with ExitStack() as opened:
        ours, theirs = WAYS[way](opened)
        request = client.request("object.read_stream", {"key": "k", "fd": 0}, fds=[theirs])
        close(theirs)
        assert b"".join(drained(ours)) == content
        reply = client.reply()
        assert (reply["id"], reply["result"]["bytes"]) == (request, size)
    client.result("object.delete", key="k")


@pytest.mark.parametrize("way", WAYS)
def test_a_part_comes_out(client: Client, way: str) -> None:
    content = random.Random(1).randbytes(3 * CHUNK + 1)
    client.write("k", content)
    for offset, length in [(0, 1), (CHUNK - 1, 2), (CHUNK, CHUNK), (3 * CHUNK, 100), (3 * CHUNK + 1, 1)]:
        with ExitStack() as opened:
            ours, theirs = WAYS[way](opened)
            client.request("object.read_stream", {"key": "k", "fd": 0, "offset": offset, "length": length}, fds=[theirs])
            close(theirs)
            assert b"".join(drained(ours)) == content[offset : offset + length]
            assert "result" in client.reply()
    client.result("object.delete", key="k")


def test_sixty_four_megabytes_take_the_memory_of_a_few_chunks(daemon: Daemon, client: Client) -> None:
    """Random bytes: nothing is saved by compressing them."""
    count, size = 64, limits.MIB
    client.write("warm", os.urandom(3 * CHUNK))
    client.read("warm")
    client.result("object.delete", key="warm")
    before = daemon.peak_memory()
    dice = random.Random(64)
    expected = hashlib.sha256()

    def parts() -> Iterator[bytes]:
        for _ in range(count):
            part = dice.randbytes(size)
            expected.update(part)
            yield part

    with ExitStack() as opened:
        theirs, ours = pipe(opened)
        client.request("object.write_stream", {"key": "k", "fd": 0}, fds=[theirs])
        close(theirs)
        fill(ours, parts())
        assert client.reply()["result"]["metadata"]["size"] == count * size
    found = hashlib.sha256()
    with ExitStack() as opened:
        ours, theirs = pipe(opened)
        client.request("object.read_stream", {"key": "k", "fd": 0}, fds=[theirs])
        close(theirs)
        for part in drained(ours):
            found.update(part)
        assert "result" in client.reply()
    assert found.digest() == expected.digest()
    assert daemon.peak_memory() - before < 48 * limits.MIB
    client.result("object.delete", key="k")


@pytest.mark.parametrize("size", [10, CHUNK + 1])
@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("announced", ["a byte less", "a byte more", "another digest"])
def test_what_was_not_announced_is_incomplete_and_the_old_value_stays(
    client: Client, size: int, old: bytes | None, announced: str
) -> None:
    if old is not None:
        client.write("k", old)
    content = random.Random(size).randbytes(size)
    announcements: dict[str, dict[str, object]] = {
        "a byte less": {"expected_size": size - 1},
        "a byte more": {"expected_size": size + 1},
        "another digest": {"expected_digest": "blake3:" + blake3.blake3(content[:-1]).hexdigest()},
    }
    wrong = announcements[announced]
    with ExitStack() as opened:
        theirs, ours = pipe(opened)
        client.request("object.write_stream", {"key": "k", "fd": 0, **wrong}, fds=[theirs])
        close(theirs)
        filling = threading.Thread(target=fill, args=(ours, iter([content])))
        filling.start()
        assert error_type(client.reply()) == "incomplete"
        filling.join()
    assert ("k" in client.stored()) == (old is not None)
    if old is not None:
        assert client.read("k") == old
        client.result("object.delete", key="k")


@pytest.mark.parametrize("method", ["object.write_stream", "cas.upload"])
def test_what_brings_more_than_was_announced_is_not_read_to_its_end(client: Client, method: str) -> None:
    rest = iter([bytes(CHUNK)] * 64)
    with ExitStack() as opened:
        theirs, ours = pipe(opened)
        key = {"key": "k"} if method == "object.write_stream" else {}
        client.request(method, {**key, "fd": 0, "expected_size": CHUNK}, fds=[theirs])
        close(theirs)
        fill(ours, rest)  # until nobody reads it
        assert error_type(client.reply()) == "incomplete"
    assert len([*rest]) > 32
    assert "k" not in client.stored()


# A client that writes into its own pipe, and is killed there. It makes the pipe first: the kernel closes what a killed process had open
# from the last to the first, and only who sees the connection end before the pipe can tell a death from an end.
HALF = """
import os, sys
sys.path.insert(0, sys.argv[1])
from tests.daemon.client import Client
reader, writer = os.pipe()
client = Client(sys.argv[2])
client.request("object.write_stream", {"key": "half", "fd": 0}, fds=[reader])
os.close(reader)
size = int(sys.argv[3])
os.write(writer, bytes(size))
os.write(writer, bytes(100_000))  # more than a pipe holds: it is being read
print("half", flush=True)
os.read(0, 1)
"""


@pytest.mark.parametrize("size", [10, 3 * CHUNK])
def test_a_client_that_is_killed_before_the_end_of_its_pipe_has_written_nothing(daemon: Daemon, client: Client, size: int) -> None:
    command = [sys.executable, "-c", HALF, str(Path(__file__).parents[2]), daemon.socket, str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half\n"
        writer.kill()
    assert "half" not in client.stored()


def test_a_reader_that_goes_away_stops_the_stream(daemon: Daemon, client: Client) -> None:
    client.write("k", os.urandom(3 * CHUNK))
    with ExitStack() as opened:
        ours, theirs = pipe(opened)
        client.request("object.read_stream", {"key": "k", "fd": 0}, fds=[theirs])
        close(theirs)
        os.read(ours, 10)
        close(ours)
        assert error_type(client.reply()) == "io_error"
    client.result("object.delete", key="k")


def test_of_two_writers_of_one_key_one_wins_whole(daemon: Daemon, client: Client) -> None:
    for round_number in range(5):
        contents = [bytes([round_number, letter]) * (CHUNK + 7) for letter in b"ab"]
        with ExitStack() as opened:
            writers = [opened.enter_context(daemon.client()) for _ in contents]
            ends = []
            for writer in writers:
                theirs, ours = pipe(opened)
                writer.request("object.write_stream", {"key": "k", "fd": 0}, fds=[theirs])
                close(theirs)
                ends.append(ours)
            threads = [threading.Thread(target=fill, args=(end, iter([content]))) for end, content in zip(ends, contents, strict=True)]
            for thread in threads:
                thread.start()
            versions = [writer.reply()["result"]["metadata"]["version"] for writer in writers]
            for thread in threads:
                thread.join()
        winner = client.result("object.stat", key="k")["metadata"]["version"]
        assert client.read("k") == contents[versions.index(winner)]
    client.result("object.delete", key="k")


def test_more_streams_than_there_is_memory_for_are_busy_and_the_others_run(client: Client) -> None:
    count = 60
    with ExitStack() as opened:
        ends: dict[int, int] = {}
        for number in range(count):
            theirs, ours = pipe(opened)
            ends[client.request("object.write_stream", {"key": f"{number}", "fd": 0}, fds=[theirs])] = ours
            close(theirs)
        keys = {identity: str(number) for number, identity in enumerate(ends)}
        threads = [threading.Thread(target=fill, args=(ours, iter([bytes(2 * CHUNK)]))) for ours in ends.values()]
        for thread in threads:
            thread.start()
        replies = [client.reply() for _ in range(count)]
        for thread in threads:
            thread.join()
    done = {keys[reply["id"]] for reply in replies if "result" in reply}
    assert {error_type(reply) for reply in replies if "error" in reply} <= {"busy"}
    assert all(reply["error"]["data"]["retryable"] for reply in replies if "error" in reply)
    assert len(done) >= 5
    assert client.stored() == {"bystander", *done}
    for key in done:
        assert client.read(key) == bytes(2 * CHUNK)
        client.result("object.delete", key=key)


def test_streams_that_wait_for_bytes_are_busy_beyond_the_memory_for_them(client: Client) -> None:
    with ExitStack() as opened:
        waiting: list[int] = []
        while True:
            theirs, ours = pipe(opened)
            client.request("object.write_stream", {"key": f"{len(waiting)}", "fd": 0}, fds=[theirs])
            close(theirs)
            try:
                if os.write(ours, bytes(CHUNK)) < CHUNK:  # more than a pipe holds: its chunks have their memory, or it was refused
                    break
            except BrokenPipeError:
                break
            waiting.append(ours)
        assert error_type(client.reply()) == "busy"
        assert 1 <= len(waiting) < limits.CALLS_PER_CONNECTION
        for ours in waiting:
            close(ours)
        for _ in waiting:
            assert "result" in client.reply()
    for number in range(len(waiting)):
        assert client.read(f"{number}") == bytes(CHUNK)
        client.result("object.delete", key=f"{number}")
