"""docs/sharing.md as its reader runs it: all of its commands, in order, with two daemons and three shard servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.documents import ROOT, blocks

LIMIT = 300.0  # seconds: nothing takes so long unless it hangs


def test_the_walk_of_the_page_works(tmp_path: Path) -> None:
    home, runtime, said = tmp_path / "ann", tmp_path / "run", tmp_path / "said"
    for directory in (home, runtime):
        directory.mkdir(mode=0o700)
    script = "\n".join(["set -e", *(block.text for block in blocks((ROOT / "docs/sharing.md").read_text())), "echo THE END"])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ZSTOR_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with said.open("wb") as out:
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=home,
            env=inherited | {"HOME": str(home), "XDG_RUNTIME_DIR": str(runtime), "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = shell.wait(LIMIT)
        finally:
            os.killpg(shell.pid, signal.SIGKILL)  # the daemons and servers that the page has started
            shell.wait()
    lines = said.read_text().splitlines()
    assert (status, lines[-1:]) == (0, ["THE END"]), "\n".join(lines[-40:])
    assert (home / "copy.jpg").read_bytes() == (home / "beach.jpg").read_bytes()
