"""Keys that the metastore has lost: what can be done for somebody who has kept the metadata of a version.

Lost is a key of which the metastore has neither a record nor a tombstone. Its shares can be read and mended, and it can be deleted: the
tombstone that is committed then keeps a rebuild from bringing it back. A record is never made from metadata: a rebuild does that, from
what the shards say together.
"""

from __future__ import annotations

from dataclasses import replace

from zstor_local.errors import Conflict
from zstor_local.metastore.base import Garbage, Metastore
from zstor_local.model.ids import ShareId
from zstor_local.store.change import Decision
from zstor_local.store.committer import Committer
from zstor_local.store.edits import Edits, Look, tombstone
from zstor_local.store.links import unlink
from zstor_local.store.namespaces import Namespace
from zstor_local.store.stored import Stored


def is_lost(stored: Stored, namespace: Namespace, look: Look, metastore: Metastore) -> bool:
    """Whether the metastore has lost the key of a version. Conflict if it has another one, or a tombstone of it, now."""
    key = stored.record.key
    current = look(namespace.id, key)
    if current is not None:
        if current.version != stored.version:
            raise Conflict("the key has left that version behind", hint="use what it has now", current=current.version.hex())
        return False
    if metastore.tombstone(namespace.id, key) is not None:
        raise Conflict("the key was deleted", hint="write it again if it is wanted", current=None)
    return True


def bury(stored: Stored, namespace: Namespace, edits: Edits, committer: Committer, numbers: list[int], now: int) -> Decision:
    """Delete a lost key: a tombstone on all shards, its neighbours joined, its shares to free. In the committer's thread."""
    record, version = stored.record, stored.version
    edits.put(record.key, version, record)
    unlink(edits, record.key)
    edits.remove(record.key)
    change = edits.decision(now, insist=False)
    copies = sorted({*numbers, *record.placement})
    buried = tombstone(namespace, record.key, version, copies, now, k=record.policy.k)
    garbage = list(change.garbage)
    if not committer.view.is_named(namespace.id, version):
        garbage += [Garbage(number, ShareId(version, index), record.small) for index, number in enumerate(record.placement)]
    return replace(change, records={**change.records, (namespace.id, record.key): buried}, garbage=garbage)
