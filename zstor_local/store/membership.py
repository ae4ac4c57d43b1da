"""Which shards the store has: adding, replacing and removing them while it is used.

The list of shards is a record of the store, copied to all of them; committing it is the moment at which a shard counts, or counts no
more. Numbers are never given twice, so that a disk that was replaced or removed is never taken for what came after it.

    add      marker written → the list names it, all store-wide records are owed to it → it is opened for writing
    remove   the list says that it is being drained → its shares are moved, one version after the other → the list is without it
             → its place is retired
    replace  the list names the new shard and drains the old one → as remove
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import replace

import trio

from zstor_local import limits
from zstor_local.errors import AlreadyExists, Conflict, InvalidParams, IoError, NotEnoughShards, Unavailable
from zstor_local.metastore.base import Debt, Owed
from zstor_local.model.ids import ID_BYTES, ShardUid
from zstor_local.model.record import STORE_WIDE
from zstor_local.model.storewide import ShardEntry, ShardsRecord
from zstor_local.shards.base import NoPlace, ShardError
from zstor_local.shards.marker import BadMarker, Marker
from zstor_local.shards.opening import Identified
from zstor_local.store.caller import Follower
from zstor_local.store.change import Decision
from zstor_local.store.core import Core
from zstor_local.store.departures import Departures, Removed
from zstor_local.store.namespaces import Namespaces
from zstor_local.store.places import Places
from zstor_local.store.presence import Presence
from zstor_local.store.shard_list import ShardList

log = logging.getLogger("zstor.store")


class Membership:
    """The use cases; one at a time."""

    def __init__(
        self,
        core: Core,
        places: Places,
        namespaces: Namespaces,
        presence: Presence,
        shards: ShardList,
        departures: Departures,
        *,
        on_change: Callable[[], None],
    ) -> None:
        self._runtime = core.runtime
        self._metastore = core.metastore
        self._pool = core.pool
        self._committer = core.committer
        self._sealer = core.sealer
        self._places = places
        self._namespaces = namespaces
        self._presence = presence
        self._shards = shards
        self._departures = departures
        self._on_change = on_change
        self._turn = trio.Lock()
        self._tried: dict[tuple[str, int], ShardUid] = {}  # places, with the numbers, whose listing failed: logs may have it

    # --- Add ---

    async def add(self, url: str, group: str | None) -> ShardEntry:
        """Take a new, empty place into the store; durable when this returns. A place of a shard that the store has, which is away or
        being drained, is taken back instead: it lies there from now on, and stays.
        """
        url = _checked(url)
        async with self._turn:
            found = await self._look_at(url)
            if found is not None and (known := self._shards.known(found.marker.uid)) is not None:
                return await self._take_back(known, url, group)
            self._check_apart(url)
            return await self._add(url, group)

    async def _add(self, url: str, group: str | None, *, instead_of: ShardEntry | None = None) -> ShardEntry:
        record = self._shards.record
        number = record.next_number
        uid = self._tried.setdefault((url, number), ShardUid(self._runtime.randomness.bytes(ID_BYTES)))
        name = self._free_id(record) if instead_of is None else instead_of.id
        entry = ShardEntry(number, uid, name, url, group or "", added=True)
        marker = Marker(self._sealer.store_id, uid, number, self._runtime.clock.now())
        self._committer.must_take_changes()  # a place whose listing is in doubt keeps the marker that it was listed with
        await self._runtime.threads.run(self._create, url, marker)

        def change(before: ShardsRecord) -> ShardsRecord:
            shards = list(before.shards)
            at = [each for each, shard in enumerate(shards) if instead_of is not None and shard.number == instead_of.number]
            if instead_of is not None and at:
                taken = {shard.id for shard in shards}
                old_id = next(each for n in range(len(shards) + 2) if (each := _replaced(instead_of.id, n)) not in taken)
                old = replace(instead_of, id=old_id, url=self._places.place(instead_of), draining=True, added=True)
                shards[at[0] : at[0] + 1] = [entry, old]
            else:  # a shard more, or in place of one whose drain has come to its end meanwhile
                shards.append(entry)
            return replace(before, shards=tuple(shards), numbers_used=number + 1, home=self._places.home)

        await self._shards.change(change, lambda: Decision(debts=[*self._own_records(number)]))
        self._tried.clear()
        log.debug("added shard %s at %s", entry.id, url)
        await self._presence.look()
        self._on_change()
        return entry

    def _own_records(self, number: int) -> Iterator[Debt]:
        """All records of the store's own, owed to a shard. Their values may be gigabytes together."""
        after: str | None = None
        while rows := self._metastore.scan(STORE_WIDE, "", after, limits.LIST_ITEMS):
            after = rows[-1].name
            yield from (Debt(number, Owed.RECORD, STORE_WIDE, row.name, row.envelope.version) for row in rows)

    def _create(self, url: str, marker: Marker) -> None:
        try:
            self._places.opener.create(url, marker)
        except BadMarker as error:
            raise Conflict(f"{url}: {error}", hint=_where_instead(url)) from None
        except ShardError as error:
            hint = None if _on_a_server(url) else "give an empty directory on a disk that is mounted"
            raise IoError(str(error), hint=hint) from None

    async def _take_back(self, entry: ShardEntry, url: str, group: str | None) -> ShardEntry:
        """A place that bears the marker of a shard that the store has: the shard is there from now on, and is not drained."""
        if self._pool.state(entry.number) == "ok" and url != self._places.place(entry):
            raise AlreadyExists(f"{url} is shard {entry.id}, which is at {self._places.place(entry)}", hint="one of them is a copy")
        if self._pool.state(entry.number) == "ok" and not entry.draining:
            raise AlreadyExists(f"{url} is shard {entry.id} of this store already", hint="`zstor shard ls` lists them")
        await self._departures.stop(entry.number)
        taken = replace(entry, url=url, group=entry.group if group is None else group, added=True, draining=False)

        def change(before: ShardsRecord) -> ShardsRecord:
            if all(shard.number != taken.number for shard in before.shards):
                raise Conflict(f"shard {entry.id} has just been removed", hint="give an empty directory", retryable=False)
            shards = (taken if shard.number == taken.number else shard for shard in before.shards)
            return replace(before, shards=tuple(shards), home=self._places.home)

        await self._shards.change(change)
        await self._departures.stop(entry.number)  # a shard that came back may have had the drain go on meanwhile
        await self._presence.look()
        self._on_change()
        return taken

    async def _look_at(self, url: str) -> Identified | None:
        try:
            return await self._runtime.threads.run(self._places.opener.identify, url)
        except BadMarker as error:
            raise Conflict(f"{url}: {error}", hint=_where_instead(url)) from None
        except NoPlace as error:
            raise _no_place(str(error)) from None
        except ShardError as error:
            raise Unavailable(str(error), hint=_what_to_look_at(url, error)) from None

    def _check_apart(self, url: str) -> None:
        """Conflict for a directory within another shard's: whoever deletes what a removed shard has left would delete it too."""
        for entry in self._shards.record.shards:
            other = self._places.place(entry).removeprefix("file://")
            if url.startswith(f"{other}/") and not _on_a_server(url):
                raise Conflict(f"{url} lies in the directory of shard {entry.id}", hint="give a directory outside of all shards")

    def _free_id(self, record: ShardsRecord) -> str:
        taken = {entry.id for entry in record.shards}
        numbers = range(record.next_number, record.next_number + len(taken) + 1)
        return next(str(number) for number in numbers if str(number) not in taken)

    # --- Replace and remove ---

    async def replace(self, shard: str, url: str | None, caller: Follower) -> Removed:
        """Give a shard's id to a new, empty place, and make there or elsewhere all that the old one holds. Without a url the new place
        is where the old one was. What was begun goes on without its caller, and after a restart.
        """
        async with self._turn:
            entry = self._shards.find(shard)
            place = _checked(url or self._places.place(entry))
            if url is not None:
                self._check_apart(place)
            found = await self._look_at(place)
            if found is not None and (known := self._shards.known(found.marker.uid)) is not None:
                raise Conflict(
                    f"shard {known.id} lies at {place}", hint="give the url of an empty place, or `zstor shard rm` to drain the shard"
                )
            with self._departures.place_kept(entry.number):
                await self._add(place, entry.group or None, instead_of=entry)
            old = self._shards.known(entry.uid)
            # The look at the new shard has begun to drain the old one, and that may have come to its end.
            job = self._departures.last_job_of(entry.number) if old is None else self._departures.start(old)
        return replace(await self._departures.follow(job, old or entry, caller), shard=shard)

    async def remove(self, shard: str, caller: Follower, *, force: bool = False) -> Removed:
        """Move all that a shard holds to others, then forget it. What was begun goes on without its caller, and after a restart.

        With `force` it is forgotten at once, and what it held is made anew as far as there is room: NotEnoughShards, naming them, if
        objects would fall below k shares, and then it stays as it was.
        """
        async with self._turn:
            if force:  # what was begun before may change whether it is drained
                await self._departures.stop(self._shards.find(shard).number)
            entry = self._shards.find(shard)
            others = len([each for each in self._shards.record.shards if each != entry and not each.draining])
            needed = max((namespace.policy.m for namespace in self._namespaces.all()), default=0)
            if others < needed and not force:
                raise NotEnoughShards(
                    f"without shard {shard} there are {others}, and objects are spread over {needed}",
                    hint="add one first (`zstor shard add`), or `zstor shard replace`; --force leaves objects with fewer shares",
                    retryable=False,
                )
            drained_before = entry.draining
            with self._departures.place_kept(entry.number):
                if not drained_before:
                    await self._shards.change(lambda before: _with(before, replace(entry, draining=True)))
                    entry = replace(entry, draining=True)
                if force:  # a shard that came back may have had the drain go on meanwhile
                    await self._departures.stop(entry.number)
            job = self._departures.start(entry, force=force, drained_before=drained_before)
        return await self._departures.follow(job, entry, caller)


def _checked(url: str) -> str:
    """The url in one spelling; InvalidParams if it is none."""
    if _on_a_server(url):
        scheme, _, place = url.partition("://")
        return f"{scheme}://{place.rstrip('/')}"
    path = url.removeprefix("file://")
    if not path.startswith("/") or "\0" in path or posixpath.normpath(path) == "/":
        raise _no_place(f"{url!r} is no place for a shard")
    return posixpath.normpath(path)


def _on_a_server(url: str) -> bool:
    return "://" in url and not url.startswith("file://")


def _where_instead(url: str) -> str:
    return "put another name behind the server's URL" if _on_a_server(url) else "give an empty directory"


def _what_to_look_at(url: str, error: ShardError) -> str:
    if not _on_a_server(url):
        return "see whether it is there, and mounted"
    if error.code == "unauthenticated":
        return "start its server with --trust and what `zstor shard trust` prints here"
    runs = "see whether its server runs there"
    if url.startswith("https://"):
        return f"{runs}; a certificate that it signed itself goes into a file that SSL_CERT_FILE names for the daemon"
    return f"{runs}; with TLS it is at https://" if url.startswith("http://") else runs


def _no_place(message: str) -> InvalidParams:
    return InvalidParams(message, hint="give a directory's absolute path, or a shard server's URL", parameter="url")


def _replaced(name: str, number: int) -> str:
    """What a shard is called once another has its id."""
    return f"{name[:48]}-replaced" if number == 0 else f"{name[:48]}-replaced-{number + 1}"


def _with(record: ShardsRecord, entry: ShardEntry) -> ShardsRecord:
    return replace(record, shards=tuple(entry if shard.number == entry.number else shard for shard in record.shards))
