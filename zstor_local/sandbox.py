"""What a service's sandbox hides from the daemon, and which line of its unit would show it.

Under `ProtectHome=tmpfs` a home directory seems empty, and what is written there succeeds and is thrown away when the service ends.
So paths there are refused, by the table of mounts (proc_pid_mountinfo(5)); elsewhere a read-only mount tells which line is missing.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_COVERED: Final = frozenset({"/home", "/root", "/run/user"})  # what ProtectHome= covers
_CLOSED: Final = "/systemd/inaccessible/"  # what lies over a directory that nobody may enter
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of the table: where, whether it hides what is really there, whether it is read-only."""

    point: str
    hides: bool
    read_only: bool


class Sandbox:
    """The mounts around a service; `service` is the unit's name."""

    def __init__(self, service: str, mounts: Sequence[Mount]) -> None:
        self._service = service
        self._mounts = {mount.point: mount for mount in mounts}  # of several at one point the last one counts

    @classmethod
    def of_this_process(cls, proc: str = "/proc/self") -> Self | None:
        """None where the daemon is no service."""
        if "INVOCATION_ID" not in os.environ:
            return None
        mounts, groups = (os.fsdecode(Path(proc, name).read_bytes()) for name in ("mountinfo", "cgroup"))  # names of any bytes
        names = [line.rpartition("/")[2] for line in groups.split("\n")]
        service = next((name for name in names if name.endswith(".service")), "zstor.service")
        return cls(service, parse_mounts(mounts, os.geteuid()))

    def hides(self, path: str) -> bool:
        """Whether what lies there for us is not what lies there for everybody else."""
        return self._mount_of(path).hides

    def advice(self, directory: str, *, write: bool) -> str | None:
        """What to change so that the daemon may use a directory; None where the sandbox is not to blame."""
        line = self._line(directory, write=write)
        return line and f"open it yourself, where you may, and hand the descriptor over (`fd`); or {line}"

    def against_shard(self, root: str) -> str | None:
        """Why no shard can be in a directory, there or not, and what to do; None where the sandbox has nothing against it."""
        line = self._line(os.path.realpath(root), write=True)
        return (
            line
            and f"{root} is closed to the daemon, which is a service of its own: make the directory if it is not there, then {line}"
        )

    def _line(self, directory: str, *, write: bool) -> str | None:
        """How to open a directory to the daemon; None where it is."""
        mount = self._mount_of(directory)
        if mount.hides:
            line = f"{'BindPaths' if write else 'BindReadOnlyPaths'}={directory}"
        elif write and mount.read_only:
            line = f"ReadWritePaths={directory}"
        else:
            return None
        unit = self._service
        return f"`systemctl --user edit {unit}`, below [Service] the line  {line}  , then `systemctl --user restart {unit}`"

    def _mount_of(self, path: str) -> Mount:
        path = posixpath.normpath(path)
        while path not in self._mounts and path != "/":
            path = posixpath.dirname(path)
        return self._mounts.get(path, Mount("/", hides=False, read_only=False))


def parse_mounts(table: str, uid: int) -> list[Mount]:
    """The mounts of /proc/self/mountinfo. A service manager's cover of a home is a tmpfs that our own uid has mounted."""
    found = []
    for line in filter(None, table.split("\n")):  # nothing else ends one: whoever mounts may use all other characters
        fields, _, rest = line.partition(" - ")
        _, _, _, root, point, options, *_ = fields.split(" ")
        kind, _, super_options = rest.split(" ", 2)
        point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), point)
        covers = point in _COVERED and kind == "tmpfs" and root == "/" and f"uid={uid}" in super_options.split(",")
        found.append(Mount(point, hides=covers or _CLOSED in root, read_only="ro" in options.split(",")))
    return found
