"""`zstor systemd`: the daemon as a service of the user's systemd, started by the first call."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Final

import click

from zstor_local.cli.client import Client, NoDaemon
from zstor_local.cli.options import Options, as_json, connection, pass_options
from zstor_local.cli.service import Announcer
from zstor_local.cli.units import DROP_IN, SERVICE, SOCKET, drop_ins, unit_directory, unit_text
from zstor_local.counted import counted
from zstor_local.errors import AlreadyExists, IoError, Unavailable, errno_text

_UNITS: Final = (SOCKET, SERVICE)
_SHOWN: Final = ("ActiveState", "SubState", "UnitFileState", "StatusText", "MainPID", "NRestarts", "Result")


@click.group()
def systemd() -> None:
    """Run the daemon as a service of your systemd.

    It starts with the first call, is watched over, and sees of the system only what it needs.
    """


@systemd.command(epilog="To have it run while you are logged out:  loginctl enable-linger")
@click.option("--strict", is_flag=True, help="Hide the home directory: clients hand files over as descriptors (zstor put does).")
@as_json
@connection
@pass_options
def install(options: Options, strict: bool) -> None:
    """Put the units in place and start listening.

    Makes the store first if there is none. Doing it again brings the units up to date; a running daemon is restarted.
    """
    config = options.load()
    _manager()
    active = _show(SOCKET)["ActiveState"] == "active"
    if not active and _answers(config.socket):
        raise AlreadyExists(f"a daemon serves {config.socket} already", hint="stop it (Ctrl-C in its terminal), then install")
    from zstor_local.daemon import init_store

    init_store(config, Announcer(as_json=False))
    named = config.file if options.config or os.environ.get("ZSTOR_CONFIG") else None  # which the service would not see
    flags = [word for name, value in (("--config", named), ("--socket", options.socket)) if value for word in (name, value)]
    directory = unit_directory(os.environ)
    fitted = drop_ins(config, os.environ, flags=flags, strict=strict)
    written = []
    for unit in _UNITS:
        written.append(_write(directory / unit, unit_text(unit)))
        drop_in = directory / f"{unit}.d" / DROP_IN
        if unit in fitted:
            written.append(_write(drop_in, fitted[unit]))
        else:
            drop_in.unlink(missing_ok=True)
    _systemctl("daemon-reload")
    _systemctl("enable", *_UNITS)
    _systemctl("stop", SERVICE)
    _systemctl("reset-failed", *_UNITS)
    _systemctl("restart", SOCKET)
    if options.json:
        click.echo(json.dumps({"installed": written, "socket": config.socket, "strict": strict, "units": _states()}))
        return
    for path in written:
        click.echo(f"wrote {path}")
    _draw()
    click.echo(f"listening on {config.socket}; the first call starts the daemon")


@systemd.command()
@as_json
@pass_options
def uninstall(options: Options) -> None:
    """Stop the daemon and remove the units. Store, key and configuration stay."""
    _manager()
    directory = unit_directory(os.environ)
    present = [unit for unit in _UNITS if (directory / unit).exists()]
    if present:
        _systemctl("disable", "--now", *present)
    removed = []
    for unit in _UNITS:
        for path in (directory / unit, directory / f"{unit}.d" / DROP_IN):
            if path.exists():
                path.unlink()
                removed.append(str(path))
        drop_ins_directory = directory / f"{unit}.d"
        if drop_ins_directory.is_dir() and not any(drop_ins_directory.iterdir()):  # others' drop-ins stay
            drop_ins_directory.rmdir()
    _systemctl("daemon-reload")
    if options.json:
        click.echo(json.dumps({"removed": removed}))
        return
    for name in removed:
        click.echo(f"removed {name}")
    click.echo("store, key and configuration are where they were" if removed else "nothing was installed")


@systemd.command()
@as_json
@pass_options
def status(options: Options) -> int:
    """Show how socket and service are. Exits with 1 unless the socket listens."""
    _manager()
    states = _states()
    if options.json:
        click.echo(json.dumps({"units": states}))
    else:
        _draw()
    return 0 if states[SOCKET]["ActiveState"] == "active" else 1


def _draw() -> None:
    for unit, state in _states().items():
        words = [f"{state['ActiveState']} ({state['SubState']})", state["UnitFileState"] or "not installed"]
        words += [f"pid {state['MainPID']}"] if state.get("MainPID", "0") != "0" else []
        words += [counted(int(state["NRestarts"]), "restart")] if state.get("NRestarts", "0") != "0" else []
        words += [state["Result"]] if state.get("Result", "success") != "success" else []
        if state.get("StatusText") and state["ActiveState"] not in ("inactive", "failed"):  # else its last words
            words.append(state["StatusText"])
        click.echo(f"{unit:<13}  {', '.join(words)}")


def _states() -> dict[str, dict[str, str]]:
    return {unit: _show(unit) for unit in _UNITS}


def _show(unit: str) -> dict[str, str]:
    """What systemd knows of a unit, as far as it concerns people."""
    lines = _systemctl("show", unit, "-p", ",".join(_SHOWN)).splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def _manager() -> None:
    """Unavailable unless this user's systemd answers."""
    try:
        _systemctl("show", "-p", "Version")
    except Unavailable as error:
        raise Unavailable(
            f"no systemd of yours answers: {error.message}",
            hint="log in with a session of your own (not su or sudo), or run `zstor daemon` by hand",
        ) from None


def _systemctl(*arguments: str) -> str:
    try:
        done = subprocess.run(["systemctl", "--user", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    except FileNotFoundError:
        raise Unavailable("there is no systemctl") from None
    if done.returncode:
        why = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise Unavailable(
            f"systemctl --user {' '.join(arguments)}: {why[-1]}", hint="systemctl --user status zstor.socket zstor.service"
        )
    return done.stdout


def _write(path: Path, text: str) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise IoError(f"{path}: {errno_text(error)}") from None
    return str(path)


def _answers(path: str) -> bool:
    try:
        with Client.connect(path):
            return True
    except NoDaemon:
        return False
