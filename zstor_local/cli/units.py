"""The systemd units: the texts of `systemd/`, and the drop-ins that fit them to this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from zstor_local.config import Config

SOCKET: Final = "zstor.socket"
SERVICE: Final = "zstor.service"
DROP_IN: Final = "zstor.conf"
_LISTEN: Final = "ListenStream="
_XDG: Final = ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")


def unit_text(name: str) -> str:
    """The text of a unit as it was installed with the program, or as it lies in the checkout that runs."""
    checkout = Path(__file__).parents[2] / "systemd" / name
    if checkout.exists():
        return checkout.read_text()
    from importlib import metadata

    installed = next(file for file in metadata.files("zstor-local") or [] if file.name == name)
    return Path(str(installed.locate())).read_text()


def unit_directory(environment: Mapping[str, str]) -> Path:
    """Where a user's own units lie."""
    base = environment.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else Path("~/.config").expanduser()) / "systemd" / "user"


def installed_socket(environment: Mapping[str, str]) -> str | None:
    """Where `zstor systemd install` has had systemd listen; None if nothing is installed."""
    directory = unit_directory(environment)
    if not (directory / SOCKET).exists():
        return None
    places = [_usual_socket(environment)]
    with suppress(OSError, UnicodeDecodeError):
        lines = (directory / f"{SOCKET}.d" / DROP_IN).read_text().splitlines()
        places += [line.removeprefix(_LISTEN).replace("%%", "%") for line in lines if line.startswith(_LISTEN)]
    return places[-1]


def drop_ins(config: Config, environment: Mapping[str, str], *, flags: Sequence[str], strict: bool) -> dict[str, str]:
    """Unit → what is different on this machine: the program, the places, the socket. `strict` hides the home directory."""
    places = [config.store, *_shard_directories(config)]
    key_directory = os.path.dirname(config.master_key_file)
    command, *arguments = map(_word, [*program(), *flags, "daemon"])
    # $ begins a variable in arguments, but not in the program's name; nor in what Environment= and the paths say.
    lines = ["[Service]", "ExecStart=", f"ExecStart={' '.join([command, *(word.replace('$', '$$') for word in arguments)])}"]
    lines += [f"Environment={_word(f'{name}={environment[name]}')}" for name in _XDG if environment.get(name)]
    if strict:
        configuration = [config.file] if config.file else []
        program_places = [path for path in _program_places() if path.startswith(("/home/", "/root/", "/run/user/"))]
        lines += ["# The home directory is hidden: clients hand descriptors over.", "ProtectHome=tmpfs"]
        lines += ["BindReadOnlyPaths=%t/systemd/notify"]  # else READY=1 would be lost
        lines += [f"BindPaths={_word(place)}" for place in _outermost([*places, key_directory, os.path.dirname(config.socket)])]
        lines += [f"BindReadOnlyPaths=-{_word(place)}" for place in _outermost([*configuration, *program_places])]
    lines += [f"ReadWritePaths=-{_word(place)}" for place in _outermost([*places, key_directory])]
    found = {SERVICE: "\n".join([*lines, ""])}
    if config.socket != _usual_socket(environment):
        found[SOCKET] = f"[Socket]\n{_LISTEN}\n{_LISTEN}{config.socket.replace('%', '%%')}\n"
    return found


def _usual_socket(environment: Mapping[str, str]) -> str:
    """Where the unit listens without a drop-in."""
    return f"{environment.get('XDG_RUNTIME_DIR', '')}/zstor/zstor.sock"


def program() -> list[str]:
    """The command that runs this program."""
    started_as = Path(sys.argv[0])
    if started_as.name == "zstor" and os.access(started_as, os.X_OK):
        return [str(started_as.absolute())]
    return [sys.executable, "-m", "zstor_local"]


def _program_places() -> list[str]:
    """What the program needs to read: itself, its interpreter and its libraries."""
    return [
        os.path.dirname(program()[0]),
        sys.prefix,
        sys.base_prefix,
        str(Path(__file__).parents[2]),
        *filter(os.path.isdir, sys.path),
    ]


def _shard_directories(config: Config) -> list[str]:
    """The directories of `[[shard]]`; a shard on another machine has none."""
    return [shard.url for shard in config.shards if shard.url.startswith("/")]


def _outermost(paths: Sequence[str]) -> list[str]:
    """The paths, each once, less those that lie in another one of them."""
    found: list[str] = []
    for path in sorted({os.path.abspath(path) for path in paths}):
        if not any(path.startswith(other.rstrip("/") + "/") for other in found):
            found.append(path)
    return found


def _word(text: str) -> str:
    """One word of a unit file (systemd.syntax(7)): % begins a specifier there, and : parts the two paths of BindPaths=."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{text}"' if not text.isascii() or any(character in text for character in " \t'\";:\\") else text
