"""Which object a call means: by key and namespace, or by metadata as a write returned it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from zstor_local.errors import CorruptRecord, InvalidParams, NotFound, Unreadable
from zstor_local.model.ids import ObjectName, Version, check_key, check_namespace
from zstor_local.rpc.strict_json import Json
from zstor_local.store.links import Previous
from zstor_local.store.metadata import check_metadata, describe, seal_of
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored

Key = Annotated[str, "the object's key, 1 to 1,024 bytes of UTF-8"]
Namespace = Annotated[str, "the namespace; left out, the configured default"]
MetadataIn = Annotated[dict[str, Json], "instead of `key`: metadata as a write returned it; names that version"]


class Naming:
    """Which object a call means."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def namespace(self, name: str | None) -> str:
        return check_namespace(name) if name is not None else self._store.config.default_namespace

    def listed(self, name: str | None) -> str:
        """The namespace to look through, NotFound if there is none; the default one comes with its first write and is empty before."""
        wanted = self.namespace(name)
        if wanted != self._store.config.default_namespace:
            self._store.namespaces.get(wanted)
        return wanted

    def target(self, key: str | None, namespace: str | None, metadata: dict[str, Json] | None) -> tuple[ObjectName, Version | None]:
        """The key to change; with metadata also the version that must be its newest."""
        if metadata is None:
            return self.name(key, namespace), None
        stored = self._sealed(key, namespace, metadata)
        return ObjectName(stored.namespace, stored.record.key), stored.version

    def previous(self, name: ObjectName, key: str | None, metadata: dict[str, Json] | None) -> Previous | None:
        """What `name` is to follow, in the same namespace."""
        if key is not None and metadata is not None:
            raise InvalidParams("previous_key and previous_metadata stand for each other", parameter="previous_metadata")
        if metadata is not None:
            stored = self._sealed(None, name.namespace, metadata)
            return Previous(stored.record.key, stored.version)
        return None if key is None else Previous(check_key(key))

    def find(self, key: str | None, namespace: str | None, metadata: dict[str, Json] | None) -> Stored:
        """The version to read. While it is its key's newest, what is known of it is of now and not of when it was sealed."""
        if metadata is None:
            return self._store.objects.find(self.name(key, namespace))
        sealed = self._sealed(key, namespace, metadata)
        try:
            newest = self._store.objects.find(ObjectName(sealed.namespace, sealed.record.key))
        except (NotFound, CorruptRecord):
            return sealed
        return newest if newest.version == sealed.version else sealed

    @contextmanager
    def still_there(self, stored: Stored, *, by_metadata: bool) -> Iterator[None]:
        """A version read by its metadata, which the key has left behind and whose shares are gone, is not found."""
        try:
            yield
        except Unreadable:
            if not by_metadata:
                raise
            name = ObjectName(stored.namespace, stored.record.key)
            try:
                newest: Version | None = self._store.objects.find(name).version
            except NotFound:
                newest = None
            if newest == stored.version:
                raise
            raise NotFound("that version is gone: the key was written again or deleted", hint="read it by its key") from None

    def name(self, key: str | None, namespace: str | None) -> ObjectName:
        """The key that is meant; InvalidParams if none is given."""
        if key is None:
            raise InvalidParams("key is missing", hint="give key, or metadata as a write returned it", parameter="key")
        return ObjectName(self.namespace(namespace), check_key(key))

    def _sealed(self, key: str | None, namespace: str | None, metadata: dict[str, Json]) -> Stored:
        if key is not None:
            raise InvalidParams("key and metadata stand for each other", hint="give one of them", parameter="metadata")
        members: dict[str, object] = {**metadata}
        stored = self._store.objects.from_seal(seal_of(members))
        check_metadata(members, describe(stored, self._store.pool))
        if namespace is not None and namespace != stored.namespace:
            raise InvalidParams(f"the metadata is of namespace {stored.namespace}", parameter="namespace")
        return stored
