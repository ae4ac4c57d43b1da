"""Make a golden store: `python -m tests.golden.making NAME [TREE]`, with the daemon of this tree or of an older TREE.

A golden store is what a version has written, kept for ever: every later version must read it (docs/format.md). At a change of the
format a new one is made, with a name of its own; one that is there is never made again. Its keys and ids are random, its contents and
what is done to them are not. What the daemon that wrote it read back is beside the store, in `expected.json`.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import random
import sys
import tarfile
import tempfile
from base64 import b64decode
from pathlib import Path
from typing import Any, Final

from tests.daemon.client import Client
from tests.daemon.process import Daemon

PLACE: Final = Path(__file__).parent
SUMS: Final = PLACE / "SHA256SUMS"
EXPECTED: Final = "expected.json"
DISKS: Final = ("red", "blue", "green", "attic", "cellar", "desk")
KEPT: Final = (
    "key",
    "version",
    "size",
    "digest",
    "created_epoch",
    "modified_epoch",
    "chunk_size",
    "policy",
    "references",
    "user",
    "previous_key",
    "next_key",
)

Object = dict[str, Any]


# --- What there is to read ---


def everything(client: Client) -> Object:
    """All that users have stored, as far as the daemon has methods for it."""
    has = _methods(client)
    found: Object = {"objects": {}, "references": {}}
    spaces = [space for space in _items(client, "namespace.list") if space["namespace"] != "_cas"] if "namespace.list" in has else []
    for name in [space["namespace"] for space in spaces] or ["default", "photos"]:
        found["objects"][name] = {
            item["key"]: read_object(client, name, item["key"]) for item in _items(client, "object.list", namespace=name)
        }
        found["references"][name] = client.result("reference.find", reference="tree", namespace=name)["keys"]
    if spaces:
        found["spaces"] = {
            space["namespace"]: {name: space[name] for name in ("policy", "quota_bytes", "created_epoch")} for space in spaces
        }
        found["permissions"] = {name: client.result("permission.list", namespace=name) for name in found["spaces"]}
    if "ns.update" in has:
        found["names"] = {
            item["name"]: _named(client, item["name"]) for item in _items(client, "ns.list") if item["name"][:4] != "log/"
        }
    if "cas.upload" in has:
        found["contents"] = {
            item["id"]: _digest(client.result("cas.fetch", id=item["id"])) for item in _items(client, "cas.list", owner="user")
        }
    if "log.append" in has:
        found["logs"] = {item["log"]: client.result("log.read", log=item["log"], values=True) for item in _items(client, "log.list")}
    return found


def read_object(client: Client, namespace: str, key: str) -> Object:
    """All that stays as it was written, and a hash of the content."""
    read = client.result("object.read", key=key, namespace=namespace)
    return {name: read["metadata"][name] for name in KEPT} | {"sha256": _digest(read)}


def _methods(client: Client) -> set[str]:
    return {method["name"] for method in client.result("rpc.methods")}


def _items(client: Client, method: str, **params: Any) -> list[Any]:
    page = client.result(method, **params)
    assert page["cursor"] is None
    return list(page["items"])


def _named(client: Client, name: str) -> Object:
    return {member: value for member, value in client.result("ns.fetch", name=name).items() if member in ("value_b64", "seq")}


def _digest(read: Object) -> str:
    return hashlib.sha256(b64decode(read["value_b64"])).hexdigest()


# --- What is stored ---


def fill(client: Client) -> None:
    """A little of everything. A large object's content repeats itself, so that its shares are files and yet few bytes."""
    has, noise = _methods(client), random.Random(1)
    client.write("empty", b"")
    client.write("small", noise.randbytes(200), user={"by": "ann", "number": 7}, references=["tree", "shrub"])
    client.write("large", b"the same again and again\n" * 12_000, references=["tree"])
    client.write("several chunks", b"line after line after line\n" * 100_000)
    for number in range(2):
        client.write("written again", b"%d" % number * 300)
        client.write("large and written again", b"%d" % number * 300_000)
    client.write("gone", b"gone")
    client.result("object.delete", key="gone")
    for number in range(1, 4):
        client.write(f"chapter {number}", b"once\n" * number, **({"previous_key": f"chapter {number - 1}"} if number > 1 else {}))
    client.result("object.delete", key="chapter 2")
    client.write("old name", b"renamed")
    client.result("object.rename", key="old name", new_key="new name")
    client.result("object.copy", key="large", new_key="large, a second time")
    client.result("reference.remove", key="small", references=["shrub"])
    if "namespace.create" in has:
        policy = {"k": 1, "m": 2, "chunk_size": 1 << 18, "compression": "none", "padding": "padme"}
        client.result("namespace.create", namespace="photos", policy=policy, quota_bytes=1 << 20)
        client.result("permission.give", namespace="photos", user="alice", permission=["read", "write"])
        client.result("namespace.create", namespace="gone")
        client.result("namespace.delete", namespace="gone")
    client.write("photo", noise.randbytes(100), namespace="photos", references=["tree"])
    for value in ("first", "second"):
        client.result("ns.update", name="page", value=value)
    client.result("ns.update", name="gone", value="gone")
    client.result("ns.delete", name="gone")
    if "cas.upload" in has:
        for content in ("content", "pages of content\n" * 20_000):
            client.result("cas.upload", value=content, reason="kept")
    if "log.append" in has:
        for name, encoding in (("in-protobuf", "protobuf"), ("in-json", "json")):
            client.result("log.create", log=name, page_size=2, embed_last=1, encoding=encoding)
            for number in range(3):
                client.result("log.append", log=name, value=f"entry {number}")
        client.result("log.scrub", log="in-protobuf", seq=2)


def fill_a_little(client: Client) -> None:
    """Small and large, old and deleted."""
    client.write("written again", b"old")
    client.write("written again", b"new")
    client.write("large", b"the same again and again\n" * 12_000)
    client.write("gone", b"gone")
    client.result("object.delete", key="gone")


def rotate(client: Client) -> None:
    """A new master key; what is written afterwards knows it alone."""
    job = client.result("key.rotate")["job"]
    assert client.result("job.wait", job=job)["state"] == "done"
    client.write("after the rotation", b"new")


# --- The archive ---


def make(name: str, home: Path, tree: Path | None) -> bytes:
    """The archive of a home with such a store."""
    environment = Daemon.own_environment(home) | ({} if tree is None else {"PYTHONPATH": str(tree)})
    with Daemon(home, environment=environment) as daemon:
        if "disks" in name:
            daemon.config_file.parent.mkdir(parents=True, mode=0o700)
            daemon.config_file.write_text("".join(f'[[shard]]\nid = "{disk}"\nurl = "~/{disk}"\n' for disk in DISKS))
        with daemon.start().client() as client:
            fill(client) if "disks" not in name else fill_a_little(client)
            if "rotated" in name:
                rotate(client)
            expected = everything(client)
            if "killed" in name:
                daemon.kill()
        if "killed" not in name:
            assert daemon.stop() == 0
    (home / EXPECTED).write_text(json.dumps(expected, indent=1))
    return _packed(home)


def _packed(home: Path) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted(home.rglob("*")):
            name = path.relative_to(home).as_posix()
            if name.split("/")[0] != "run" and not name.endswith("-shm"):
                archive.add(path, name, recursive=False, filter=_plain)
    return lzma.compress(packed.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Nobody's in particular."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def main(name: str, tree: str | None = None) -> None:
    archive = PLACE / f"{name}.tar.xz"
    if archive.exists():
        sys.exit(f"{archive} is there: what was written once is never written again")
    with tempfile.TemporaryDirectory() as home:
        archive.write_bytes(make(name, Path(home) / "home", None if tree is None else Path(tree)))
    with SUMS.open("a") as sums:
        sums.write(f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  {archive.name}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
