"""The benchmark: a tiny run has every row of the table. How long anything took is asserted nowhere."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from statistics import median

import pytest

from tests.cli.terminal import Terminal, environments_with
from zstor_local.bench import command, files, floor_files, load, results
from zstor_local.bench.place import Plan, digest, make_random, make_text, prepared
from zstor_local.bench.results import Budget, Report, Row
from zstor_local.cli import main
from zstor_local.limits import MIB

TINY = Plan(rounds=1, file_bytes=4 * MIB, pipe_bytes=3 * MIB, writes=16, calls=4, objects=20, entries=20)
WORK = [
    "write 4 MiB, random, fd",
    "write 4 MiB, random, path",
    "write 4 MiB, text, fd",
    "read 4 MiB, random, fd",
    "read 4 MiB, random, path",
    "read 4 MiB, text, fd",
    "read 4 MiB, random, fd, two shards lost",
    "read 4 MiB, random, path, two shards lost",
    "read 4 MiB, text, fd, two shards lost",
    "peak memory after files of 4 MiB",
    "write 4 KiB, durable, 1 client",
    "write 4 KiB, durable, 16 clients",
    "read 4 KiB, 1 client",
    "read 4 KiB, 16 clients",
    "CPU of a call, rpc.ping",
    "CPU of a call, object.stat",
    "zstor --help",
    "zstor call rpc.ping",
    "peak memory after a pipe of 3 MiB, in and out",
    "disk for an object of 4 KiB",
    "write 4 KiB in a store of 20",
    "read 4 KiB in a store of 20",
    "append to a log of 20",
    "read the newest 10 of a log of 20",
    "ready after a clean stop, 153 objects",
    "ready after a kill, 153 objects",
    "rebuild of 169 objects",
    "rebuild of 169 objects, without the index of the logs",
    "peak memory of a rebuild of 169 objects",
    "content id of 4 MiB",
    "cas.upload 4 MiB, random, path",
    "cas.upload 4 MiB, random, path, known",
]


def test_a_tiny_run_has_every_row_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "QUICK", TINY)
    disk, table = tmp_path / "disk", tmp_path / "table.md"
    disk.mkdir()
    assert main(["bench", "--quick", "--dir", str(disk), "--json", "--write", str(table)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["work"] for row in report["rows"]] == WORK
    for row in report["rows"]:
        assert len(row["here"]) == 1
        assert row["figure"] is not None
    assert report["about"]["file system"]
    for work in WORK:
        assert f"| {work}" in table.read_text()
    assert list(disk.iterdir()) == []


def test_a_run_that_is_ended_takes_its_store_and_its_processes_along(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zstor_local", "bench", "--quick", "--dir", str(tmp_path)]
    with Terminal(command, home=tmp_path, environment=os.environ | {"TMPDIR": str(tmp_path)}) as terminal:
        terminal.read_until("a file of ")
        terminal.process.terminate()
        assert terminal.end() == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []
    assert not environments_with(tmp_path)


def test_shards_that_were_away_are_there_again_before_others_go(tmp_path: Path) -> None:
    with prepared(TINY, tmp_path, lambda text: None) as place:

        def states(method: str) -> list[str]:
            return [shard["state"] for shard in place.load(load.call, place.daemon.socket, method, {}).result["shards"]]

        with files.away(place, ["0", "1"]):
            assert states("shard.list") == ["missing"] * 2 + ["ok"] * 4  # the daemon has looked
        assert states("daemon.status") == ["ok"] * 6


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("make", [make_random, make_text])
@pytest.mark.parametrize("size", [1, MIB, 3 * MIB + 5])
def test_the_floor_gives_back_what_it_stored(tmp_path: Path, make: object, size: int, lost: int) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    assert callable(make)
    make(source, size)
    floor_files.write(source, tmp_path / "shares", 2)
    floor_files.read(tmp_path / "shares", copy, 2, lost=lost)
    assert copy.stat().st_size == size
    assert digest(copy) == digest(source)


def test_figures_are_medians_their_ratio_or_their_difference() -> None:
    here, beside = [3.0, 1.0, 2.0], [8.0, 4.0, 2.0]
    assert Row("w", "s", here, beside).figure == median(here)
    assert Row("w", "s", here, beside, figure_is="ratio").figure == 0.5
    assert Row("w", "s", here, beside, figure_is="difference").figure == -2
    assert Row("w", "s", [], [], figure_is="ratio").figure is None


def test_a_budget_is_kept_or_not_or_not_judged() -> None:
    assert Row("w", "s", [1.0], budget=Budget(least=1)).kept is True
    assert Row("w", "s", [1.0], budget=Budget(most=0.5)).kept is False
    assert Row("w", "s", [1.0]).kept is None
    assert Row("w", "s", [], budget=Budget(most=1)).kept is None


def test_the_table_shows_figure_budget_and_mark() -> None:
    row = Row("write it", "MB/s", [50.0, 150.0, 100.0], [200.0], "floor", "ratio", Budget(least=0.4))
    assert row.cells() == ("write it", "100 MB/s (50.0–150)", "200 MB/s, floor", "0.50 ×", "≥ 0.4 ×", "✓")
    missing = Row("grow it", "µs", [], note="later", figure_is="ratio", budget=Budget(most=1.3))
    assert missing.cells() == ("grow it", "not measured", "later", "", "≤ 1.3 ×", "")
    text = Report([row, missing], {"cores": "2"}, ["in memory"]).markdown()
    assert "| write it | 100 MB/s (50.0–150) | 200 MB/s, floor | 0.50 × | ≥ 0.4 × | ✓ |" in text
    assert "cores 2" in text
    assert "in memory" in text


def test_the_machine_is_named() -> None:
    assert set(results.machine(2)) == {"cores", "processor", "Linux", "Python"}


@pytest.mark.parametrize(("file", "said"), [("table.txt", ".md or .json"), ("missing/table.md", "there is no directory missing")])
def test_a_table_that_could_not_be_written_is_refused_before_anything_is_measured(
    file: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--write", file]) == 3
    assert said in capsys.readouterr().err


def test_what_goes_wrong_is_an_error_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "QUICK", TINY)
    monkeypatch.setattr("zstor_local.bench.servers.sys.executable", "/bin/false")  # a daemon that does not start
    assert main(["bench", "--quick", "--dir", str(tmp_path), "--json"]) == 1
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["data"]["type"] == "bench_failed"
    assert "does not listen" in error["message"]


def test_help_tells_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    assert "--rounds" in capsys.readouterr().out
