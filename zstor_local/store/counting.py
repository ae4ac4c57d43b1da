"""Counting anew what namespaces hold, where the counts do not agree: in stores of before 0.2, which had one count for all."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from zstor_local.errors import CorruptRecord
from zstor_local.limits import LIST_ITEMS
from zstor_local.metastore.base import Metastore, Transaction, Usage
from zstor_local.model.ids import NamespaceId
from zstor_local.model.record import Kind
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.stored import open_object


def recount(metastore: Metastore, sealer: RecordSealer, spaces: list[NamespaceId]) -> None:
    """Make every count right; `spaces` are all namespaces there are. Cheap where they agree. CommitRefused or CommitUnknown if that
    cannot be committed. For the committer's thread, before it commits anything else.
    """
    state = metastore.state()
    counted = metastore.usages()
    if sum(each.objects for each in counted.values()) == state.objects and sum(each.bytes for each in counted.values()) == state.bytes:
        return
    found: dict[NamespaceId, Usage] = defaultdict(Usage)
    for space in spaces:
        found[space] = _count(metastore, sealer, space)
    total = sum(found.values(), Usage())
    changes = {
        space: Usage(found[space].objects - before.objects, found[space].bytes - before.bytes)
        for space in {*spaces, *counted}
        for before in [counted.get(space, Usage())]
    }
    metastore.commit(Transaction(replace(state, objects=total.objects, bytes=total.bytes), usage=changes))


def _count(metastore: Metastore, sealer: RecordSealer, space: NamespaceId) -> Usage:
    objects = size = 0
    after: str | None = None
    while rows := metastore.scan(space, "", after, LIST_ITEMS):
        after = rows[-1].name
        for row in rows:
            if row.envelope.kind is Kind.OBJECT:
                objects += 1
                try:
                    size += open_object(sealer, row.envelope).size
                except CorruptRecord:  # of unknown size, and found by whoever reads it
                    continue
    return Usage(objects, size)
