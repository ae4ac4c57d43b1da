"""MVDS messages (2/MVDS): their ids, and which of them may stand in a remote log."""

from __future__ import annotations

import hashlib
from typing import Final

from zstor_local.formats.messages import MESSAGE
from zstor_local.formats.protobuf import Malformed, Message

GROUP_ID_BYTES: Final = 32


def message_id(message: Message) -> bytes:
    """sha256("MESSAGE_ID" ‖ group_id ‖ timestamp ‖ body), the timestamp as 8 bytes little-endian in two's complement.

    The specification leaves the timestamp's bytes open; both implementations in Go (protobuf/messageid.go) write it so. The metadata is
    not part of the id.
    """
    timestamp = message.number("timestamp").to_bytes(8, "little", signed=True)
    return hashlib.sha256(b"MESSAGE_ID" + message.blob("group_id") + timestamp + message.blob("body")).digest()


def logged_message_id(data: bytes) -> bytes:
    """The id of a message for a log, given its bytes; Malformed for what has no place there.

    Nothing in the id tells where the group ends and the timestamp begins, so the group must have just 32 bytes; an ephemeral message is
    not part of the history (4/MVDS-META).
    """
    message = MESSAGE.parse(data)
    if len(message.blob("group_id")) != GROUP_ID_BYTES:
        raise Malformed(f"the group id of an MVDS message has {GROUP_ID_BYTES} bytes, this one {len(message.blob('group_id'))}")
    metadata = message.message("metadata")
    if metadata is not None and metadata.number("ephemeral"):
        raise Malformed("an ephemeral message is not part of the history")
    return message_id(message)
