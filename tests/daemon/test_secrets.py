"""What a client stores, and the key: on no disk, in no word of the daemon, and in nothing that others can see of its process."""

from __future__ import annotations

import base64
import json
import os
import secrets
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.daemon.client import Client, pipe
from tests.daemon.conftest import unharmed
from tests.daemon.process import Daemon
from zstor_local.model.masterkey import MasterKey

SECRET = b"CanarySecretValue" + secrets.token_hex(8).encode()
KEY = "CanarySecretKey" + secrets.token_hex(8)
REFERENCE = "CanaryReference" + secrets.token_hex(8)
NOTE = "CanaryNote" + secrets.token_hex(8)


def forms(secret: bytes) -> list[bytes]:
    """The ways in which it might be written down."""
    return [secret, secret.hex().encode(), *(base64.b64encode(b"x" * shift + secret)[4 * (shift > 0) : -4] for shift in range(3))]


def use_everything(daemon: Daemon, client: Client) -> None:
    """The secrets through every method there is, in calls that succeed and in calls that fail."""
    path = daemon.home / "destination"
    about: dict[str, Any] = {"key": KEY, "references": [REFERENCE], "user": {"note": NOTE}}
    client.result("object.write", value=SECRET.decode(), **about)
    large = SECRET * 30_000
    with ExitStack() as opened:
        memory = os.memfd_create("source")
        opened.callback(os.close, memory)
        os.pwrite(memory, large, 0)
        client.result("object.write_file", fd=0, fds=[memory], **about)
        for value in (SECRET, large):
            reader, writer = pipe(opened)
            identity = client.request("object.write_stream", {"fd": 0, **about}, fds=[reader])
            while value:
                value = value[os.write(writer, value) :]
            os.close(writer)
            assert client.reply()["id"] == identity
        reader, writer = pipe(opened)
        client.result("object.read_stream", key=KEY, fd=0, length=1_000, fds=[writer])
    metadata = client.result("object.stat", key=KEY)["metadata"]
    client.result("object.read", metadata=metadata)
    client.result("object.read_file", key=KEY, path=str(path))
    assert SECRET in path.read_bytes()
    path.unlink()
    client.result("object.list", prefix=KEY[:6])
    client.result("help")
    client.call("rpc.check", {"method": "object.write", "params": {"key": KEY, "value": SECRET.decode()}})
    for method in client.result("rpc.methods"):
        for params in (
            {"key": KEY, "unknown": SECRET.decode()},
            {"key": {"x": KEY}},
            {"value": SECRET.decode()},
            [SECRET.decode(), {}],
        ):
            client.call(method["name"], params)
            client.send(f'{{"jsonrpc": "2.0", "method": "{method["name"]}", "params": {{"key": 1, "{KEY}": "{SECRET.decode()}"}}}}\n')
    client.call(KEY, {})
    client.refusal("object.write_file", key=KEY, path=f"/{KEY}/{SECRET.decode()}")
    client.refusal("object.read", key=f"{KEY} missing")
    client.refusal("object.write", key=KEY, value=SECRET.decode(), expected_size=1)
    client.refusal("object.delete", key=KEY, if_version="0" * 32)
    for method, params in (
        ("object.delete", {"key": f"{KEY} missing"}),
        ("object.delete", {KEY: SECRET.decode()}),
        (f"{KEY}\n{SECRET.decode()}", {}),
    ):
        client.send(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}) + "\n")  # notifications
    client.send(SECRET + b"\n" + b'{"jsonrpc": "' + SECRET + b"\n")
    client.reply()
    client.reply()
    client.write(KEY, SECRET)
    client.result("object.delete", key=KEY)
    client.write(KEY, SECRET)


def test_secrets_are_in_no_file_no_word_and_no_argument(new_daemon: Daemon) -> None:
    new_daemon.start()
    with unharmed(new_daemon), new_daemon.client() as client:
        use_everything(new_daemon, client)
    with new_daemon.client() as client:
        use_everything(new_daemon, client)
        seen = [Path(f"/proc/{new_daemon.pid}/cmdline").read_bytes()]
        if os.geteuid() == 0:  # its owner may not even look
            seen.append(Path(f"/proc/{new_daemon.pid}/environ").read_bytes())
        new_daemon.kill()
        said = new_daemon.said
        new_daemon.start()
    key_text = new_daemon.key_file.read_bytes()
    assert new_daemon.stop() == 0
    said += new_daemon.said
    files = {path: path.read_bytes() for path in new_daemon.home.rglob("*") if path.is_file() and path != new_daemon.key_file}
    master = MasterKey.from_text(key_text.decode())
    hidden = [form for secret in (SECRET, KEY.encode(), REFERENCE.encode(), NOTE.encode(), master.key) for form in forms(secret)]
    for path, content in files.items():
        for form in hidden:
            if path.name.startswith("metastore.sqlite") and form == KEY.encode():
                continue  # the metastore lies beside the key and finds records by their names
            assert form not in content, path
    for form in hidden:
        assert form not in said.encode()
        assert all(form not in text for text in seen)
    assert sum(master.key.hex().encode() in content or master.key in content for content in files.values()) == 0


def test_the_search_would_find_them() -> None:
    for secret in (SECRET, KEY.encode()):
        for text in (
            secret,
            b"ab" + secret + b"cd",
            base64.b64encode(b"a" + secret + b"tail"),
            base64.b64encode(b"ab" + secret + b"tail"),
        ):
            assert any(form in text for form in forms(secret))
        assert any(form in secret.hex().encode() for form in forms(secret))


def test_nothing_of_the_process_can_be_read_by_its_owner(daemon: Daemon) -> None:
    """Not dumpable: what lies in procfs for its owner belongs to root."""
    assert {os.stat(f"/proc/{daemon.pid}/{name}").st_uid for name in ("mem", "environ", "fd", "maps")} == {0}
    assert Path(f"/proc/{daemon.pid}/limits").is_file()
