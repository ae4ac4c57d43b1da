"""A second machine for one's pages: `ben@attic`, with a home and a daemon of its own, and what stands in for the network between.

The `ssh` is not the real one, for want of a server: it runs a command, or brings a socket over, as `ssh -f -N -L` does.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SSH = """#!/bin/sh
set -eu
export HOME={home} XDG_RUNTIME_DIR={runtime}
cd
case "$*" in
"-f -N -L "*" ben@attic")
    socat UNIX-LISTEN:"${{4%%:*}}",fork UNIX-CONNECT:{runtime}"${{4#*:/run/user/1000}}" > /dev/null 2>&1 &
    until test -S "${{4%%:*}}"; do sleep 0.01; done ;;
"ben@attic "*) shift; exec sh -c "$*" ;;
*) echo "ssh: what is $*?" >&2; exit 255 ;;
esac
"""


@contextmanager
def second_machine(place: Path, environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Gives what the first machine's environment needs, so that its ssh finds the second one."""
    home, runtime, programs = (place / name for name in ("ben", "run-of-ben", "programs"))
    for directory in (home, runtime, programs):
        directory.mkdir(mode=0o700)
    ssh = programs / "ssh"
    ssh.write_text(SSH.format(home=shlex.quote(str(home)), runtime=shlex.quote(str(runtime))))
    ssh.chmod(0o755)
    own = {**environment, "HOME": str(home), "XDG_RUNTIME_DIR": str(runtime)}
    with subprocess.Popen(["zstor", "daemon"], env=own, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as daemon:
        try:
            assert daemon.stdout is not None
            assert any(line.startswith(b"listening on") for line in daemon.stdout)
            yield {"PATH": f"{programs}:{environment['PATH']}"}
        finally:
            daemon.terminate()
