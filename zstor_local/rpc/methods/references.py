"""`reference.*`: the references of an object, and the objects of a reference."""

from __future__ import annotations

from typing import Annotated, Final, TypedDict

from zstor_local import limits
from zstor_local.errors import Conflict, InvalidParams, NotFound, PermissionDenied, TooLarge
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.attributes import checked_references
from zstor_local.rpc.methods.failures import COMMIT_ERRORS, METASTORE_ERRORS, Failures
from zstor_local.rpc.methods.names import Key, MetadataIn, Namespace, Naming
from zstor_local.rpc.methods.pages import cursor_of, key_of, much_changed, page_of
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.schema import Length, Range
from zstor_local.rpc.strict_json import Json  # noqa: F401 (the annotations below name it)
from zstor_local.store.references import References
from zstor_local.store.store import Store

Given = Annotated[list[Annotated[str, Length(1, limits.REFERENCE_BYTES)]], "1 to 255 bytes of UTF-8 each"]

CHANGE_ERRORS: Final[Failures] = [NotFound, Conflict, PermissionDenied, TooLarge, *COMMIT_ERRORS]


class Appended(TypedDict):
    """All references of the object, in their order."""

    references: list[str]


class Removed(TypedDict):
    """The references that are left, and how many these are."""

    references: list[str]
    remaining: int


class Referring(TypedDict):
    """A part of the keys; `cursor` continues it, null at its end."""

    keys: list[str]
    cursor: str | None


def register(registry: Registry, store: Store) -> None:
    """Add the methods."""
    names = Naming(store)
    use = References(store.core, store.namespaces)

    @registry.method("reference.append", errors=CHANGE_ERRORS)
    async def append(
        call: Call,
        /,
        key: Key | None = None,
        references: Given | None = None,
        namespace: Namespace | None = None,
        metadata: MetadataIn | None = None,
    ) -> Appended:
        """Add references to an object, behind those it has; one that is there already stays where it is.

        They are kept until an overwrite that does not say keep_references. With metadata, `conflict` if the key has moved on.
        """
        name, version = names.target(key, namespace, metadata)
        given = _given(references)
        await call.reply_room(much_changed(store, name, given, kept=True))
        return {"references": [*await use.append(name, given, version, call)]}

    @registry.method("reference.remove", errors=CHANGE_ERRORS)
    async def remove(
        call: Call,
        /,
        key: Key | None = None,
        references: Given | None = None,
        namespace: Namespace | None = None,
        metadata: MetadataIn | None = None,
    ) -> Removed:
        """Take references away from an object; one that is not there is fine."""
        name, version = names.target(key, namespace, metadata)
        await call.reply_room(much_changed(store, name, kept=True))
        left = await use.remove(name, _given(references), version, call)
        return {"references": [*left], "remaining": len(left)}

    @registry.method("reference.find", errors=[NotFound, *METASTORE_ERRORS])
    async def find(
        call: Call,
        /,
        reference: Annotated[str, "the reference, whole", Length(1, limits.REFERENCE_BYTES)],
        limit: Annotated[int, "keys in a page at most", Range(1, limits.LIST_ITEMS)] = limits.LIST_ITEMS,
        cursor: Annotated[str | None, "where the page before ended"] = None,
        namespace: Namespace | None = None,
    ) -> Referring:
        """List the keys of the objects that have a reference, in the order of their bytes."""
        after = None if cursor is None else key_of(cursor)
        keys, more = await page_of(
            call, use.find(names.listed(namespace), reference, after, limit + 1), limit, lambda key: 6 * len(key) + 4
        )
        return {"keys": keys, "cursor": cursor_of(keys[-1]) if more else None}


def _given(references: list[str] | None) -> tuple[str, ...]:
    if references is None:
        raise InvalidParams("references are missing", parameter="references")
    return checked_references(references)
