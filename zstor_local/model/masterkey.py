"""The master key file: the one secret that opens a store. Text, so that a person can see what it is.

zstor master key 1
store 6f1c…            the store id, 32 hex digits
key   q83v…            the key, 32 bytes in standard base64
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Final

from zstor_local.model.ids import ID_BYTES, StoreId

KEY_BYTES: Final = 32
MAX_FILE_BYTES: Final = 4_096
UNFINISHED: Final = ".new"  # behind the key file's name: the key of an init under way
NEXT: Final = ".next"  # behind the key file's name: the key that a rotation brings in

_FIRST_LINE: Final = "zstor master key 1"


class BadKeyFile(Exception):
    """The text is no master key. The message never holds a part of it."""


@dataclass(frozen=True, slots=True)
class MasterKey:
    """The key and the store it belongs to; repr does not show the key."""

    store_id: StoreId
    key: bytes = field(repr=False)

    def to_text(self) -> str:
        """What the key file holds."""
        return f"{_FIRST_LINE}\nstore {self.store_id.hex()}\nkey   {base64.b64encode(self.key).decode()}\n"

    @classmethod
    def from_text(cls, text: str) -> MasterKey:
        """The reverse of `to_text`, or BadKeyFile."""
        lines = text.split("\n")
        if lines[0] != _FIRST_LINE:
            raise BadKeyFile(f"the file does not begin with the line “{_FIRST_LINE}”")
        fields = dict(line.split(maxsplit=1) for line in lines[1:] if len(line.split(maxsplit=1)) == 2)
        try:
            store, key = bytes.fromhex(fields["store"]), base64.b64decode(fields["key"], validate=True)
        except (KeyError, ValueError, binascii.Error):
            raise BadKeyFile("the file lacks a readable store or key line") from None
        if len(store) != ID_BYTES or len(key) != KEY_BYTES:
            raise BadKeyFile("the store id or the key has the wrong length")
        return cls(StoreId(store), key)


@dataclass(frozen=True, slots=True)
class OlderKey:
    """A master key that a rotation replaced: it opens what was sealed up to sequence `through` (None: anything), and seals nothing."""

    key: bytes = field(repr=False)
    through: int | None = None
