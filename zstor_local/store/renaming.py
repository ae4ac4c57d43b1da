"""Other keys for objects: rename and copy change records only, no byte of a share moves.

A copy is a second record of the same version. So two keys may name one version: its shares are freed when the last of them leaves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from zstor_local.errors import AlreadyExists
from zstor_local.model.ids import ObjectName, Version
from zstor_local.model.record import Envelope
from zstor_local.store.caller import Caller
from zstor_local.store.change import Decision
from zstor_local.store.core import Core
from zstor_local.store.edits import Edits, Object
from zstor_local.store.freeing import Freeing
from zstor_local.store.links import rename_links, unlink
from zstor_local.store.namespaces import Namespaces
from zstor_local.store.rewriterow import moved
from zstor_local.store.stored import Stored, no_key, open_object, with_debts
from zstor_local.store.storewide import StoreWide
from zstor_local.store.writes import check_version

Change = Callable[[Edits, Object], None]


class Renaming:
    """The use cases. Both replace what has the new key, unless it is `exclusive`; to the key that it has already nothing happens."""

    def __init__(self, core: Core, namespaces: Namespaces, freeing: Freeing) -> None:
        self._core = core
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._committer = core.committer
        self._namespaces = namespaces
        self._freeing = freeing
        self._rows = StoreWide(core)

    async def rename(self, name: ObjectName, new_key: str, if_version: Version | None, caller: Caller, *, exclusive: bool) -> Stored:
        """The object has another key from now on; its version, times, references and place in its list stay."""

        def change(edits: Edits, source: Object) -> None:
            if edits.find(new_key) is not None:
                unlink(edits, new_key)
                edits.remove(new_key)
            rename_links(edits, name.key, new_key)
            found = edits.find(name.key) or source  # its links may have been to the one that it replaces
            edits.remove(name.key)
            edits.put(new_key, found.version, replace(found.record, key=new_key))

        return await self._change(name, new_key, change, if_version, caller, exclusive=exclusive)

    async def copy(self, name: ObjectName, new_key: str, if_version: Version | None, caller: Caller, *, exclusive: bool) -> Stored:
        """Another key has the same version too, with its references and user members. Like an overwrite it keeps links and creation
        of what had the key.
        """
        now = self._runtime.clock.now()

        def change(edits: Edits, source: Object) -> None:
            old = edits.find(new_key)
            record = replace(
                source.record,
                key=new_key,
                created=now if old is None else old.record.created,
                modified=now,
                previous_key=None if old is None else old.record.previous_key,
                next_key=None if old is None else old.record.next_key,
            )
            edits.put(new_key, source.version, record)

        return await self._change(name, new_key, change, if_version, caller, exclusive=exclusive)

    async def _change(
        self, name: ObjectName, new_key: str, change: Change, if_version: Version | None, caller: Caller, *, exclusive: bool
    ) -> Stored:
        namespace = self._namespaces.find_to_change(name.namespace)
        if namespace is None:
            raise no_key(name)

        def decide(target: Envelope | None) -> Decision:
            edits = Edits(self._core, namespace)
            source = edits.find(name.key)
            if source is None:
                raise no_key(name)
            check_version(self._committer.view.look(namespace.id, name.key), if_version)
            if exclusive and target is not None:
                raise AlreadyExists(
                    f"the key {new_key!r} exists already", hint="leave `exclusive` out to replace it", current=target.version.hex()
                )
            if new_key == name.key:
                return edits.decision(self._runtime.clock.now())
            change(edits, source)
            decision = edits.decision(self._runtime.clock.now())
            return replace(decision, records={**decision.records, **moved(self._rows, namespace.id, name.key, new_key)})

        caller.begin_commit()
        committed = await self._committer.commit(namespace.id, new_key, decide)
        self._freeing.wake()
        envelope = committed.envelope or self._metastore.get(namespace.id, new_key)
        if envelope is None:
            raise no_key(ObjectName(name.namespace, new_key))
        return with_debts(self._metastore, Stored(name.namespace, open_object(self._core.sealer, envelope), envelope))
