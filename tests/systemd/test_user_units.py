"""The units under a real user manager: one life of the service (scenario.sh), looked at from all sides."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lacking import lacking
from zstor_local.cli.units import unit_text

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
LIMIT_SECONDS = 300

# The command `zstor` of that machine. The interpreter, its libraries and the checkout are shown below /mnt.
PROGRAM = """#!/bin/sh
LD_LIBRARY_PATH={libraries} exec {python} /mnt/program/main.py "$@"
"""
MAIN = """import sys
sys.dont_write_bytecode = True
sys.path[:0] = {places!r}
sys.argv[0] = "/mnt/program/zstor"
from zstor_local.cli import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Step:
    """What a command of the scenario said, and its exit status."""

    out: str
    err: str
    rc: int


class Scenario:
    def __init__(self, steps: Path) -> None:
        self._steps = steps

    def __getitem__(self, name: str) -> Step:
        out, err, rc = ((self._steps / f"{name}.{kind}").read_text() for kind in ("out", "err", "rc"))
        return Step(out, err, int(rc))

    def reply(self, name: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(self[name].out)
        return found

    def refusal(self, name: str) -> tuple[str, str]:
        """Type and hint of the error that a call answered."""
        error = self.reply(name)["error"]
        assert isinstance(error, dict)
        return error["data"]["type"], error["data"]["hint"]


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """The scenario, run to its end."""
    if os.geteuid() != 0 or shutil.which("systemctl") is None or shutil.which("socat") is None:
        lacking("a user manager: that takes root, systemd and socat")
    place = tmp_path_factory.mktemp("systemd")
    steps, program = place / "steps", place / "program"
    for directory in (place, steps, program):
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)
    os.chown(steps, 64117, 64117)
    binds = [f"rw:steps:{steps}", f"ro:program:{program}", f"ro:checkout:{CHECKOUT}"]
    places = ["/mnt/checkout"]
    for number, library in enumerate(path for path in sys.path if path.endswith(("site-packages", "dist-packages"))):
        binds.append(f"ro:library{number}:{library}")
        places.append(f"/mnt/library{number}")
    prefix, libraries = sys.base_prefix, ""
    if not prefix.startswith("/usr"):
        binds.append(f"ro:python:{prefix}")
        prefix, libraries = "/mnt/python", "/mnt/python/lib"
    python = f"{prefix}/bin/python{sysconfig.get_python_version()}"
    (program / "zstor").write_text(PROGRAM.format(python=python, libraries=libraries))
    (program / "main.py").write_text(MAIN.format(places=places))
    (program / "zstor").chmod(0o755)
    command = ["bash", str(HERE / "manager.sh"), "/mnt/checkout/tests/systemd/scenario.sh", *binds]
    environment = os.environ | {"LIMIT_SECONDS": str(LIMIT_SECONDS)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (steps / "uninstall-again.rc").exists(), done.stdout + done.stderr
    return Scenario(steps)


def test_before_there_is_nothing(scenario: Scenario) -> None:
    before = scenario["status-before"]
    assert before.rc == 1
    units = json.loads(before.out)["units"]
    assert {unit: (state["ActiveState"], state["UnitFileState"]) for unit, state in units.items()} == {
        "zstor.socket": ("inactive", ""),
        "zstor.service": ("inactive", ""),
    }


def test_install_makes_the_store_puts_the_units_in_place_and_shows_them(scenario: Scenario) -> None:
    done = scenario["install"]
    assert (done.rc, "created the store" in done.err) == (0, True), done
    assert "wrote /home/zstortest/.config/systemd/user/zstor.service.d/zstor.conf" in done.out
    assert "zstor.socket   active (listening), enabled" in done.out


def test_directory_and_socket_are_the_owners_alone(scenario: Scenario) -> None:
    assert scenario["modes"].out == "700 directory\n600 socket\n"


def test_by_hand_no_daemon_starts_beside_it(scenario: Scenario) -> None:
    by_hand = scenario["by-hand"]
    assert (by_hand.rc, "a service manager listens" in by_hand.err) == (75, True), by_hand


def test_the_first_call_starts_it_and_paths_in_the_home_directory_work(scenario: Scenario) -> None:
    assert "result" in scenario.reply("write")
    assert "result" in scenario.reply("read")
    assert scenario["came-back"].out == "text of a file\n"
    assert "zstor.service  active (running), enabled, pid" in scenario["status-ready"].out
    assert "StatusText=store ok, 6 of 6 shards" in scenario["ready"].out


def test_a_service_that_is_stopped_says_nothing_of_how_it_stopped(scenario: Scenario) -> None:
    assert scenario["status-stopped"].out.endswith("zstor.service  inactive (dead), enabled\n")


def test_a_service_that_failed_says_how_and_nothing_of_how_it_was_before(scenario: Scenario) -> None:
    assert scenario["status-failed"].out.endswith("zstor.service  failed (failed), enabled, signal\n")


def test_where_nobody_listens_the_line_that_starts_the_service_is_said(scenario: Scenario) -> None:
    assert scenario["not-listening"].rc == 2
    assert "hint: start its service:  systemctl --user start zstor.socket" in scenario["not-listening"].err


def test_a_path_the_service_may_not_write_is_refused_with_the_line_that_allows_it(scenario: Scenario) -> None:
    kind, hint = scenario.refusal("closed")
    assert (kind, "ReadWritePaths=/usr/local" in hint) == ("path_refused", True), hint


def test_it_comes_back_after_a_stop_and_after_a_death(scenario: Scenario) -> None:
    assert scenario["started-again"].out == scenario["after-kill"].out == "text of a file\n"
    assert scenario["other-process"].out == "0\n"


def test_a_reload_takes_the_new_configuration(scenario: Scenario) -> None:
    assert scenario["reload"].rc == 0, scenario["reload"]
    assert scenario.refusal("outside-roots")[0] == "path_refused"


def test_with_the_home_directory_hidden_descriptors_work(scenario: Scenario) -> None:
    assert scenario["strict"].rc == 0, scenario["strict"]
    for step in ("strict-put", "strict-get", "strict-pipe"):
        assert scenario[step].rc == 0, scenario[step]
    assert scenario["strict-came-back"].out == scenario["strict-pipe"].out.splitlines()[-1] + "\n" == "text of a file\n"
    assert "StatusText=store ok, 6 of 6 shards" in scenario["strict-ready"].out


@pytest.mark.parametrize(("step", "line"), [("strict-write", "BindReadOnlyPaths"), ("strict-read", "BindPaths")])
def test_with_the_home_directory_hidden_a_path_is_refused_with_the_line_that_shows_it(scenario: Scenario, step: str, line: str) -> None:
    kind, hint = scenario.refusal(step)
    assert (kind, f"  {line}=/home/zstortest  " in hint) == ("path_refused", True), hint


def test_nothing_is_written_where_it_would_be_thrown_away(scenario: Scenario) -> None:
    assert scenario["strict-lost"].rc != 0
    assert "error" in scenario.reply("strict-read")


def test_one_that_hangs_is_started_anew_by_the_watchdog(scenario: Scenario) -> None:
    assert scenario["after-watchdog"].out == "text of a file\n"


def test_the_service_reads_the_configuration_that_the_environment_named_when_it_was_installed(scenario: Scenario) -> None:
    assert scenario["odd-install"].rc == 0, scenario["odd-install"]
    result = scenario.reply("odd-write")["result"]
    assert isinstance(result, dict)
    assert result["metadata"]["namespace"] == "elsewhere"


def test_uninstall_leaves_the_store_and_nothing_else(scenario: Scenario) -> None:
    assert scenario["uninstall"].rc == 0, scenario["uninstall"]
    assert scenario["left"].out == ""
    assert scenario["kept"].rc == 0
    assert scenario["uninstall-again"].out == "nothing was installed\n"


def test_no_shard_is_made_where_it_would_be_thrown_away_with_the_service(scenario: Scenario) -> None:
    for step in ("strict-shard", "strict-replace"):
        refused = scenario[step]
        assert (refused.rc, "BindPaths=" in refused.err, "/disk is closed to the daemon" in refused.err) == (1, True, True), refused
    assert "/disk" not in scenario["strict-shards"].out


# --- Without a manager ---


def test_systemd_finds_no_fault_in_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        lacking("systemd-analyze")
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    for name in ("zstor.socket", "zstor.service"):
        text = unit_text(name).replace("%h/.local/zstor/bin/zstor", "/bin/true")
        (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", "--user", "--man=no", str(tmp_path / "zstor.service"), str(tmp_path / "zstor.socket")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    # Its exit status is 0 for unknown keys and bad values too.
    assert (done.returncode, [line for line in done.stderr.splitlines() if "zstor" in line]) == (0, [])


def test_the_exposure_is_what_the_documentation_says() -> None:
    if shutil.which("systemd-analyze") is None:
        lacking("systemd-analyze")
    unit = str(CHECKOUT / "systemd" / "zstor.service")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", unit], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
