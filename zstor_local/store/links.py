"""Linked objects: each may follow one other of its namespace and be followed by one.

What holds of every list: both ends of a link name each other, and `created` grows along it. So no list is a ring, which needs no walk
to see: whoever follows was created later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from zstor_local.errors import Conflict, InvalidParams, NotFound
from zstor_local.model.ids import Version
from zstor_local.model.record import ObjectRecord
from zstor_local.store.edits import Edits


@dataclass(frozen=True, slots=True)
class Previous:
    """The key to follow, and its version if it was named by its metadata."""

    key: str
    version: Version | None = None


def follow(edits: Edits, key: str, previous: Previous) -> int:
    """Link the predecessor to `key`; returns the lowest `created` that the follower may have. It is refused as a whole where the
    predecessor is not there (NotFound), has another successor, or where `key` is in a list already (Conflict).
    """
    if previous.key == key:
        raise InvalidParams("an object cannot follow itself", parameter="previous_key")
    before = edits.find(previous.key)
    if before is None:
        raise NotFound(f"there is no key {previous.key!r} to follow", hint="write it first, or leave previous_key out")
    if previous.version is not None and previous.version != before.version:
        raise Conflict(
            f"the previous key {previous.key!r} has left that version behind",
            hint="read it again and decide anew",
            current=before.version.hex(),
        )
    if before.record.next_key not in (None, key):
        raise Conflict(
            f"{previous.key!r} is followed by {before.record.next_key!r} already",
            hint="follow the last object of the list",
            current=before.record.next_key,
        )
    old = edits.find(key)
    if old is not None:
        _may_follow(old.record, previous.key, before.record.created)
    edits.put(previous.key, before.version, replace(before.record, next_key=key))
    return before.record.created + 1


def _may_follow(record: ObjectRecord, previous: str, created: int) -> None:
    if record.previous_key == previous:
        return
    if record.previous_key is not None:
        raise Conflict(
            f"{record.key!r} follows {record.previous_key!r} already", hint="delete it first to move it", current=record.previous_key
        )
    if record.next_key is not None and record.created <= created:
        raise Conflict(
            f"{record.key!r} begins a list that is not younger than {previous!r}",
            hint="follow the last object of a list with one that no other follows",
            current=record.next_key,
        )


def unlink(edits: Edits, key: str) -> None:
    """Take an object out of its list: its neighbours become each other's."""
    found = edits.find(key)
    if found is None:
        return
    previous, following = found.record.previous_key, found.record.next_key
    edits.put(key, found.version, replace(found.record, previous_key=None, next_key=None))
    _relink(edits, key, previous, following, next_key=following, previous_key=previous)


def rename_links(edits: Edits, key: str, new_key: str) -> None:
    """The neighbours of `key` take `new_key` for it."""
    found = edits.find(key)
    if found is not None:
        _relink(edits, key, found.record.previous_key, found.record.next_key, next_key=new_key, previous_key=new_key)


def _relink(
    edits: Edits, key: str, previous: str | None, following: str | None, *, next_key: str | None, previous_key: str | None
) -> None:
    """Give the neighbours of `key` another one, as far as they name it: a link that is broken already stays as it is."""
    before = None if previous is None else edits.find(previous)
    if previous is not None and before is not None and before.record.next_key == key:
        edits.put(previous, before.version, replace(before.record, next_key=next_key))
    after = None if following is None else edits.find(following)
    if following is not None and after is not None and after.record.previous_key == key:
        edits.put(following, after.version, replace(after.record, previous_key=previous_key))
