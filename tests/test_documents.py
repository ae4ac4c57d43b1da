"""Every block of commands in README and docs is run as it stands; pages with a test of their own are named here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.documents import ROOT, Terminal, alike, blocks

OWN_TESTS = {
    "README.md": "tests/test_readme.py",
    "docs/content.md": "tests/cli/test_content_docs.py",
    "docs/remote-log.md": "tests/test_remote_log_page.py",
    "docs/shard-server.md": "tests/remote/test_permissions.py",
    "docs/sharing.md": "tests/test_sharing_page.py",
    "docs/wire.md": "tests/daemon/test_message_streams.py",
}
PAGES = sorted(str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("clients/*/*.md")])


@pytest.mark.parametrize("name", [name for name in PAGES if name not in OWN_TESTS and any(blocks((ROOT / name).read_text()))])
def test_what_a_page_shows_is_what_happens(name: str, tmp_path: Path) -> None:
    page = (ROOT / name).read_text()
    terminal = Terminal(tmp_path)
    try:
        if name.startswith("clients/"):
            terminal.run("zstor daemon &")
            terminal.run("cd zstor-local")
        for block in blocks(page):
            for command, lines in block.steps():
                status, printed = terminal.run(f"(set -e\n{command}\n)" if block.language == "sh" else command)
                if block.language == "sh":
                    assert status == 0, "\n".join([command, *printed])
                else:
                    assert alike(printed) == alike(lines), command
    finally:
        terminal.close()


@pytest.mark.parametrize("name", OWN_TESTS)
def test_a_page_with_a_test_of_its_own_is_there_and_so_is_the_test(name: str) -> None:
    assert (ROOT / name).exists()
    assert Path(name).name in (ROOT / OWN_TESTS[name]).read_text() or name == "README.md"
