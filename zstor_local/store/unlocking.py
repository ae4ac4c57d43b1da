"""The keys of a store that is opened: the key file's, and those before it, which the store keeps sealed under it.

A rotation that was broken off left a second key file. If the record of the older keys opens with that one, the rotation was committed
and the file takes its place; if not, it never happened. Before that is decided nothing but this record was sealed with the next key.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from zstor_local.coding.keys import KeyRing
from zstor_local.errors import CorruptRecord
from zstor_local.model.masterkey import NEXT, MasterKey
from zstor_local.model.record import Envelope
from zstor_local.model.storewide import KeysRecord
from zstor_local.runtime import Files, Runtime
from zstor_local.store.faults import StoreFault
from zstor_local.store.keyfile import drop_next_key, finish_key, read_key, unfinished_key
from zstor_local.store.sealing import RecordSealer

KEYS_ROW: Final = "keys"


def settled_ring(runtime: Runtime, path: str, envelope: Envelope | None) -> KeyRing:
    """All keys, by the key file at the path and the metastore's record of the older ones. What a crash left is settled.

    StoreFault if there is no key file, or one from the other side of a rotation. Call it under the store's lock.
    """
    files = runtime.files
    masters = key_files(files, path)
    if envelope is None:
        drop_next_key(files, path)
        return KeyRing(masters[-1].key, masters[-1].store_id)
    found = older_keys(runtime, masters, [envelope])
    if found is None:
        raise StoreFault(
            f"the store has had another master key since {path} was written",
            "restore the newer one with `zstor key restore` from the words that `zstor key rotate` printed; "
            "if the key is the newest, the metastore is an older copy: `zstor rebuild` makes a new one",
        )
    master, record = found
    if master is not masters[-1]:
        finish_key(files, path, NEXT)
    drop_next_key(files, path)
    return KeyRing(master.key, master.store_id, record.older)


def ring_beside(runtime: Runtime, path: str, envelope: Envelope | None) -> KeyRing:
    """The same beside whoever may have the store: nothing is settled, and a key that does not open the record stands alone."""
    masters = key_files(runtime.files, path)
    found = None if envelope is None else older_keys(runtime, masters, [envelope])
    master, older = (masters[-1], ()) if found is None else (found[0], found[1].older)
    return KeyRing(master.key, master.store_id, older)


def key_files(files: Files, path: str) -> list[MasterKey]:
    """The key of a rotation that was broken off, if there is one, then the key file's. StoreFault without a key file."""
    present = read_key(files, path)
    coming = unfinished_key(files, path, NEXT)
    return [coming, present] if coming is not None and coming.store_id == present.store_id else [present]


def older_keys(runtime: Runtime, masters: Iterable[MasterKey], envelopes: Iterable[Envelope]) -> tuple[MasterKey, KeysRecord] | None:
    """The first of these keys that opens one of these records of older keys, with the newest that it opens; None if none does."""
    candidates = sorted(envelopes, key=lambda envelope: envelope.sequence, reverse=True)
    for master in masters:
        sealer = RecordSealer(KeyRing(master.key, master.store_id), master.store_id, runtime.randomness)
        for envelope in candidates:
            try:
                return master, KeysRecord.decode(sealer.open(envelope))
            except CorruptRecord:
                continue
    return None
