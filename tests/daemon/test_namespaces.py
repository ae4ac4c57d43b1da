"""`namespace.*`, `permission.*` and `token.*` over the wire."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.daemon.client import Client
from zstor_local.access.trust import parse_trust
from zstor_local.access.verify import TokenRefused, Verified, verify


def verified(client: Client, token: str) -> Verified:
    """What a shard server that has just got the keys makes of a token."""
    trust = parse_trust(json.dumps(client.result("token.keys")))
    return verify(token, {trust.issuer: trust}, int(time.time()))


def test_a_namespace_from_its_beginning_to_its_end(client: Client) -> None:
    made = client.result("namespace.create", namespace="photos", policy={"k": 2, "m": 3, "padding": "padme"}, quota_bytes=10)
    policy = {"k": 2, "m": 3, "chunk_size": 1048576, "compression": "zstd", "padding": "padme"}
    assert (made["policy"], made["quota_bytes"], made["objects"], made["placement"]) == (policy, 10, 0, [])
    assert client.refusal("namespace.create", namespace="photos") == "already_exists"
    assert client.write("a", b"12345678", namespace="photos")["policy"] == policy
    error = client.call("object.write", {"key": "b", "value": "123", "namespace": "photos"})["error"]
    assert error["data"].items() >= {"type": "no_space", "quota_bytes": 10, "used_bytes": 8, "wanted_bytes": 3}.items()
    changed = client.result("namespace.set", namespace="photos", quota_bytes=-1, policy={"k": 1})
    assert (changed["quota_bytes"], changed["policy"], changed["objects"], changed["bytes"]) == (None, {**policy, "k": 1}, 1, 8)
    assert client.result("namespace.get", namespace="photos") == changed
    assert changed in client.result("namespace.list")["items"]
    job = client.result("namespace.rewrite", namespace="photos")["job"]
    assert client.result("job.wait", job=job)["result"] == {"objects": 1, "unreadable": []}
    assert client.result("object.stat", key="a", namespace="photos")["metadata"]["policy"]["k"] == 1
    assert client.refusal("namespace.delete", namespace="photos") == "not_empty"
    assert client.result("namespace.delete", namespace="photos", force=True) == {"deleted": True, "objects": 1}
    assert client.refusal("namespace.get", namespace="photos") == "not_found"
    assert client.refusal("namespace.delete", namespace="photos", force=True) == "not_found"


def test_what_is_not_there_cannot_be_looked_through_but_waited_for(client: Client) -> None:
    looked: list[tuple[str, dict[str, Any]]] = [
        ("object.list", {}),
        ("reference.find", {"reference": "r"}),
        ("object.walk", {"start_key": "k"}),
    ]
    for method, params in looked:
        assert client.refusal(method, namespace="nowhere", **params) == "not_found"
    assert client.result("object.changes", namespace="nowhere")["items"] == []
    client.result("namespace.create", namespace="nowhere")
    assert client.result("object.list", namespace="nowhere") == {"items": [], "cursor": None}
    client.result("namespace.delete", namespace="nowhere")


def test_namespaces_come_in_pages(client: Client) -> None:
    for number in range(3):
        client.result("namespace.create", namespace=f"page{number}")
    names: list[str] = []
    cursor: dict[str, Any] = {}
    while True:
        page = client.result("namespace.list", limit=1, **cursor)
        names += [item["namespace"] for item in page["items"]]
        if page["cursor"] is None:
            break
        cursor = {"cursor": page["cursor"]}
    assert [name for name in names if name.startswith("page")] == ["page0", "page1", "page2"]
    for number in range(3):
        client.result("namespace.delete", namespace=f"page{number}")


@pytest.mark.parametrize(
    ("method", "params", "error"),
    [
        ("namespace.create", {"namespace": "a.b"}, "invalid_params"),
        ("namespace.create", {"namespace": "_cas"}, "invalid_params"),
        ("namespace.create", {"namespace": "new", "policy": {"k": 7, "m": 6}}, "invalid_params"),
        ("namespace.create", {"namespace": "new", "policy": {"m": 7}}, "invalid_params"),
        ("namespace.create", {"namespace": "new", "policy": {"chunk_size": 300_000}}, "invalid_params"),
        ("namespace.create", {"namespace": "new", "policy": {"sealed": False}}, "invalid_params"),
        ("namespace.create", {"namespace": "new", "quota_bytes": -1}, "invalid_params"),
        ("namespace.create", {"namespace": "new", "placement": ["attic"]}, "invalid_params"),
        ("namespace.set", {"namespace": "none"}, "not_found"),
        ("namespace.delete", {"namespace": "none"}, "not_found"),
        ("namespace.rewrite", {"namespace": "none"}, "not_found"),
        ("permission.give", {"namespace": "none", "user": "bob", "permission": "read"}, "not_found"),
        ("permission.give", {"namespace": "default", "user": "owner", "permission": "read"}, "invalid_params"),
        ("permission.give", {"namespace": "default", "user": "b/b", "permission": "read"}, "invalid_params"),
        ("permission.give", {"namespace": "default", "user": "bob", "permission": "own"}, "invalid_params"),
        ("permission.give", {"namespace": "default", "user": "bob", "permission": []}, "invalid_params"),
        ("permission.get", {"namespace": "none", "user": "bob"}, "not_found"),
        ("token.create", {"namespace": "none", "permission": "read"}, "not_found"),
        ("token.create", {"namespace": "_store", "permission": "admin"}, "invalid_params"),
        ("token.create", {"namespace": "default", "permission": "read", "ttl_seconds": 86_401}, "invalid_params"),
        ("token.create", {"namespace": "default", "permission": "read", "user": "nobody"}, "permission_denied"),
        ("token.revoke", {}, "invalid_params"),
        ("token.revoke", {"all": True, "user": "bob"}, "invalid_params"),
        ("token.revoke", {"kid": "unknown"}, "not_found"),
    ],
)
def test_what_makes_no_sense_is_refused(client: Client, method: str, params: dict[str, Any], error: str) -> None:
    client.write("a", b"")  # makes the default namespace
    assert client.refusal(method, **params) == error
    assert not any(item["namespace"] == "new" for item in client.result("namespace.list")["items"])


def test_permissions_and_the_tokens_that_follow_from_them(client: Client) -> None:
    client.result("namespace.create", namespace="photos")
    about: dict[str, Any] = {"namespace": "photos", "user": "bob"}
    nothing = {"read": False, "write": False, "delete": False, "admin": False}
    assert client.result("permission.get", **about) == nothing
    assert client.refusal("token.create", **about, permission="read") == "permission_denied"
    given = client.result("permission.give", **about, permission=["read", "write"])
    assert given == {**about, **nothing, "read": True, "write": True, "pending": []}
    made = client.result("token.create", **about, permission=["read"], ttl_seconds=60)
    assert made["scopes"] == ["user:memberof:local.0stor.photos.read"]
    assert abs(made["expires_epoch"] - 1_000_000 * (time.time() + 60)) < 30_000_000
    token = verified(client, made["token"])
    assert (token.user, token.allows("photos", "read"), token.allows("photos", "write")) == ("bob", True, False)
    assert client.result("permission.list", namespace="photos")["items"] == [given]

    assert client.result("permission.remove", **about, permission=["read", "write"])["read"] is False
    assert client.refusal("token.create", **about, permission="read") == "permission_denied"
    assert verified(client, made["token"]).allows("photos", "read")  # until it expires
    client.result("token.revoke", user="bob")
    with pytest.raises(TokenRefused, match="revoked"):
        verified(client, made["token"])

    own = client.result("token.create", namespace="photos", permission="admin")["token"]
    assert verified(client, own).user == "owner"
    client.result("namespace.delete", namespace="photos")
    with pytest.raises(TokenRefused, match="revoked"):
        verified(client, own)


def test_keys_are_rotated_and_revoked(client: Client) -> None:
    client.result("namespace.create", namespace="photos")
    before = client.result("token.keys")
    assert before["issuer"].startswith("zstor:")
    rotated = client.result("token.keys", rotate=True, signs_in_seconds=0)
    assert len(rotated["keys"]) == len(before["keys"]) + 1
    assert rotated["updated"] > before["updated"]
    token = client.result("token.create", namespace="photos", permission="read")["token"]
    assert verified(client, token).allows("photos", "read")
    client.result("token.revoke", kid=rotated["keys"][-1]["kid"])
    with pytest.raises(TokenRefused):
        verified(client, token)
    client.result("namespace.delete", namespace="photos")
