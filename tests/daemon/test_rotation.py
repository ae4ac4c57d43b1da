"""A rotation of the master key, as a client of a real daemon sees it: killed in the middle, gone on with, undone never."""

from __future__ import annotations

from tests.daemon.process import Daemon

OBJECTS = 300


def test_a_rotation_killed_in_the_middle_is_gone_on_with(new_daemon: Daemon) -> None:
    daemon = new_daemon.start()
    with daemon.client() as client:
        for number in range(OBJECTS):
            client.write(f"key {number:03}", f"value {number}".encode())
        before = daemon.key_file.read_text()
        rotated = client.result("key.rotate")
    daemon.kill()  # the job has hardly begun
    after = daemon.key_file.read_text()
    assert rotated["key_file"] == str(daemon.key_file)
    assert before != after
    assert all(line not in daemon.said for line in (before.split()[-1], after.split()[-1]))

    daemon.start()
    with daemon.client() as client:
        for job in client.result("job.list")["items"]:
            assert client.result("job.wait", job=job["job"])["state"] == "done"
        assert not any("sealed anew" in warning for warning in client.result("daemon.status")["warnings"])
        for number in range(OBJECTS):
            assert client.read(f"key {number:03}") == f"value {number}".encode()
        assert client.result("rpc.ping") == "pong"
    assert daemon.key_file.read_text() == after

    daemon.stop()
    daemon.key_file.write_text(before)
    assert "another master key since" in daemon.refuses_to_start().said
