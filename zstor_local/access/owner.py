"""The owner of shards, of an open store: which of its keys servers have to know, and which of them no more."""

from __future__ import annotations

from collections.abc import Sequence

from zstor_local.access.ownership import OwnerKeys, owner_document
from zstor_local.access.signing import SigningKey, sign_trust
from zstor_local.access.trust import TrustDocument
from zstor_local.model.record import STORE_WIDE
from zstor_local.store.store import Store


class Owner:
    """Its keys are others after a rotation of the master key, so they are asked for each time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys = OwnerKeys(store.sealer.keys(STORE_WIDE))

    def known(self) -> tuple[Sequence[SigningKey], int]:
        """The keys that servers are to let in, and the sequence of the last change of that; 0 if there was none."""
        record, changed = self._store.rotation.dated()
        keys = self._keys.now()
        return keys[: len(keys) - (0 if record is None else record.retired)], changed

    def retired(self) -> int:
        """How many of the older keys are for servers no more."""
        record = self._store.rotation.record()
        return 0 if record is None else record.retired

    def sign(self, document: TrustDocument) -> Sequence[str]:
        """The document for servers, once by each key, the newest first: one that was away may know none but an older one."""
        return [sign_trust(key, document) for key in self._keys.now()]

    def trust(self) -> TrustDocument | None:
        """A document of the owner's keys alone, for servers; None while they are those that servers know from the start."""
        keys, updated = self.known()
        store = self._store
        return owner_document(keys, store.sealer.store_id, store.config.authority.organization, updated) if updated else None
