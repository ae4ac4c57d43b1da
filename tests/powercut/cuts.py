"""The cuts: the disks as a power cut would leave them, mounted, and what the daemon makes of them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.daemon.process import Daemon, Ended
from tests.powercut.disks import Written, pieces
from tests.powercut.load import Load

KEPT: Final = (0.0, 0.2, 0.5, 0.8, 1.0)  # what part of that which was not flushed is on the disk all the same


def command(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def mounted(image: Path, place: Path, *, direct: bool = False) -> Iterator[None]:
    """An image's file system at a place, until the block ends."""
    loop = command("losetup", "--find", "--show", f"--direct-io={'on' if direct else 'off'}", str(image))
    try:
        command("blockdev", "--flushbufs", loop)
        command("mount", loop, str(place))
    finally:
        command("losetup", "--detach", loop)  # once nothing is mounted from it
    try:
        yield
    finally:
        command("umount", str(place))


class Disks:
    """What was flushed of each disk, and what was only written since."""

    def __init__(self, directory: Path, size: int, count: int) -> None:
        self._directory = directory
        self._flushed = [directory / f"flushed{number}" for number in range(count)]
        for image in self._flushed:
            image.touch()
            os.truncate(image, size)
        self._cuts = 0
        self._since: list[list[Written]] = [[] for _ in range(count)]

    def take(self, written: Written) -> None:
        """The next of the journal."""
        if written.data:
            self._since[written.disk].append(written)
            return
        since, self._since[written.disk] = self._since[written.disk], []
        with self._flushed[written.disk].open("r+b") as image:
            for each in since:
                os.pwrite(image.fileno(), each.data, each.offset)

    def cut(self, dice: random.Random) -> list[Path]:
        """Images of the disks after a power cut here."""
        kept = dice.choice(KEPT)
        self._cuts += 1  # each in a file of its own: what the kernel still has of the one before is not mixed with it
        images = []
        for number, flushed in enumerate(self._flushed):
            image = Path(shutil.copyfile(flushed, self._directory / f"cut{self._cuts}-{number}"))
            with image.open("r+b") as file:
                for offset, data in (piece for written in self._since[number] for piece in pieces(written)):
                    if dice.random() < kept:
                        os.pwrite(file.fileno(), data, offset)
            images.append(image)
        return images


class Check:
    """After a cut: what the daemon finds, and whether it stays so."""

    def __init__(self, load: Load, places: Sequence[Path], home: Path) -> None:
        self._load = load
        self._places = places
        self._home = home
        self.done: dict[str, int] = {}

    def run(self, images: Sequence[Path], position: int, dice: random.Random) -> list[str]:
        """What is wrong."""
        weak = any(begin <= position <= end for begin, end in self._load.weakened)
        then = dice.choice(
            [self._nothing, self._kill, *([self._lose_records_and_shard] if weak else [self._lose_records, self._lose_two])]
        )
        self.done[then.__name__.strip("_")] = self.done.get(then.__name__.strip("_"), 0) + 1
        with ExitStack() as opened:
            for image, place in zip(images, self._places, strict=True):
                opened.callback(image.unlink)
                opened.enter_context(mounted(image, place))
            daemon = opened.enter_context(Daemon(self._home))
            try:
                return self._compare(daemon, position, then, dice)
            except (Ended, AssertionError, OSError, EOFError, subprocess.CalledProcessError) as error:
                said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
                return [f"{then.__name__}: {type(error).__name__}: {said[:600]}\n{daemon.said[-600:]}"]

    def _compare(self, daemon: Daemon, position: int, then: Callable[[Daemon, random.Random], None], dice: random.Random) -> list[str]:
        daemon.start()
        found = self._look(daemon)
        wrong = []
        for name, state in found.items():
            allowed = self._load.histories[name].allowed(position)
            if state not in allowed:
                wrong.append(f"{name} is none of {len(allowed)} states: {_difference(allowed[0], state)}")
        then(daemon, dice)
        for name, state in self._look(daemon).items():
            if state != found[name]:
                wrong.append(f"{name} is another one {then.__name__}: {_difference(found[name], state)}")
        if then != self._lose_two:  # writes need five shards of six
            with daemon.client() as client:
                client.write("after the cut", b"all goes on")
        daemon.stop()
        return wrong

    def _look(self, daemon: Daemon) -> dict[str, Any]:
        with daemon.client() as client:
            return {part.name: part.look(client) for part in self._load.parts}

    # --- What happens then ---

    def _nothing(self, daemon: Daemon, dice: random.Random) -> None:
        pass

    def _kill(self, daemon: Daemon, dice: random.Random) -> None:
        daemon.restart()

    def _lose_records(self, daemon: Daemon, dice: random.Random, *options: str) -> None:
        """The metastore, and what is derived."""
        daemon.stop()
        for path in daemon.store.glob("*.sqlite*"):
            path.unlink()
        rebuild = [sys.executable, "-m", "zstor_local", "rebuild", *options]
        subprocess.run(rebuild, check=True, env=daemon.environment, capture_output=True, text=True)
        daemon.start()

    def _lose_records_and_shard(self, daemon: Daemon, dice: random.Random) -> None:
        """The metastore, where a shard was lost before."""
        self._lose_records(daemon, dice, "--accept-loss")

    def _lose_two(self, daemon: Daemon, dice: random.Random) -> None:
        with daemon.client() as client:
            shards = client.result("shard.list")["shards"]
        daemon.kill()
        for shard in dice.sample(shards, 2):
            shutil.rmtree(shard["url"].removeprefix("file://"))
        daemon.start()


def _difference(one: Any, other: Any) -> str:
    if isinstance(one, list):
        return f"{len(one)} entries, then {len(other)}"
    return str({key: (one.get(key), other.get(key)) for key in {*one, *other} if one.get(key) != other.get(key)})
