"""The owner of shards, of an open store: which of its keys servers have to know."""

from __future__ import annotations

from zstor_local.access.ownership import owner_document, owner_keys
from zstor_local.access.signing import SigningKey, sign_trust
from zstor_local.model.record import STORE_WIDE
from zstor_local.store.store import Store


class Owner:
    """Its keys are others after a rotation of the master key, so they are asked for each time."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def keys(self) -> tuple[SigningKey, ...]:
        """The first signs: servers know it from the start."""
        return owner_keys(self._store.sealer.keys(STORE_WIDE))

    def updated(self) -> int:
        """The sequence of the last change of the keys; 0 if there was none."""
        return self._store.rotation.changed

    def signed_trust(self) -> str | None:
        """A document of the owner's keys alone, for servers; None while they are those that servers know from the start."""
        store, updated = self._store, self.updated()
        if not updated:
            return None
        keys = self.keys()
        return sign_trust(keys[0], owner_document(keys, store.sealer.store_id, store.config.authority.organization, updated))
