"""`health.*`, the scrub in `daemon.status`, and `daemon.metrics`, over the wire."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.client import Client, error_type
from tests.daemon.process import Daemon

LARGE = random.Random(3).randbytes(600_000)


@pytest.fixture(scope="module")
def upkept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose shares these tests damage."""
    with Daemon(tmp_path_factory.mktemp("upkept") / "home") as daemon:
        yield daemon.start()


@pytest.fixture
def damaged(upkept: Daemon) -> Iterator[Client]:
    """A client of a store with three objects; one lacks a share, of another one is flipped."""
    with upkept.client() as client:
        for key in ("a", "b", "c"):
            client.write(key, LARGE + key.encode())
        version = client.result("object.stat", key="b")["metadata"]["version"]
        share_files(upkept, version)[0].unlink()
        version = client.result("object.stat", key="c")["metadata"]["version"]
        file = share_files(upkept, version)[1]
        data = bytearray(file.read_bytes())
        data[5_000] ^= 1
        file.write_bytes(data)
        yield client


def share_files(daemon: Daemon, version: str) -> list[Path]:
    return sorted(daemon.store.glob(f"shards/*/shares/{version[:2]}/{version}.*"))


def healthy(client: Client) -> bool:
    return all(client.result("object.check", key=key)["status"] == "optimal" for key in ("a", "b", "c"))


def test_repair_all_makes_everything_whole_as_a_call(damaged: Client) -> None:
    assert damaged.result("health.repair_all") == {"objects": 3, "repaired": 2, "failed": 0, "lacking": 0, "owed": 0, "found": []}
    assert healthy(damaged)
    assert damaged.result("health.repair_all")["repaired"] == 0


def test_repair_all_makes_everything_whole_as_a_job(damaged: Client) -> None:
    job = damaged.result("health.repair_all", _meta={"detach": True})["job"]
    ended = damaged.result("job.wait", job=job)
    assert (ended["state"], ended["result"]["repaired"]) == ("done", 2)
    assert (ended["progress"], ended["total"]) <= (3, 3)
    assert healthy(damaged)


def test_repair_all_names_what_it_cannot_repair(upkept: Daemon, damaged: Client) -> None:
    version = damaged.result("object.stat", key="a")["metadata"]["version"]
    for file in share_files(upkept, version)[:3]:
        file.unlink()
    told = damaged.result("health.repair_all")
    assert (told["objects"], told["repaired"], told["failed"]) == (3, 2, 1)
    assert [(each["namespace"], each["key"], each["error"]) for each in told["found"]] == [("default", "a", "unreadable")]
    damaged.result("object.delete", key="a")


def test_a_scrub_that_is_waited_for_tells_what_it_found(damaged: Client) -> None:
    told = damaged.result("health.scrub", action="start", wait=True)
    assert (told["state"], told["cursor_percent"], told["overdue"]) == ("idle", 100, False)
    assert (told["found"]["objects"], told["found"]["bad_shares"], told["found"]["unreadable"]) == (3, 2, 0)
    status = damaged.result("daemon.status")
    assert status["scrub"] == told
    assert told["started_epoch"] < told["last_ended_epoch"]


def test_who_waits_for_a_scrub_holds_no_stop_up(new_daemon: Daemon) -> None:
    new_daemon.config_file.parent.mkdir(parents=True)
    new_daemon.config_file.write_text("[scrub]\nrate = 1048576\n")
    with new_daemon.start().client() as client, new_daemon.client() as other:
        for number in range(20):
            client.write(f"{number}", LARGE)
        client.request("health.scrub", {"action": "start", "wait": True})
        while other.result("daemon.status")["scrub"]["state"] != "running":
            pass
        assert new_daemon.stop() == 0
        assert "had not ended" not in new_daemon.said
        assert error_type(client.reply()) == "shutting_down"


def test_a_paused_scrub_says_so_and_goes_on(damaged: Client) -> None:
    assert damaged.result("health.scrub", action="pause")["state"] == "paused"
    assert damaged.result("daemon.status")["scrub"]["state"] == "paused"
    assert damaged.result("health.scrub", action="start", wait=True)["state"] == "idle"
    assert damaged.refusal("health.scrub", action="stop") == "invalid_params"


def test_a_dry_collect_tells_and_a_wet_one_frees(upkept: Daemon, damaged: Client) -> None:
    damaged.result("health.repair_all")
    version = damaged.result("object.stat", key="a")["metadata"]["version"]
    kept = {file: file.read_bytes() for file in share_files(upkept, version)}
    damaged.result("object.delete", key="a")
    damaged.result("health.collect")
    for file, data in kept.items():
        file.write_bytes(data)  # as a power loss may bring them back
    dry = damaged.result("health.collect", dry_run=True)
    assert (dry["dry_run"], dry["freed"], dry["waiting"], dry["kept"], dry["unseen"]) == (True, 0, 6, 0, [])
    assert len(share_files(upkept, version)) == 6
    wet = damaged.result("health.collect")
    assert (wet["freed"], wet["waiting"], wet["kept"], wet["found"]) == (6, 0, 0, [])
    assert share_files(upkept, version) == []


def test_what_is_kept_is_told_by_shard_version_and_reason(upkept: Daemon, damaged: Client) -> None:
    damaged.result("health.collect")  # what the tests before have overwritten
    version = damaged.result("object.stat", key="a")["metadata"]["version"]
    own = share_files(upkept, version)[0]
    strange = own.with_name(f"{version[:2]}{'7' * 30}{own.suffix}")
    strange.write_bytes(own.read_bytes())
    told = damaged.result("health.collect")
    assert (told["freed"], told["kept"]) == (0, 1)
    shard = own.parts[-4]
    assert told["found"] == [{"shard": shard, "version": strange.stem, "index": int(own.suffix[1:]), "reason": "no_record"}]
    assert damaged.result("health.collect", accept_loss=True)["freed"] == 1
    assert not strange.exists()


def test_metrics_are_what_prometheus_reads(damaged: Client) -> None:
    lines = damaged.result("daemon.metrics").splitlines()
    samples = {}
    for line in lines:
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            samples[name] = float(value)
    assert samples['zstor_state{state="ok"}'] == 1
    assert samples["zstor_objects"] == 3
    assert samples['zstor_shard_state{shard="0",state="ok"}'] == 1
    assert samples['zstor_queue{queue="repair"}'] == 0
    assert samples["zstor_scrub_overdue"] == 0
    assert all(any(line.startswith(f"# TYPE {name.partition('{')[0]} ") for line in lines) for name in samples)


def test_metadata_that_was_tampered_with_is_refused_by_everything_that_manages(damaged: Client) -> None:
    metadata = damaged.result("object.stat", key="a")["metadata"]
    seal = metadata["seal"]
    for method in ("object.check", "object.repair", "object.delete", "object.read", "object.stat"):
        for changed in (
            {"key": "b"},
            {"size": metadata["size"] + 1},
            {"version": "0" * 32},
            {"seal": seal[:200] + ("A" if seal[200] != "A" else "B") + seal[201:]},
            {"seal": seal[:30] + ("A" if seal[30] != "A" else "B") + seal[31:]},
        ):
            assert damaged.refusal(method, metadata={**metadata, **changed}) in ("corrupt_record", "not_found"), (method, changed)
    assert damaged.result("object.stat", key="a")["metadata"]["version"] == metadata["version"]
