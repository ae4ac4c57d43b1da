"""Tab in bash, zsh and fish: the real shells, switched on as the page says, with a daemon that runs, none, and one that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.cli.terminal import Terminal
from tests.cli.test_end_to_end import ZSTOR, done, zstor
from tests.documents import ROOT, blocks
from zstor_local.cli.private_daemon import PrivateDaemon

PLAIN = ["notes.txt", "photos/ümlaut.raw", "time=12:30"]
DANGEROUS = [
    "$(touch hacked)",
    "two words",
    "a,b",
    "-r",
    "back\\slash",
    "quo'te",
    "line\nbreak",
    "star*",
    "~x",
    "semi;colon",
    "\x1b[2J",
]

# What is typed before Tab, and what stands there then; the same in every shell.
CASES = {
    "a command": ("zstor pu", "zstor put "),
    "a sub-command": ("zstor namespace cre", "zstor namespace create "),
    "an option": ("zstor put --exc", "zstor put --exclusive "),
    "an option of the benchmark": ("zstor bench --qu", "zstor bench --quick "),
    "a value of an option": ("zstor namespace create x --compression zs", "zstor namespace create x --compression zstd "),
    "a value of an argument": ("zstor perm give default ann adm", "zstor perm give default ann admin "),
    "a file": ("zstor put local", "zstor put local-file "),
    "a key": ("zstor get not", "zstor get notes.txt "),
    "a second key": ("zstor rm notes.txt pho", "zstor rm notes.txt photos/ümlaut.raw "),
    "a namespace": ("zstor ls -n oth", "zstor ls -n other "),
    "a key of a namespace": ("zstor stat -n other onl", "zstor stat -n other only-here "),
    "a key with what bash splits at": ("zstor get time=12:", "zstor get time=12:30 "),
    "a namespace behind =": ("zstor ls --namespace=oth", "zstor ls --namespace=other "),
    "a key behind one in quotes": ("zstor rm 'two words' photos/ü", "zstor rm 'two words' photos/ümlaut.raw "),
    "a shard": ("zstor namespace create x --on 5", "zstor namespace create x --on 5 "),
    "a file that may be a URL": ("zstor shard serve --trust local", "zstor shard serve --trust local-file "),
    "a method": ("zstor call object.sta", "zstor call object.stat "),
}
IN_BASH = {
    "a file behind =": ("zstor --config=local", "zstor --config=local-file "),
    "what is called by its place": ("~/bin/zstor get not", "~/bin/zstor get notes.txt "),
    "the second of two commands": ("true; zstor get time=12:", "true; zstor get time=12:30 "),
    "a key in quotes": ("zstor get 'time=12:", "zstor get 'time=12:30' "),
    "a key before what is there": ("zstor cp not copy\x1b[D\x1b[D\x1b[D\x1b[D\x1b[D", "zstor cp notes.txt copy"),
}
TRIES = 20  # for nothing is offered where the daemon takes longer than somebody waits
WITHOUT_DAEMON = ["zstor get not", "zstor ls -n oth", "zstor call object.sta", "zstor nosuch comm"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateDaemon]:
    """A daemon with a few keys, whose home has completion switched on as the page says."""
    home = tmp_path_factory.mktemp("home")
    with PrivateDaemon(home) as daemon:
        daemon.start()
        for key in [*PLAIN, *DANGEROUS]:
            done(zstor(daemon, "put", "-", "--", key, stdin=b"1"))
        done(zstor(daemon, "namespace", "create", "other"))
        done(zstor(daemon, "put", "-n", "other", "-", "only-here", stdin=b"1"))
        (home / "local-file").touch()
        (home / "bin").mkdir()
        (home / "bin" / "zstor").symlink_to(Path(sys.executable).parent / "zstor")
        page = (ROOT / "docs" / "quickstart.md").read_text()
        script = "\n".join(block.text for block in blocks(page) if "zstor complete" in block.text)
        subprocess.run(["bash", "-euc", script], env=environment(daemon), cwd=home, check=True)
        yield daemon


def environment(daemon: PrivateDaemon, *, socket: str | None = None) -> Mapping[str, str]:
    """As a user has it: the shells look for their files in the usual places, and find zstor."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ZSTOR_", "LC_"))}
    path = f"{Path(sys.executable).parent}:{inherited['PATH']}"
    return inherited | {"HOME": str(daemon.home), "PATH": path, "ZSTOR_SOCKET": socket or str(daemon.socket), "LANG": "C.UTF-8"}


# --- bash and zsh: an interactive shell on a terminal ---

BASHRC = """
PS1='ready> '
bind 'set bell-style none' 'set enable-bracketed-paste off'
. /usr/share/bash-completion/bash_completion
"""
ZSHRC = """
PS1='ready> '
unsetopt beep prompt_sp
unset zle_bracketed_paste
"""


def shell(daemon: PrivateDaemon, name: str, *, socket: str | None = None) -> Terminal:
    if name == "bash":
        (daemon.home / ".bashrc").write_text(BASHRC)
        command = ["bash", "-i"]
    else:
        page = (daemon.home / ".zshrc").read_text()
        (daemon.home / ".zshrc").write_text(page if "PS1" in page else page + ZSHRC)
        command = ["zsh", "-i"]
    return Terminal(command, home=daemon.home, environment=environment(daemon, socket=socket), columns=100)


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name in ("bash", "zsh") for what in CASES] + [("bash", what) for what in IN_BASH]
)
def test_tab_completes_in(name: str, what: str, daemon: PrivateDaemon) -> None:
    typed, wanted = (CASES | IN_BASH)[what]
    with shell(daemon, name) as terminal:
        terminal.read_until("ready> ")
        terminal.type(f"{typed}\t")
        terminal.read_until(wanted, again=lambda: terminal.type("\t"))  # nothing comes where the daemon takes a second
        assert "zstor: " not in terminal.text


@pytest.mark.parametrize("typed", WITHOUT_DAEMON)
@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_without_a_daemon_tab_is_silent_in(name: str, typed: str, daemon: PrivateDaemon) -> None:
    with shell(daemon, name, socket="/nowhere/zstor.sock") as terminal:
        terminal.read_until("ready> ")
        terminal.type(f"{typed}\t")
        terminal.read_until(f"{typed}X", again=lambda: terminal.type("X"))  # zsh forgets what was typed while it looked in vain
        assert "zstor: " not in terminal.text


# --- fish tells what it would complete ---


@pytest.mark.parametrize("what", CASES)
def test_tab_completes_in_fish(what: str, daemon: PrivateDaemon) -> None:
    typed, wanted = CASES[what]
    assert any(wanted.split()[-1] in _fish(daemon, typed) for _ in range(TRIES))


def test_without_a_daemon_tab_is_silent_in_fish(daemon: PrivateDaemon) -> None:
    for typed in WITHOUT_DAEMON:
        assert _fish(daemon, typed, socket="/nowhere/zstor.sock") == []


def _fish(daemon: PrivateDaemon, typed: str, *, socket: str | None = None) -> list[str]:
    """What fish offers, without the descriptions. It must be silent otherwise."""
    command = ["fish", "-c", 'complete -C "$argv[1]"', typed]
    ended = subprocess.run(
        command, env=environment(daemon, socket=socket), cwd=daemon.home, capture_output=True, text=True, check=False
    )
    assert ended.stderr == ""
    return [line.partition("\t")[0] for line in ended.stdout.splitlines()]


# --- What is offered ---


def test_no_key_is_offered_that_a_shell_would_not_take_as_one_word(daemon: PrivateDaemon) -> None:
    offered = next(filter(None, (_offered(environment(daemon), "zstor get ") for _ in range(TRIES))))
    assert offered == PLAIN


def test_all_commands_are_offered_with_what_they_do(daemon: PrivateDaemon) -> None:
    offered = subprocess.run(
        [*ZSTOR],
        env={**environment(daemon), "_ZSTOR_COMPLETE": "fish_complete", "COMP_WORDS": "zstor ", "COMP_CWORD": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "plain,put\tStore FILE, or a pipe (-), as an object." in offered.stdout.splitlines()


def test_a_daemon_that_hangs_is_not_waited_for(private_daemon: PrivateDaemon) -> None:
    private_daemon.start()
    assert private_daemon.pid is not None
    os.kill(private_daemon.pid, signal.SIGSTOP)
    try:
        assert _offered(private_daemon.environment, "zstor get ") == []
    finally:
        os.kill(private_daemon.pid, signal.SIGCONT)


def _offered(variables: Mapping[str, str], typed: str) -> list[str]:
    """What click tells bash; nothing may be said on stderr."""
    words = {"_ZSTOR_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    ended = subprocess.run([*ZSTOR], env={**variables, **words}, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stderr == ""
    return [line.removeprefix("plain,") for line in ended.stdout.splitlines() if line]
