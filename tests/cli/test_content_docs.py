"""docs/content.md: its commands are run as they stand."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.cli.test_end_to_end import shell
from tests.formats.samples import SAMPLES
from zstor_local.cli.private_daemon import PrivateDaemon

PAGE = (Path(__file__).parents[2] / "docs" / "content.md").read_text()
HELLO = SAMPLES[1].cid


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert found, name
    return found[1]


def test_the_session_works(daemon: PrivateDaemon) -> None:
    told = shell(daemon, block("content")).decode()
    assert told.startswith(f"{HELLO}\nhello\n{HELLO}\n")
    assert "by ann: says hello\n" in told
    assert f"unpinned {HELLO}: kept by user\n" in told
    assert "\ngreeting\n" in told
    assert told.endswith(f"deleted {HELLO}\nwould delete 0 of 1 content: 0 B\n")


def test_the_first_clients_are_served(private_daemon: PrivateDaemon) -> None:
    directory = private_daemon.home / "config" / "zstor"
    directory.mkdir(parents=True, mode=0o700)
    # Any free ports instead of the page's.
    (directory / "config.toml").write_text(re.sub("800[12]", "0", block("twirp configuration")))
    private_daemon.start()
    places = re.findall(r"^serving Twirp at 127\.0\.0\.1:(\d+)$", private_daemon.log.read_text(), re.MULTILINE)
    script = block("twirp").replace("8001", places[0]).replace("8002", places[1])
    told = subprocess.run(["bash", "-euo", "pipefail", "-c", script], stdout=subprocess.PIPE, check=True).stdout
    assert told == b'{"id":"AVUSICwmtGto/8aP+ZtFPB0wQTQTQi1wZIO/oPmKXohiZueu"}{"data":"b2s="}{"data":"Zm9v"}'
    assert private_daemon.stop() == 0
