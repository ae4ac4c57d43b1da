"""References: an ordered set of texts kept with an object, and the way back from a text to the objects that have it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace

import trio

from zstor_local import limits
from zstor_local.errors import TooLarge
from zstor_local.model.ids import ObjectName, Version
from zstor_local.model.record import Envelope
from zstor_local.store.caller import Caller
from zstor_local.store.change import Decision
from zstor_local.store.core import Core
from zstor_local.store.edits import Edits
from zstor_local.store.namespaces import Namespace, Namespaces
from zstor_local.store.pace import RECORDS_A_TURN
from zstor_local.store.stored import Stored, no_key, stored_at
from zstor_local.store.writes import check_version


class References:
    """The use cases. A change keeps version, bytes and times of the object; doing it twice is doing it once."""

    def __init__(self, core: Core, namespaces: Namespaces) -> None:
        self._core = core
        self._runtime = core.runtime
        self._committer = core.committer
        self._namespaces = namespaces

    async def append(self, name: ObjectName, references: Sequence[str], if_version: Version | None, caller: Caller) -> tuple[str, ...]:
        """Add those that are not there yet, at the end, in their order. Returns all; TooLarge if they are too many then."""

        def added(old: tuple[str, ...]) -> Iterable[str]:
            return dict.fromkeys((*old, *references))

        return await self._change(name, added, if_version, caller)

    async def remove(self, name: ObjectName, references: Sequence[str], if_version: Version | None, caller: Caller) -> tuple[str, ...]:
        """Take these out, as far as they are there. Returns the others."""
        unwanted = set(references)
        return await self._change(name, lambda old: (each for each in old if each not in unwanted), if_version, caller)

    async def _change(
        self, name: ObjectName, change: Callable[[tuple[str, ...]], Iterable[str]], if_version: Version | None, caller: Caller
    ) -> tuple[str, ...]:
        namespace = self._namespaces.find_to_change(name.namespace)
        if namespace is None:
            raise no_key(name)
        changed: tuple[str, ...] = ()

        def decide(current: Envelope | None) -> Decision:
            nonlocal changed
            edits = Edits(self._core, namespace)
            found = edits.find(name.key)
            if found is None:
                raise no_key(name)
            check_version(current, if_version)
            changed = check_count(tuple(change(found.record.references)))
            edits.put(name.key, found.version, replace(found.record, references=changed))
            return edits.decision(self._runtime.clock.now())

        caller.begin_commit()
        await self._committer.commit(namespace.id, name.key, decide)
        return changed

    async def find(self, namespace_name: str, reference: str, after: str | None, limit: int) -> AsyncGenerator[str, None]:
        """Keys behind `after` of objects that have the reference, in the order of their bytes, at most `limit`."""
        namespace = self._namespaces.find(namespace_name)
        if namespace is None:
            return
        async with aclosing(referring(self._core, namespace, reference, after, limit)) as found:
            async for stored in found:
                yield stored.record.key


async def referring(core: Core, namespace: Namespace, reference: str, after: str | None, limit: int) -> AsyncGenerator[Stored, None]:
    """Objects behind the key `after` that have the reference, in the order of their keys' bytes, at most `limit`."""
    found = looked = 0
    while keys := core.reading.referring(namespace.id, namespace.reference_hash(reference), after, limit):
        for key in keys:
            if looked >= RECORDS_A_TURN:
                await trio.lowlevel.checkpoint()
                looked = 0
            stored = stored_at(core, namespace, key)
            looked += 1 if stored is None else 1 + len(stored.envelope.sealed) // limits.KIB
            if stored is not None and reference in stored.record.references:  # else it was changed meanwhile, or the row is damaged
                yield stored
                found += 1
                if found == limit:
                    return
        after = keys[-1]


def check_count(references: tuple[str, ...]) -> tuple[str, ...]:
    """The references themselves, or TooLarge."""
    if len(references) > limits.REFERENCES:
        raise TooLarge(f"{len(references)} references", limit=limits.REFERENCES, hint="keep the list in an object of its own")
    return references
