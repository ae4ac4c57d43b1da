"""`object.list`: the objects of a namespace, page by page."""

from __future__ import annotations

from typing import Annotated, TypedDict

from zstor_local import limits
from zstor_local.errors import NotFound
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.failures import METASTORE_ERRORS
from zstor_local.rpc.methods.names import Namespace, Naming
from zstor_local.rpc.methods.pages import cursor_of, key_of, page_of, reply_bytes
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.schema import Range
from zstor_local.store.metadata import Metadata, describe
from zstor_local.store.store import Store


class Item(TypedDict):
    """One object of a list."""

    key: str
    metadata: Metadata


class Page(TypedDict):
    """A part of a list; `cursor` continues it, null at its end."""

    items: list[Item]
    cursor: str | None


def register(registry: Registry, store: Store) -> None:
    """Add the method."""
    names = Naming(store)

    @registry.method("object.list", errors=[NotFound, *METASTORE_ERRORS])
    async def list_(
        call: Call,
        /,
        prefix: Annotated[str, "only keys that begin so"] = "",
        limit: Annotated[int, "items in a page at most", Range(1, limits.LIST_ITEMS)] = limits.LIST_ITEMS,
        cursor: Annotated[str | None, "where the page before ended"] = None,
        namespace: Namespace | None = None,
    ) -> Page:
        """List objects in the order of their keys' bytes."""
        after = None if cursor is None else key_of(cursor)
        found = store.objects.list(names.listed(namespace), prefix, after, limit + 1)
        page, more = await page_of(call, found, limit, reply_bytes)
        items: list[Item] = [{"key": stored.record.key, "metadata": describe(stored, store.pool)} for stored in page]
        return {"items": items, "cursor": cursor_of(items[-1]["key"]) if more else None}
