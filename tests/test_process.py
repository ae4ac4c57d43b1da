"""What a serving process does about its own memory."""

from __future__ import annotations

import subprocess
import sys

import trio
import trio.testing

from zstor_local import process
from zstor_local.limits import MIB

FRAGMENTED = f"""
from zstor_local.process import give_back, keep_buffers, resident_bytes
keep_buffers()
pieces = [bytearray({MIB} // 4) for _ in range(800)]
for piece in pieces:
    piece[:] = b"x" * len(piece)
full = resident_bytes()
del pieces[:-1]  # the last one keeps the heap from shrinking
kept = resident_bytes()
give_back()
print(full, kept, resident_bytes())
"""


async def test_memory_is_given_back_whenever_some_more_has_become_resident(autojump_clock: trio.testing.MockClock) -> None:
    resident, given_back = 100 * MIB, []

    def give_back() -> None:
        given_back.append(resident // MIB)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.give_back_memory, lambda: resident, give_back)
        for resident in (100 * MIB, 130 * MIB, 133 * MIB, 134 * MIB, 50 * MIB, 81 * MIB, 83 * MIB):  # noqa: B007 (give_back reads it)
            await trio.sleep(11)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert given_back == [133, 83]


def test_what_lies_free_below_a_piece_in_use_is_given_back() -> None:
    ran = subprocess.run([sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, check=True)
    full, kept, left = (int(number) // MIB for number in ran.stdout.split())
    assert kept > 150, "nothing to give back"
    assert left < full - 150
