"""Pages of a remote log: entries, newest first, and the id of the page before. As protobuf (3/REMOTE-LOG), or as JSON.

An entry pairs the hash that its writers know it by (`localHash`; in MVDS the message id) with its address in the content store
(`remoteHash`, a binary CID), and may carry the content itself (`data`). We add, in a field that the specification's readers keep as
unknown, `seqid` (4) of a pair: the entry's sequence number. The rules that a verifier checks: pages adjacent, no overlap, numbers
falling by one, `tail` and `remoteHash` binary CIDs. An entry that was scrubbed keeps its number and its local hash alone.

The JSON form is how the specification writes a page, `[[[h1, h2], …], next_page, {"last": …}]`: h1 the local hash in hex, h2 the CID as
text (null: scrubbed), the content in base64 as a third member where it is embedded; then the CID of the page before or null, and the
number of the first entry. It begins with `[`, which no page in protobuf does, so that a reader need not be told which one it has.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from zstor_local.formats.cid import BadCid, Cid, from_binary, parse
from zstor_local.formats.messages import PAIR
from zstor_local.formats.protobuf import Field, Malformed, Message, Schema
from zstor_local.formats.varint import packed as varint

Encoding: TypeAlias = Literal["protobuf", "json"]
ENCODINGS: Final[tuple[Encoding, ...]] = ("protobuf", "json")

_PAIR: Final = Schema(PAIR.name, (*PAIR.fields, Field(4, "seqid", "uint64")))
_PAGE: Final = Schema("vac.remotelog.RemoteLog", (Field(1, "pair", _PAIR, repeated=True), Field(2, "tail", "bytes")))


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `cid` None: scrubbed, or (in the page of another program) only embedded. `unknown`: fields of a later version."""

    seq: int
    local_hash: bytes
    cid: Cid | None
    data: bytes = b""  # embedded content; empty content is never embedded
    unknown: bytes = b""

    @property
    def scrubbed(self) -> bool:
        return self.cid is None and not self.data

    def pair(self) -> bytes:
        """The entry as a page in protobuf has it, with its tag."""
        remote = b"" if self.cid is None else self.cid.binary
        seq = b"\x20" + varint(self.seq) if self.seq else b""
        # By hand, for a page is written with each append: a third of the time that `Message.encode` takes.
        body = _blob(b"\x0a", remote) + _blob(b"\x12", self.local_hash) + _blob(b"\x1a", self.data) + seq + self.unknown
        return b"\x0a" + varint(len(body)) + body


def entries(first: int, last: int) -> str:
    """What people call these: entry 3, entries 3 to 5."""
    return f"entry {first}" if first == last else f"entries {first} to {last}"


@dataclass(frozen=True, slots=True)
class Page:
    """Entries, newest first, and the page before (None: there is none)."""

    entries: tuple[Entry, ...] = ()
    tail: Cid | None = None
    unknown: bytes = b""

    @property
    def last(self) -> int:
        """The number of its newest entry; 0 if it is empty."""
        return self.entries[0].seq if self.entries else 0

    @property
    def first(self) -> int:
        return self.entries[-1].seq if self.entries else 0

    def encode(self, encoding: Encoding) -> bytes:
        """Its bytes. As JSON it must be as the rules say (`check`), for numbers are not written there."""
        if encoding == "json":
            return json.dumps(self._json(), separators=(",", ":")).encode()
        tail = b"" if self.tail is None else _blob(b"\x12", self.tail.binary)
        return b"".join([*(entry.pair() for entry in self.entries), tail, self.unknown])

    def view(self) -> list[object]:
        """The specification's view: `[[h1, h2], …]` and the next page."""
        pairs = [[entry.local_hash.hex(), None if entry.cid is None else str(entry.cid)] for entry in self.entries]
        return [pairs, None if self.tail is None else str(self.tail)]

    def check(self) -> None:
        """Malformed unless the numbers fall by one from entry to entry and the page before is there where the first entry is not."""
        for newer, older in zip(self.entries, self.entries[1:], strict=False):
            if newer.seq != older.seq + 1:
                raise Malformed(f"entry {older.seq} follows entry {newer.seq}")
        if self.entries and self.first < 1:
            raise Malformed("numbers begin with 1")
        if (self.first > 1) != (self.tail is not None):
            raise Malformed("the page before is missing" if self.tail is None else "a page comes before the first entry")
        if any(not entry.local_hash for entry in self.entries):
            raise Malformed("an entry has no local hash")

    def _json(self) -> list[object]:
        pairs = []
        for entry in self.entries:
            pair: list[object] = [entry.local_hash.hex(), None if entry.cid is None else str(entry.cid)]
            if entry.data:
                pair.append(base64.b64encode(entry.data).decode())
            pairs.append(pair)
        return [pairs, None if self.tail is None else str(self.tail), {"last": self.last}]


def _blob(tag: bytes, value: bytes) -> bytes:
    return tag + varint(len(value)) + value if value else b""


def parse_page(data: bytes) -> Page:
    """The page in these bytes, in either form; Malformed. What its numbers mean is for `Page.check`."""
    if data[:1] == b"[":
        return _from_json(data)
    message = _PAGE.parse(data)
    return Page(tuple(_entry(pair) for pair in message.messages("pair")), _cid(message.blob("tail")), message.unknown)


def _entry(pair: Message) -> Entry:
    local_hash, data, seq = pair.blob("localHash"), pair.blob("data"), pair.number("seqid")
    return Entry(seq, local_hash, _cid(pair.blob("remoteHash")), data, pair.unknown)


def _cid(binary: bytes) -> Cid | None:
    try:
        return from_binary(binary) if binary else None
    except BadCid as error:
        raise Malformed(f"an address in a page is no binary CID: {error}") from None


def _from_json(data: bytes) -> Page:
    try:
        plain = json.loads(data)
        pairs, tail, header = plain
        last = _member(header, "last")
        entries = tuple(_json_entry(pair, last - index) for index, pair in enumerate(pairs))
        return Page(entries, None if tail is None else parse(tail))
    except BadCid as error:
        raise Malformed(f"an address in a page is no CID: {error}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed("that is not a page in JSON") from error


def _json_entry(pair: Sequence[str | None], seq: int) -> Entry:
    local_hash, address, *embedded = pair
    if local_hash is None or len(embedded) > 1:
        raise ValueError
    data = base64.b64decode(embedded[0] or "", validate=True) if embedded else b""
    return Entry(seq, binascii.unhexlify(local_hash), None if address is None else parse(address), data)


def _member(header: object, name: str) -> int:
    value = header.get(name) if isinstance(header, Mapping) else None
    if type(value) is not int:
        raise ValueError
    return value
