"""Contents as objects: the namespace they live in, and how one is found by its id."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

from zstor_local.content import pins
from zstor_local.content.pins import Pin
from zstor_local.errors import CorruptRecord, InvalidParams, NotFound
from zstor_local.formats import cid as cids
from zstor_local.formats.cid import BadCid, Cid
from zstor_local.formats.unixfs import LEAF_BYTES, PROFILE
from zstor_local.model.ids import ObjectName
from zstor_local.store.edits import Edits
from zstor_local.store.namespaces import Namespace
from zstor_local.store.references import referring
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored

NAMESPACE: Final = "_cas"  # no user can name it: names begin with a letter or digit


@dataclass(frozen=True, slots=True)
class Content:
    """A stored content. `kept_until` counts only while nobody pins it; epochs in microseconds since 1970 UTC."""

    id: Cid
    stored: Stored

    @property
    def size(self) -> int:
        return self.stored.record.size

    @property
    def created(self) -> int:
        return self.stored.record.created

    @property
    def pins(self) -> tuple[Pin, ...]:
        return pins.pins(self.stored.record)

    @property
    def kept_until(self) -> int:
        return pins.kept_until(self.stored.record)


class Contents:
    """Where all contents of a store lie."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def namespace(self) -> Namespace:
        """Their namespace, made with the store's policy if it is not there; its chunks are leaves, or several of them."""
        policy = self.store.config.policy
        return await self.store.namespaces.find_or_create(NAMESPACE, replace(policy, chunk_size=max(LEAF_BYTES, policy.chunk_size)))

    def known_namespace(self) -> Namespace | None:
        """The same; None if nothing was ever uploaded."""
        return self.store.namespaces.find(NAMESPACE)

    def edits(self, namespace: Namespace) -> Edits:
        """A change of contents, for the committer's thread."""
        return Edits(self.store.core, namespace)

    def find(self, cid: Cid) -> Content:
        """The content with this id, or NotFound."""
        found = self.look(cid)
        if found is None:
            raise no_content(cid)
        return found

    def look(self, cid: Cid) -> Content | None:
        """The same, or None."""
        try:
            return Content(cid, self.store.objects.find(ObjectName(NAMESPACE, str(cid))))
        except NotFound:
            return None

    async def list(self, owner: str | None, after: str | None, limit: int) -> AsyncGenerator[Content, None]:
        """Contents behind the id `after`, of one owner or of all, by the text of their ids."""
        namespace = self.known_namespace()
        if namespace is None:
            return
        if owner is None:
            stored_ones = self.store.objects.list(NAMESPACE, "", after, limit)
        else:
            stored_ones = referring(self.store.core, namespace, owner, after, limit)
        async with aclosing(stored_ones) as found:
            async for stored in found:
                yield Content(_cid_of(stored), stored)


def content_id(text: str) -> Cid:
    """The id that a caller gave as text; InvalidParams."""
    try:
        return cids.parse(text)
    except BadCid as error:
        raise InvalidParams(
            f"{error}", hint="give the id as `zstor cas put` printed it: bafkrei… or bafybei…", parameter="id"
        ) from None


def no_content(cid: Cid) -> NotFound:
    return NotFound(f"there is no content {cid}", hint=f"`zstor cas ls` lists them; ids are those of the profile {PROFILE}")


def _cid_of(stored: Stored) -> Cid:
    try:
        return cids.parse(stored.record.key)
    except BadCid:
        raise CorruptRecord("a record among the contents has no content id", hint="run `zstor rebuild`") from None
