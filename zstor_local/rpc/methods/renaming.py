"""`object.rename` and `object.copy`: records only, no bytes moved."""

from __future__ import annotations

from typing import Annotated, Final

from zstor_local.errors import AlreadyExists, Conflict, InvalidParams, NotFound, PermissionDenied
from zstor_local.model.ids import check_key
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.failures import COMMIT_ERRORS, Failures
from zstor_local.rpc.methods.names import Key, MetadataIn, Namespace, Naming
from zstor_local.rpc.methods.objects import Written
from zstor_local.rpc.methods.pages import much_changed
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.strict_json import Json  # noqa: F401 (the annotations below name it)
from zstor_local.store.metadata import describe
from zstor_local.store.renaming import Renaming
from zstor_local.store.store import Store

NewKey = Annotated[str, "the other key, in the same namespace"]
Exclusive = Annotated[bool, "refuse to replace an object"]

ERRORS: Final[Failures] = [NotFound, AlreadyExists, Conflict, PermissionDenied, *COMMIT_ERRORS]


def register(registry: Registry, store: Store) -> None:
    """Add the methods."""
    names = Naming(store)
    use = Renaming(store.core, store.namespaces, store.freeing)

    @registry.method("object.rename", errors=ERRORS)
    async def rename(
        call: Call,
        /,
        key: Key | None = None,
        new_key: NewKey | None = None,
        exclusive: Exclusive = False,
        namespace: Namespace | None = None,
        metadata: MetadataIn | None = None,
    ) -> Written:
        """Give an object another key; an object that has it is replaced.

        Version, times, references and place in a linked list stay. With metadata, `conflict` if the key has moved on.
        """
        name, version = names.target(key, namespace, metadata)
        await call.reply_room(much_changed(store, name, kept=True))
        return {"metadata": describe(await use.rename(name, _given(new_key), version, call, exclusive=exclusive), store.pool)}

    @registry.method("object.copy", errors=ERRORS)
    async def copy(
        call: Call,
        /,
        key: Key | None = None,
        new_key: NewKey | None = None,
        exclusive: Exclusive = False,
        namespace: Namespace | None = None,
        metadata: MetadataIn | None = None,
    ) -> Written:
        """Give an object a second key, at once and whatever its size; an object that has it is replaced.

        Both are the same version until one is written again; references and user members are copied, links are not.
        """
        name, version = names.target(key, namespace, metadata)
        await call.reply_room(much_changed(store, name, kept=True))
        return {"metadata": describe(await use.copy(name, _given(new_key), version, call, exclusive=exclusive), store.pool)}


def _given(new_key: str | None) -> str:
    if new_key is None:
        raise InvalidParams("new_key is missing", parameter="new_key")
    return check_key(new_key)
