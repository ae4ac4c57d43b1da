"""Pages of long lists: cursors, and how much fits into one reply."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from zstor_local.errors import InvalidParams
from zstor_local.store.stored import Stored

_METADATA_MEMBERS_BYTES: Final = 1_500  # what metadata takes in a reply beside references, user and shards


def reply_bytes(stored: Stored) -> int:
    """About what an item of a list takes in the reply."""
    record = stored.record
    texts = [record.key, record.key, *record.references]
    return (
        _METADATA_MEMBERS_BYTES
        + 6 * sum(len(text) + 1 for text in texts)
        + 2 * len(stored.envelope.sealed)
        + 40 * len(record.placement)
    )


def cursor_of(key: str) -> str:
    """A cursor that names the last key of a page."""
    return base64.urlsafe_b64encode(key.encode()).decode()


def key_of(cursor: str) -> str:
    """The reverse, or InvalidParams."""
    try:
        return base64.b64decode(cursor, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise InvalidParams("that cursor is not one of a list", hint="give it as the page before had it", parameter="cursor") from None
