"""A large file, written and read: random bytes and text, by descriptor and by path, whole and with two of the six shards away."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from zstor_local.bench import floor_files, load
from zstor_local.bench.load import BenchFailed
from zstor_local.bench.place import Place, digest, in_turns, make_random, make_text
from zstor_local.bench.results import Budget, Row
from zstor_local.limits import MIB

LOST: Final = 2
_WAYS: Final = {"random": ("fd", "path"), "text": ("fd",)}
_FLOOR: Final = "floor"
_WRITE: Final = Budget(least=0.9)
_READ: Final = Budget(least=0.9)
_READ_LOST: Final = Budget(least=0.7)

Rates = dict[tuple[str, str, str], list[float]]  # (what, content, way or floor) → MB/s, one per round


def measure(place: Place) -> Iterator[Sequence[Row]]:
    """Yields the rows so far after each step; the last ones are whole."""
    rates: Rates = defaultdict(list)
    files = {content: place.home / content for content in _WAYS}
    place.say("making the files")
    make_random(files["random"], place.plan.file_bytes)
    make_text(files["text"], place.plan.file_bytes)
    for number in range(place.plan.rounds):
        for content, file in files.items():
            place.say(f"a file of {content}, round {number + 1}")
            _Round(place, rates, content, file, number).run()
            yield []
    for file in files.values():
        file.unlink()
    yield _rows(place.plan.file_bytes, rates)


def _rows(size: int, rates: Rates) -> list[Row]:
    kinds = [
        ("write", "write {} MiB, {}, {}", _WRITE),
        ("read", "read {} MiB, {}, {}", _READ),
        ("lost", "read {} MiB, {}, {}, two shards lost", _READ_LOST),
    ]
    return [
        Row(
            work=work.format(size // MIB, content, way),
            unit="MB/s",
            here=rates[what, content, way],
            beside=rates[what, content, _FLOOR],
            note=_FLOOR,
            figure_is="ratio",
            budget=budget,
        )
        for what, work, budget in kinds
        for content, ways in _WAYS.items()
        for way in ways
    ]


class _Round:
    """One file once through everything: the floor and each way into the daemon in turns, another one first in every round."""

    def __init__(self, place: Place, rates: Rates, content: str, file: Path, number: int) -> None:
        self._place = place
        self._rates = rates
        self._content = content
        self._file = file
        self._digest = digest(file)
        self._shares = place.home / "floor-shares"
        self._copy = place.home / "copy"
        self._turns = in_turns([_FLOOR, *_WAYS[content]], number)

    def run(self) -> None:
        place, placements = self._place, {way: self._write(way) for way in self._turns}
        for what, lost in (("read", 0), ("lost", LOST)):
            for way, shards in placements.items():
                with away(place, shards[:lost]):
                    self._read(what, way, lost)
        for way in _WAYS[self._content]:
            place.load(load.call, place.daemon.socket, "object.delete", {"key": self._key(way)})

    def _write(self, way: str) -> list[str]:
        """Returns the shards that hold the file's shares, in the order of the shares: the data shares first."""
        place = self._place
        place.settle()
        if way == _FLOOR:
            self._note("write", way, place.floor(floor_files.write, self._file, self._shares, place.threads))
            return []
        written = place.load(load.write_file, place.daemon.socket, self._key(way), self._file, by_path=way == "path")
        self._note("write", way, written.seconds)
        metadata = written.result["metadata"]
        if metadata["digest"] != self._digest:
            raise BenchFailed("the daemon stored another file")
        return [entry["shard"] for entry in sorted(metadata["shards"], key=lambda entry: entry["index"])]

    def _read(self, what: str, way: str, lost: int) -> None:
        place = self._place
        place.settle()
        if way == _FLOOR:
            seconds = place.floor(floor_files.read, self._shares, self._copy, place.threads, lost=lost)
        else:
            seconds = place.load(load.read_file, place.daemon.socket, self._key(way), self._copy, by_path=way == "path").seconds
        self._note(what, way, seconds)
        self._compare()

    def _compare(self) -> None:
        if digest(self._copy) != self._digest:
            raise BenchFailed("the file came back changed")
        self._copy.unlink()

    def _key(self, way: str) -> str:
        return f"{self._content} by {way}"

    def _note(self, what: str, way: str, seconds: float) -> None:
        self._rates[what, self._content, way].append(self._place.plan.file_bytes / seconds / 1e6)


@contextmanager
def away(place: Place, shards: Sequence[str]) -> Iterator[None]:
    """While the directories of these shards lie elsewhere, as if their disks were gone. Afterwards the daemon has seen them return."""
    directories = [place.daemon.store / "shards" / shard for shard in shards]
    for directory in directories:
        directory.rename(directory.with_suffix(".away"))
    yield
    for directory in directories:
        directory.with_suffix(".away").rename(directory)
    if directories:  # it looks of its own accord every few seconds: others may be lost by then
        place.load(load.call, place.daemon.socket, "shard.list", {})
