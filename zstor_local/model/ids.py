"""Names and ids: what a namespace, a key and a version look like, and the checks at the door."""

from __future__ import annotations

import re
from typing import Final, NewType

from zstor_local import limits
from zstor_local.errors import InvalidParams, TooLarge
from zstor_local.value import value

Version = NewType("Version", bytes)  # 16 bytes, one per write, never used twice: store.coding.new_version
StoreId = NewType("StoreId", bytes)  # 16 random bytes, made by init
NamespaceId = NewType("NamespaceId", bytes)  # 16 random bytes: what shards see of a namespace
ShardUid = NewType("ShardUid", bytes)  # 16 random bytes in the shard's marker; its short name is for people
KeyHash = NewType("KeyHash", bytes)  # 16 bytes, keyed: what shards see of a key
ReferenceHash = NewType("ReferenceHash", bytes)  # 16 bytes, keyed: what the metastore sees of a reference

ID_BYTES: Final = 16

_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?\Z")


@value(order=True)
class ShareId:
    """Share `index` of one version."""

    version: Version
    index: int


@value(order=True)
class ObjectName:
    """A key in a namespace, both checked."""

    namespace: str
    key: str


def check_namespace(name: str) -> str:
    """The name itself, or InvalidParams. No dots and no `_0stor_`: the scope `O.0stor.a.read` must mean one thing only."""
    if not _NAMESPACE.match(name) or "_0stor_" in name:
        raise InvalidParams(
            "that is not a namespace name",
            hint="1 to 63 of a-z, 0-9, _ and -, beginning and ending with a letter or digit, without _0stor_",
        )
    return name


def check_key(key: str) -> str:
    """The key itself; InvalidParams or TooLarge if it is not 1 to 1,024 bytes of UTF-8 without NUL."""
    try:
        encoded = key.encode()
    except UnicodeEncodeError:
        raise InvalidParams("a key is UTF-8 text without lone surrogates") from None
    if len(encoded) > limits.KEY_BYTES:
        raise TooLarge(f"the key has {len(encoded)} bytes", limit=limits.KEY_BYTES, hint=f"use at most {limits.KEY_BYTES} bytes")
    if not encoded or b"\0" in encoded:
        raise InvalidParams("a key has at least one byte and no NUL")
    return key
