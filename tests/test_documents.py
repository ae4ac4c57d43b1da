"""Every block of commands in README and docs is run as it stands, and what the pages say in passing can be run."""

from __future__ import annotations

import re
import socket
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from tests.documents import LANGUAGES, ROOT, Reader, ReaderWithService, Terminal, alike, blocks, filled
from zstor_local.cli.root import COMMANDS, zstor

PAGES = sorted(str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("clients/*/*.md")])
OWN_TEST = "docs/backup.md"  # what stops and starts the daemon in between: tests/test_backup_page.py
WITH_DAEMON = ("clients/", "docs/remote-log.md", "docs/wire.md")  # their reader has one that runs
INSTALLING = ("README.md", "docs/quickstart.md")
WITH_SERVICE = "docs/operations.md"
TWO_MACHINES = "docs/recipes.md"
RUN = [name for name in PAGES if name != OWN_TEST and any(block.language != "text" for block in blocks((ROOT / name).read_text()))]
COMMAND = rf"^\s*(\$|zstor ({'|'.join(COMMANDS)})|curl|socat|make|pip|npm|ssh|sudo|systemctl) "


@contextmanager
def reader_of(name: str, place: Path) -> Iterator[Reader]:
    """Somebody who has done what the page expects: begun where it begins."""
    if name == WITH_SERVICE:
        with ReaderWithService(place) as service:
            service.terminal().run("cd zstor-local")
            service.does(next(blocks((ROOT / "docs/quickstart.md").read_text())))
            service.terminal().run("cd")
            yield service
        return
    with Reader(place, installed=name not in INSTALLING, in_clone=name.startswith(("clients/", *INSTALLING))) as reader:
        if name == TWO_MACHINES:
            reader.finds_a_second_machine()
        if name.startswith(WITH_DAEMON):
            reader.terminal("daemon").start("zstor daemon")
        yield reader


@pytest.mark.parametrize("name", RUN)
def test_what_a_page_shows_is_what_happens(name: str, tmp_path: Path) -> None:
    with reader_of(name, tmp_path) as reader:
        for block in blocks((ROOT / name).read_text()):
            shown = [lines for _, lines in block.steps()]
            for (command, printed), lines in zip(reader.does(block), shown, strict=False):
                assert alike(printed) == alike(lines), command


@pytest.mark.parametrize("name", PAGES)
def test_no_block_is_left_out(name: str) -> None:
    page = (ROOT / name).read_text()
    found = list(blocks(page))
    assert "not run" not in page
    assert page.count("```") == 2 * len(found)
    assert {block.language for block in found} <= LANGUAGES
    for block in found:
        if block.language == "text":
            assert not re.search(COMMAND, block.text, re.MULTILINE), block.text
        elif block.language == "console":
            assert block.text.startswith("$ ")


def test_a_script_that_fails_is_noticed(tmp_path: Path) -> None:
    page = "```sh\necho before\nfalse\necho after\n```\n"
    with Reader(tmp_path) as reader, pytest.raises(AssertionError, match="before"):
        reader.does(next(blocks(page)))


def test_who_does_not_get_to_the_page_leaves_no_daemon_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Terminal.start

    def too_late(self: Terminal, command: str) -> list[str]:
        start(self, command)
        raise TimeoutError

    monkeypatch.setattr(Terminal, "start", too_late)
    with pytest.raises(TimeoutError), reader_of("docs/wire.md", tmp_path):
        pass
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(OSError):
        client.connect(str(tmp_path / "run" / "zstor" / "zstor.sock"))


def in_passing(page: str) -> list[str]:
    """What stands between backticks in the text and begins with `zstor `."""
    text = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"(?<!`)`(zstor [^`]+)`(?!`)", text)


def is_known(said: str) -> bool:
    """Whether it names a command, and options that this has."""
    command: click.Command = zstor
    options = {"--json", "--config", "--socket", "--help", "--version"}
    words = said.split()[1:]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        inner = command.get_command(click.Context(command), words.pop(0).partition("|")[0])
        if inner is None:
            return False
        command = inner
    for parameter in command.params:
        options |= {*parameter.opts, *parameter.secondary_opts}
    given = {option.partition("=")[0] for word in words for option in word.split("/") if option.startswith("-")}
    return given <= options | {"-"}


@pytest.mark.parametrize("name", [name for name in PAGES if name != "docs/format.md"])  # whose `zstor record` is a label
def test_commands_in_passing_exist(name: str) -> None:
    assert [said for said in in_passing((ROOT / name).read_text()) if not is_known(said)] == []


def test_the_first_session_is_short() -> None:
    session = next(block for block in list(blocks((ROOT / "README.md").read_text()))[2:] if "zstor put" in block.text)
    assert len(list(session.steps())) <= 9


def test_the_floors_are_drawn_as_they_are() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    floors = [set(re.findall(r"zstor_local\.(\w+)", layer)) for layer in contract["layers"]][1:]  # but for __main__
    picture = next(blocks((ROOT / "docs/architecture.md").read_text())).text
    drawn = [name for line in picture.splitlines() for name in re.findall(r"(?:^|(?<=  ))(\w+)(?:/|\.py)", line) if line[0] != " "]
    for floor in floors:
        assert {drawn.pop(0) for _ in floor} == floor
    assert drawn == []


if __name__ == "__main__":
    for page in sys.argv[1:]:
        with tempfile.TemporaryDirectory(dir="/tmp") as place, reader_of(page, Path(place)) as someone:
            (ROOT / page).write_text(filled((ROOT / page).read_text(), someone))
