"""Every method of the daemon, called by each of the three clients: what one call stores is what another one finds.

A method that is new must be called here, or the test fails. Two daemons and three shard servers, for some methods are about others.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
import zstor_client
from zstor_client import Client, ZstorError

from tests.clients.conftest import CLIENTS
from tests.daemon.process import Daemon
from tests.lacking import lacking
from tests.shardserver.server import Server
from zstor_local import errors

HERE = Path(__file__).parent
LANGUAGES = ["python", "js", "shell"]


class Caller(Protocol):
    """One of the three clients: a result, or an error's type, code and whether to try again."""

    def outcome(self, method: str, params: dict[str, Any]) -> dict[str, Any]: ...

    def read_stream(self, key: str, *, leave: bool) -> str: ...


class Python:
    """clients/python as it is."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def outcome(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"result": self._client.call(method, **params)}
        except ZstorError as error:
            if type(error) is not zstor_client._CLASSES[str(error.type)]:
                raise
            return {"error": {"type": error.type, "code": error.code, "retryable": error.retryable}}

    def read_stream(self, key: str, *, leave: bool) -> str:
        stream = self._client.call("object.read_stream", key=key)["stream"]
        while (told := self._client.notification()["params"])["stream"] != stream:
            pass  # the end of an earlier one
        text = base64.b64decode(told["value_b64"]).decode()
        if not leave:
            self._client.call("stream.ack", stream=stream, seq=0)
            return text
        self._client.call("stream.abort", stream=stream)
        return text[:1]


class Bridge:
    """clients/js or clients/shell, behind a line in and a line out."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def outcome(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"method": method, "params": params}), file=self._process.stdin, flush=True)
        outcome: dict[str, Any] = json.loads(self._process.stdout.readline())
        return outcome

    def read_stream(self, key: str, *, leave: bool) -> str:
        return str(self.outcome("leave a stream" if leave else "read a stream", {"key": key})["result"])


@contextmanager
def calling(language: str, environment: dict[str, str], scratch: Path) -> Iterator[Caller]:
    """A client that is connected to the daemon of an environment."""
    if language == "python":
        with Client(zstor_client.default_socket(environment)) as client:
            yield Python(client)
        return
    program, script = {"js": ("node", "bridge.mjs"), "shell": ("bash", "bridge.sh")}[language]
    for tool in (program, *(("socat", "jq") if language == "shell" else ())):
        if shutil.which(tool) is None:
            lacking(tool)
    own = environment | {"CLIENTS": str(CLIENTS), "RESULT": str(scratch), "ZSTOR_TIMEOUT": "300"}
    process = subprocess.Popen([program, str(HERE / script)], env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Bridge(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@dataclass
class Ledger:
    """Calls through a client, and which methods answered."""

    caller: Caller
    answered: set[str] = field(default_factory=set)

    def __call__(self, method: str, /, **params: Any) -> Any:
        outcome = self.caller.outcome(method, params)
        assert "result" in outcome, (method, outcome)
        self.answered.add(method)
        return outcome["result"]

    def refused(self, method: str, /, **params: Any) -> str:
        return str(self.caller.outcome(method, params)["error"]["type"])

    def streamed(self, key: str) -> str:
        self.answered |= {"object.read_stream", "stream.ack"}
        return self.caller.read_stream(key, leave=False)

    def stream_left(self, key: str) -> str:
        self.answered |= {"object.read_stream", "stream.abort"}
        return self.caller.read_stream(key, leave=True)


@dataclass
class World:
    alice: Daemon
    bob: Daemon
    servers: list[str]  # shards of Alice's that are servers
    place: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("every")
    with Daemon(place / "alice") as alice, Daemon(place / "bob") as bob, ExitStack() as servers:
        alice.start()
        bob.start()
        with Client(alice.socket) as client:
            (place / "trust.json").write_text(json.dumps(client.call("token.keys")))
            shards = []
            for number in range(3):
                server = Server(place / f"server{number}", [place / "trust.json"], f"unix:{place}/{number}.sock")
                servers.callback(server.kill)
                shards.append(client.call("shard.add", url=server.url)["id"])
        yield World(alice, bob, shards, place)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_method_does_its_work(world: World, language: str, tmp_path: Path) -> None:
    with (
        calling(language, world.alice.environment, tmp_path / "a") as alices,
        calling(language, world.bob.environment, tmp_path / "b") as bobs,
    ):
        alice, bob = Ledger(alices), Ledger(bobs)
        objects(alice, tmp_path, f"{language}-objects")
        streams(alice)
        contents(alice, tmp_path, language)
        logs(alice, tmp_path, language)
        sharing(alice, bob, world.servers, f"{language}-photos")
        shards(alice, tmp_path)
        the_daemon(alice)
        methods = {method["name"] for method in alice("rpc.methods")}
        assert methods == {method["name"] for method in alice("rpc.discover")["methods"]}
        assert alice.answered | bob.answered == methods


def objects(call: Ledger, place: Path, namespace: str) -> None:
    (place / "file").write_bytes(b"from a file" * 1_000)
    written = call("object.write", namespace=namespace, key="a", value="grüße", references=["r"], user={"n": {}})["metadata"]
    assert call("object.read", namespace=namespace, key="a", encoding="utf-8")["value"] == "grüße"
    assert call("object.stat", metadata=written)["metadata"]["user"] == {"n": {}}
    call("object.write_file", namespace=namespace, key="b", path=str(place / "file"), previous_key="a")
    call("object.read_file", namespace=namespace, key="b", path=str(place / "copy"))
    assert (place / "copy").read_bytes() == (place / "file").read_bytes()
    assert [item["key"] for item in call("object.walk", namespace=namespace, start_key="a")["items"]] == ["a", "b"]
    call("object.copy", namespace=namespace, key="a", new_key="c")
    call("object.rename", namespace=namespace, key="c", new_key="d")
    assert call.refused("object.stat", namespace=namespace, key="c") == "not_found"
    assert call("reference.append", namespace=namespace, key="d", references=["s"])["references"] == ["r", "s"]
    assert call("reference.find", namespace=namespace, reference="s")["keys"] == ["d"]
    assert call("reference.remove", namespace=namespace, key="d", references=["r"])["references"] == ["s"]
    assert call("object.check", namespace=namespace, key="d")["status"] == "optimal"
    assert call("object.repair", namespace=namespace, key="d")["metadata"]["health"] == "optimal"
    cursor = call("object.changes", namespace=namespace)["cursor"]
    assert call("object.delete", namespace=namespace, key="d")["deleted"] is True
    assert [item["deleted"] for item in call("object.changes", namespace=namespace, since=cursor)["items"]] == [True]
    assert [item["key"] for item in call("object.list", namespace=namespace)["items"]] == ["a", "b"]
    assert call.refused("object.write", namespace=namespace, key="a", value="", exclusive=True) == "already_exists"
    assert call.refused("object.write", namespace=namespace, key="a", value="", if_version="0" * 32) == "conflict"
    assert call.refused("object.write", namespace=namespace, key="a", value="x", expected_size=2) == "incomplete"
    assert call.refused("object.write", namespace=namespace, key="k" * 1_025, value="") in ("invalid_params", "too_large")
    assert call.refused("object.read_file", namespace=namespace, key="a", path="/proc/x") in ("path_refused", "io_error")


def streams(call: Ledger) -> None:
    stream = call("object.write_stream", key="streamed")["stream"]
    assert call("stream.write", stream=stream, seq=0, value_b64="Ynl0ZXM=") == {"stream": stream, "seq": 0}
    assert call("stream.close", stream=stream)["metadata"]["size"] == 5
    assert call.streamed("streamed") == "bytes"
    assert call.stream_left("streamed") == "b"
    stream = call("object.write_stream", key="given up")["stream"]
    call("stream.abort", stream=stream)
    assert call.refused("stream.close", stream=stream) == "not_found"
    assert call.refused("object.stat", key="given up") == "not_found"


def contents(call: Ledger, place: Path, language: str) -> None:
    uploaded = call("cas.upload", value=f"content of {language}")
    identity = uploaded["id"]
    assert call("cas.fetch", id=identity, encoding="utf-8")["value"] == f"content of {language}"
    assert call("cas.stat", id=identity)["size"] == uploaded["size"]
    call("cas.pin", id=identity, owner=language, reason="a test")
    assert [item["id"] for item in call("cas.list", owner=language)["items"]] == [identity]
    call("cas.verify", id=identity)
    call("cas.unpin", id=identity, owner=language)
    assert call("cas.list", owner=language)["items"] == []
    call("cas.unpin", id=identity, forget=True)
    call("cas.collect")
    assert call.refused("cas.fetch", id=identity) == "not_found"
    seq = call("ns.update", name=language, value="one")["seq"]
    assert call.refused("ns.update", name=language, value="two", if_seq=seq + 1) == "conflict"
    assert call("ns.fetch", name=language, encoding="utf-8")["value"] == "one"
    assert language in json.dumps(call("ns.list", prefix=language))
    call("ns.delete", name=language)
    assert call.refused("ns.fetch", name=language) == "not_found"


def logs(call: Ledger, place: Path, log: str) -> None:
    call("log.create", log=log, page_size=2)
    first = call("log.append", log=log, value="one")
    call("log.append", log=log, value="two")
    entries = call("log.read", log=log, values=True, encoding="utf-8")["entries"]
    assert [entry["value"] for entry in entries] == ["one", "two"]
    assert [entry["seq"] for entry in call("log.missing", log=log, have_b64=[entries[0]["local_hash_b64"]])["need"]] == [2]
    assert call("log.head", log=log)["page"]["value_b64"] == call("log.page", log=log, seq=2)["value_b64"]
    assert call("log.verify", log=log, contents=True)["problem"] is None
    call("log.export", log=log, path=str(place / "log.car"))
    assert call("log.import", log=f"{log}-again", path=str(place / "log.car"))["log"] == f"{log}-again"
    assert f"{log}-again" in json.dumps(call("log.list"))
    call("log.scrub", log=log, seq=first["seq"])
    assert not call("log.read", log=log)["entries"][0].get("id")


def sharing(alice: Ledger, bob: Ledger, servers: list[str], namespace: str) -> None:
    alice("namespace.create", namespace=namespace, policy={"k": 2, "m": 3}, placement=servers)
    assert alice("namespace.set", namespace=namespace, quota_bytes=1_000)["quota_bytes"] == 1_000
    alice("object.write", namespace=namespace, key="beach", value="sand")
    assert alice.refused("object.write", namespace=namespace, key="big", value="x" * 2_000) == "no_space"
    assert alice("namespace.get", namespace=namespace)["objects"] == 1
    assert namespace in json.dumps(alice("namespace.list"))
    assert alice.refused("token.create", namespace=namespace, permission="read", user="bob") == "permission_denied"
    alice("permission.give", namespace=namespace, user="bob", permission="read")
    assert alice("permission.get", namespace=namespace, user="bob")["read"] is True
    assert "bob" in json.dumps(alice("permission.list", namespace=namespace))
    assert alice("token.create", namespace=namespace, permission="read", user="bob")["token"]
    assert alice("token.keys")["keys"]
    key = bob("namespace.key")["public_key"]
    invitation = alice("namespace.invite", namespace=namespace, user="bob", public_key=key)["invitation"]
    assert bob("namespace.join", invitation=invitation)["objects"] == 1
    assert bob("object.read", namespace=namespace, key="beach", encoding="utf-8")["value"] == "sand"
    assert bob.refused("object.write", namespace=namespace, key="x", value="") == "permission_denied"
    bob("namespace.delete", namespace=namespace)
    alice("permission.remove", namespace=namespace, user="bob", permission="read")
    assert alice("permission.get", namespace=namespace, user="bob")["read"] is False
    alice("token.revoke", user="bob")
    job = alice("namespace.rewrite", namespace=namespace)["job"]
    assert alice("job.wait", job=job, timeout_seconds=60)["state"] == "done"
    assert alice.refused("namespace.delete", namespace=namespace) == "not_empty"
    assert alice("namespace.delete", namespace=namespace, force=True)["objects"] == 1


def shards(call: Ledger, place: Path) -> None:
    added = call("shard.add", url=str(place / "shard"))["id"]
    assert added in {shard["id"] for shard in call("shard.list")["shards"]}
    call("shard.replace", shard=added, url=str(place / "another"))
    call("shard.remove", shard=added)
    assert added not in {shard["id"] for shard in call("shard.list")["shards"]}
    call("health.collect")
    call("health.repair_all")
    call("health.scrub", action="start", wait=True)
    call("object.write", key="rotated", value="still there")
    rotated = call("key.rotate")
    assert call("job.wait", job=rotated["job"], timeout_seconds=60)["state"] == "done"
    assert call("key.retire")["store"] == rotated["store"]
    assert call("object.read", key="rotated", encoding="utf-8")["value"] == "still there"


def the_daemon(call: Ledger) -> None:
    assert call("rpc.ping") == "pong"
    assert call("daemon.info")["pid"]
    assert call("daemon.status")["state"] in ("ok", "degraded")
    assert "zstor_" in call("daemon.metrics")
    job = call("health.repair_all", _meta={"detach": True})["job"]
    assert job in json.dumps(call("job.list"))
    assert call("job.status", job=job)["method"] == "health.repair_all"
    call("job.cancel", job=job)
    assert call("job.wait", job=job)["state"] in ("done", "cancelled")
    assert "rpc.ping" in call("help", method="rpc.ping")
    assert call("rpc.check", method="object.stat", params={"key": "x"}) is not None
    assert call.refused("rpc.check", method="object.stat", params={"kei": "x"}) == "invalid_params"
    assert call.refused("no.such.method") == "method_not_found"


def known_errors() -> list[type[errors.ZstorError]]:
    def all_below(base: type[errors.ZstorError]) -> Iterator[type[errors.ZstorError]]:
        for known in base.__subclasses__():
            if "type" in vars(known) and known.__module__ == "zstor_local.errors":
                yield known
            yield from all_below(known)

    return [*all_below(errors.ZstorError)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_error_comes_with_its_type(language: str, tmp_path: Path) -> None:
    """A daemon that answers each method's name as an error: who has a real one sees few of them."""
    known = {error.type: error for error in known_errors()}
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "errors.sock"))
    listener.listen()

    def answer() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as lines:
            for line in lines:
                request = json.loads(line)
                error = known[request["method"]]
                data = {"type": error.type, "retryable": error.retryable}
                told = {"code": error.code, "message": error.type, "data": data}
                print(json.dumps({"jsonrpc": "2.0", "error": told, "id": request["id"]}), file=lines, flush=True)

    serving = threading.Thread(target=answer)
    serving.start()
    with calling(language, {**os.environ, "ZSTOR_SOCKET": str(tmp_path / "errors.sock")}, tmp_path / "out") as caller:
        for error in known.values():
            expected = {"type": error.type, "code": error.code, "retryable": error.retryable}
            assert caller.outcome(error.type, {})["error"] == expected
    serving.join()
    listener.close()
    assert len(known) > 25
