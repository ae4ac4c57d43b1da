"""unshare --mount python -m tests.powercut [--seconds S] [--cuts N] [--disks 1|2] [--seed SEED]

In mounts of its own, which are gone with it: services of others cannot be set up while a mount is there that they may not look at.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.daemon.process import Daemon
from tests.powercut.cuts import Check, Disks, command, mounted
from tests.powercut.disks import read_journal
from tests.powercut.load import Load
from zstor_local import limits

DISK_BYTES: Final = 384 * limits.MIB
MEMORY: Final = Path("/dev/shm")  # noqa: S108 (a directory of its own is made there)


@contextmanager
def recorded(directory: Path, count: int) -> Iterator[Path]:
    """The disks' files, while the block runs; their journal is beside them."""
    place = directory / "recorded"
    place.mkdir()
    arguments = [str(place), str(directory / "journal"), str(DISK_BYTES), str(count)]
    server = subprocess.Popen([sys.executable, "-m", "tests.powercut.disks", *arguments])
    try:
        while not (place / "disk0").exists():
            if server.poll() is not None:
                raise SystemExit("the disks cannot be served: this needs root, /dev/fuse, libfuse2 and fusepy")
        yield place
    finally:
        command("umount", str(place))
        server.wait()


def configure(home: Path, places: list[Path]) -> None:
    """Six shards, spread over the disks; with one disk the default."""
    if len(places) == 1:
        return
    shards = ((number, places[number % len(places)] / "shards" / str(number)) for number in range(6))
    text = "".join(f'[[shard]]\nid = "{number}"\nurl = "{root}"\n' for number, root in shards)
    for place in places:
        (place / "shards").mkdir()
    (home / "config/zstor").mkdir(parents=True)
    (home / "config/zstor/config.toml").write_text(text)
    os.sync()


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def powercut(directory: Path, seconds: float, cuts: int, disks: int, seed: int) -> int:
    places = [directory / f"place{number}" for number in range(disks)]
    home, journal = places[0] / "home", directory / "journal"
    with recorded(directory, disks) as images, ExitStack() as opened:
        for number, place in enumerate(places):
            place.mkdir()
            command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(images / f"disk{number}"))
            opened.enter_context(mounted(images / f"disk{number}", place, direct=True))
        daemon = opened.enter_context(Daemon(home))
        configure(home, places)
        daemon.start()
        load = Load(daemon, directory, seed, lambda: journal.stat().st_size)
        begun = journal.stat().st_size
        load.run(seconds)
        end = journal.stat().st_size
    answered = sum(step.answered is not None for history in load.histories.values() for step in history.steps)
    _say(f"seed {seed}: {answered} calls answered; {end >> 20} MiB written to {disks} disk(s)")

    dice = random.Random(f"{seed} cuts")
    positions = sorted(dice.randrange(begun, end) for _ in range(cuts))
    check, state, wrong = Check(load, places, home), Disks(directory, DISK_BYTES, disks), 0
    for written in read_journal(journal):
        while positions and positions[0] < written.position:
            position = positions.pop(0)
            for fault in check.run(state.cut(dice), position, dice):
                wrong += 1
                _say(f"cut at {position}: {fault}")
            if len(positions) % 10 == 0:
                _say(f"{cuts - len(positions)} cuts, {wrong} wrong")
        state.take(written)
    _say(f"what followed: {check.done}")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="how long the daemon works")
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--disks", type=int, choices=(1, 2), default=1)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        return powercut(Path(directory), given.seconds, given.cuts, given.disks, given.seed)


if __name__ == "__main__":
    sys.exit(main())
