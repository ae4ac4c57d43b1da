"""What every use case of an open store stands on."""

from __future__ import annotations

from dataclasses import dataclass

from zstor_local.coding.keys import KeyHasher
from zstor_local.metastore.base import Metastore
from zstor_local.metastore.routed import RoutedMetastore
from zstor_local.runtime import Runtime
from zstor_local.shards.pool import ShardPool
from zstor_local.store.committer import Committer
from zstor_local.store.sealing import RecordSealer
from zstor_local.store.suspects import Suspects


@dataclass(frozen=True, slots=True)
class Core:
    """The world outside, the truth, the shards, the one who changes them, the keys, and what was found not to open. `reading` is the
    metastore with other users' namespaces beside our own.
    """

    runtime: Runtime
    metastore: Metastore
    reading: RoutedMetastore
    pool: ShardPool
    committer: Committer
    sealer: RecordSealer
    hasher: KeyHasher
    suspects: Suspects
