"""`make demo` ends well and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_the_demo_tells_its_story_and_cleans_up(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zstor_local", "demo"]
    demo = subprocess.run(command, env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert (demo.returncode, demo.stderr) == (0, "")
    assert demo.stdout.count("25.0%") == 6
    assert demo.stdout.count(": nothing\n") == 2
    assert "the bad block was found" in demo.stdout
    assert "every byte as it was" in demo.stdout
    assert os.listdir(tmp_path) == []
