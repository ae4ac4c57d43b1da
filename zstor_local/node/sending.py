"""The sending node: content first, then the name.

A message becomes an MVDS message of the log's group, so that it has an id of its own wherever it goes; its bytes go into the content
store, then the log is told, which sets its name to the new head. Sending the same message again is the same entry, so a sender that
died, or got no answer, may simply send again. Live messages to those who are there now go another way.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from zstor_local.formats.cid import Cid
from zstor_local.formats.messages import MESSAGE
from zstor_local.formats.mvds import message_id
from zstor_local.node.client import Node


@dataclass(frozen=True, slots=True)
class Sent:
    """Where a message is now."""

    seq: int
    message_id: bytes
    cid: Cid


def group_of(log: str) -> bytes:
    """The MVDS group of those who talk over a log: 32 bytes that follow from its name."""
    return hashlib.sha256(b"zstor/1 log " + log.encode()).digest()


async def send(node: Node, log: str, body: bytes, *, timestamp: int, group: bytes | None = None) -> Sent:
    """Send a message. `timestamp` in milliseconds since 1970 UTC: together with group and body it is the message's identity."""
    message = MESSAGE.make(group_id=group or group_of(log), timestamp=timestamp, body=body)
    cid = await node.upload(message.encode(), pin=False)  # the log pins it
    return Sent(await node.append(log, message_id(message), cid), message_id(message), cid)
