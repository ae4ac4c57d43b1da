"""`zstor demo`, which `make demo` runs: a store of its own, a file in, two disks lost, the file out again."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import click

from zstor_local.cli import report, stdio, text
from zstor_local.cli.client import Client
from zstor_local.cli.options import Options, as_json, pass_options
from zstor_local.cli.private_daemon import DaemonEnded, PrivateDaemon
from zstor_local.limits import KIB, MIB
from zstor_local.signals import termination_raises

if TYPE_CHECKING:
    from zstor_local.rpc.methods.health import CheckView as Check
    from zstor_local.rpc.methods.objects import Written


_SHARDS: Final = range(6)
_LOST: Final = (0, 2)  # the shards with these blocks of the archive: without data blocks it must be computed from parity
_DAMAGED: Final = 0  # one of the lost: two is what any four of six can bear
_ARCHIVE_BYTES: Final = 24 * MIB  # of sources; it shrinks to some megabytes
_SMALL_FILES: Final = 60
_SMALL_BYTES: Final = 32 * KIB
_SECRET: Final = b"The key to the garden shed is under the third flower pot."


class _DemoFailed(Exception):
    """What should have come out did not."""


@click.command()
@as_json
@pass_options
def demo(options: Options) -> int:
    """Show in a minute what this is; nothing of it stays."""
    with termination_raises():
        return _shown(options)


def _shown(options: Options) -> int:
    began = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix="zstor-demo-"))
    teller = _Teller(json=options.json)
    try:
        with PrivateDaemon(home) as daemon:
            _Story(home, daemon, teller).tell()
    except (_DemoFailed, DaemonEnded) as failure:
        hint = f"everything is still in {home}, the daemon's log in {daemon.log}"
        report.failure("demo_failed", f"this went wrong: {failure}", hint=hint, json=options.json)
        return 1
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    shutil.rmtree(home)
    _say_what_next(teller, time.monotonic() - began)
    return 0


class _Teller:
    """Says what happens: to people as a story, to programs a line for each thing, with what it is as the only member's name."""

    def __init__(self, *, json: bool) -> None:
        self._json = json

    def title(self, title: str, line: str = "") -> None:
        self._say("title", title, f"\n{stdio.styled(title, sys.stdout, fg='cyan', bold=True)}")
        if line:
            self._say("about", line, f"  {line}")

    def note(self, line: str, *, good: bool = False) -> None:
        mark = stdio.styled("✓", sys.stdout, fg="green", bold=True) if good else "·"
        self._say("shown" if good else "done", line, f"  {mark} {line}")

    def command(self, words: str) -> None:
        self._say("command", words, f"  {stdio.styled('$', sys.stdout, dim=True)} {stdio.styled(words, sys.stdout, bold=True)}")

    def output(self, line: str) -> None:
        self._say("output", line, f"  {line}")

    def next(self, command: str, purpose: str) -> None:
        self._say("next", f"{command.rstrip()}: {purpose}", f"    {command}{purpose}")

    def _say(self, what: str, line: str, styled: str) -> None:
        click.echo(json.dumps({what: click.unstyle(line)}) if self._json else styled)


class _Story:
    """The steps, in order; each shows a command or what it did."""

    def __init__(self, home: Path, daemon: PrivateDaemon, teller: _Teller) -> None:
        self._home = home
        self._teller = teller
        self._daemon = daemon
        self._places = [home / "data" / "zstor" / "shards" / str(number) for number in _SHARDS]
        self._shard_of: dict[int, int] = {}  # block index of the archive → shard

    def tell(self) -> None:
        self._teller.title(
            "A daemon keeps data safe over several disks", f"Here they are six directories in {self._home}; any four are enough."
        )
        self._command("zstor", "daemon", "&")
        self._daemon.start()
        archive, tree = self._make_files()
        shares = self._put(archive, tree)
        self._show(archive, shares)
        self._search(archive)
        self._flip_a_byte(archive, shares[self._shard_of[_DAMAGED]])
        self._lose_two()
        self._read_back(archive, tree)
        self._daemon.stop()

    def _make_files(self) -> tuple[Path, Mapping[str, Path]]:
        """A real file of some megabytes, and small ones: the sources of this Python, packed and as they are."""
        sources = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
        archive, room = self._home / "library.tar.gz", _ARCHIVE_BYTES
        with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
            for source in sources:
                size = source.stat().st_size
                if size < room:
                    packed.add(source)
                    room -= size
        tree = self._home / "tree"
        for source in [source for source in sources if 0 < source.stat().st_size < _SMALL_BYTES][: _SMALL_FILES - 1]:
            copy = tree / source.relative_to(sysconfig.get_path("stdlib"))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
        (tree / "secret.txt").write_bytes(_SECRET)
        return archive, {f"tree/{path.relative_to(tree)}": path for path in tree.rglob("*") if path.is_file()}

    def _put(self, archive: Path, tree: Mapping[str, Path]) -> list[Path]:
        """Store everything. Returns the file that each shard keeps of the archive."""
        self._teller.title("A real file goes in, and a tree of small ones")
        before = set(_files(self._places))
        began = time.monotonic()
        self._zstor("put", archive.name)
        self._teller.note(f"{time.monotonic() - began:.2f} s, and durable: it would survive a power cut now")
        new = set(_files(self._places)) - before
        shares = [max((path for path in new if path.is_relative_to(place)), key=_size) for place in self._places]
        with self._connect() as client:
            metadata = cast("Written", client.call("object.stat", {"key": archive.name}))["metadata"]
            self._shard_of = {share["index"]: int(share["shard"]) for share in metadata["shards"]}
            began = time.monotonic()
            for key, path in tree.items():
                with path.open("rb") as file:
                    client.call("object.write_file", {"key": key, "fd": 0}, fds=[file.fileno()])
            took = time.monotonic() - began
        self._teller.note(
            f"{len(tree)} small files, {text.size(sum(map(_size, tree.values())))}: {took:.2f} s, each of them durable by itself"
        )
        return shares

    def _show(self, archive: Path, shares: list[Path]) -> None:
        whole = _size(archive)
        self._teller.title(
            "Where the shares lie", f"{archive.name} has {whole:,} bytes. Each directory keeps a quarter, four make the whole."
        )
        for place, share in zip(self._places, shares, strict=True):
            part = _size(share) / whole
            bar = "█" * round(40 * part) + "░" * (40 - round(40 * part))
            self._teller.output(
                f"shards/{place.name}  {stdio.styled(bar, sys.stdout, fg='blue')}  {_size(share):>10,} bytes  {part:6.1%}"
            )
            if not 0.24 < part < 0.26:  # the archive may shrink a little more, and each block carries its seal
                raise _DemoFailed(f"{share} is no quarter of the file")

    def _search(self, archive: Path) -> None:
        self._teller.title(
            "Whoever finds one of the disks can read nothing", "Every block and every record is sealed before it is written."
        )
        with archive.open("rb") as file:
            file.seek(_size(archive) // 2)
            piece = file.read(64)
        store = self._home / "data" / "zstor"
        room = _find([store], [_SECRET, piece])
        self._teller.note(f"searched the store ({room}) for “{_SECRET.decode()}” and for a piece of {archive.name}: nothing", good=True)
        room = _find(self._places, [b"secret.txt", archive.name.encode()])
        self._teller.note(f"searched the six directories ({room}) for the names of the files: nothing", good=True)

    def _flip_a_byte(self, archive: Path, share: Path) -> None:
        self._teller.title("A disk lies: one byte is flipped")
        position = _size(share) // 2
        with share.open("r+b") as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 1]))
        self._teller.note(f"byte {position:,} of the share in shards/{self._shard_of[_DAMAGED]}: {byte:#04x} is now {byte ^ 1:#04x}")
        with self._connect() as client:
            if cast("Check", client.call("object.check", {"key": archive.name}))["status"] != "valid":
                raise _DemoFailed("nobody saw the bad byte")
        self._get(archive)
        self._zstor("repair", archive.name)
        with share.open("rb") as file:
            file.seek(position)
            if file.read(1)[0] != byte:
                raise _DemoFailed("the byte is not what it was")
        self._teller.note(
            "the bad block was found before it was used, a parity block took its place, and its share was made anew", good=True
        )

    def _lose_two(self) -> None:
        self._teller.title("Two of six disks die, and the daemon with them")
        self._daemon.kill()
        lost = sorted(self._places[self._shard_of[index]] for index in _LOST)
        self._command("rm", "-r", *(str(place.relative_to(self._home)) for place in lost))
        for place in lost:
            shutil.rmtree(place)
        self._command("zstor", "daemon", "&")
        self._daemon.start()
        self._zstor("status")

    def _read_back(self, archive: Path, tree: Mapping[str, Path]) -> None:
        self._teller.title("Everything comes back")
        self._get(archive)
        with self._connect() as client:
            for key, path in tree.items():
                with tempfile.TemporaryFile() as copy:
                    client.call("object.read_file", {"key": key, "fd": 0}, fds=[copy.fileno()])
                    copy.seek(0)
                    if copy.read() != path.read_bytes():
                        raise _DemoFailed(f"{key} is not what was stored")
        self._teller.note(f"{archive.name} and {len(tree)} of {len(tree)} small files: every byte as it was", good=True)

    def _get(self, archive: Path) -> None:
        """Read the archive with the command and compare."""
        copy = self._home / "copy.tar.gz"
        began = time.monotonic()
        self._zstor("get", "-f", archive.name, copy.name)
        took = time.monotonic() - began
        with archive.open("rb") as was, copy.open("rb") as now:
            digests = [hashlib.file_digest(file, "sha256").hexdigest() for file in (was, now)]
        if digests[0] != digests[1]:
            raise _DemoFailed(f"{copy} is not {archive}")
        self._teller.note(f"{took:.2f} s, sha256 {digests[1][:16]}… as before")

    def _connect(self) -> Client:
        return Client.connect(str(self._daemon.socket))

    def _zstor(self, *arguments: str) -> None:
        """Run the command as a user would, and show both."""
        self._command("zstor", *arguments)
        finished = self._daemon.run(*arguments)
        for line in finished.stdout.splitlines():
            self._teller.output(line)
        if finished.returncode:
            raise _DemoFailed(f"zstor {shlex.join(arguments)} ended with exit code {finished.returncode}")

    def _command(self, *words: str) -> None:
        shown = " ".join(word if word == "&" else shlex.quote(word) for word in words)
        self._teller.command(shown)


def _files(tops: Sequence[Path]) -> Iterator[Path]:
    return (path for top in tops for path in top.rglob("*") if path.is_file())


def _find(tops: Sequence[Path], pieces: Sequence[bytes]) -> str:
    """Search every file for plain text that must not be there. Returns how much was searched."""
    searched, files = 0, 0
    for path in _files(tops):
        content = path.read_bytes()
        searched, files = searched + len(content), files + 1
        if any(piece in content for piece in pieces):
            raise _DemoFailed(f"plain text lies in {path}")
    return f"{text.size(searched)} in {files} files"


def _size(path: Path) -> int:
    return path.stat().st_size


def _say_what_next(teller: _Teller, seconds: float) -> None:
    teller.title("Your turn", f"That took {seconds:.0f} seconds; the demo's store is removed. To keep something:")
    name = _own_name()
    for arguments, purpose in (
        ("daemon &", "the first start makes your store and your key"),
        ("put README.md", "store a file"),
        ("get README.md copy", "read it again"),
        ("status", "are all shards well?"),
        ("key backup", "the key as words, for paper: without it nothing can be read"),
    ):
        teller.next(f"{name} {arguments:<20}", purpose)


def _own_name() -> str:
    """What the user has to type for `zstor`."""
    program = Path(sys.argv[0])
    if program.name != "zstor":
        return "python -m zstor_local"
    return "zstor" if shutil.which("zstor") == str(program) else os.path.relpath(program)
