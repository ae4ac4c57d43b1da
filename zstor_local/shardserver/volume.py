"""The directory of a shard server: its lock, the spaces in it, each opened when it is first asked for."""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from typing import Final
from weakref import WeakValueDictionary

import trio

from zstor_local import limits
from zstor_local.metastore.reserve import Reserve
from zstor_local.model.ids import ShardUid
from zstor_local.runtime import Runtime
from zstor_local.shards.base import Capacity
from zstor_local.shardserver.disk import Directories, answering
from zstor_local.shardserver.refusal import Refusal, of_system
from zstor_local.shardserver.space import Space, owner_of

LOCK: Final = "lock"
SPACES: Final = "spaces"
TRUST: Final = "trust"
RESERVE: Final = "reserve"
SPACES_MAX: Final = 64  # of one store: it needs one, and one more for each name behind the server's URL
RESERVE_BYTES: Final = 8 * limits.MIB  # a log segment for each of several namespaces
_OWN: Final = frozenset({LOCK, SPACES, TRUST, RESERVE})

log = logging.getLogger("zstor.shardserver")


class VolumeInUse(Exception):
    """Another shard server has this directory."""


class NoVolume(Exception):
    """The directory has something else in it."""


class Volume:
    """All spaces. The methods block but for `lock`; `spaces` holds those that are open."""

    def __init__(self, runtime: Runtime, root: str, quota_bytes: int | None = None) -> None:
        """Make the directory a volume if it is empty. `quota_bytes`: what each space may hold. VolumeInUse, NoVolume, OSError."""
        self.runtime = runtime
        self.root = root
        self._quota_bytes = quota_bytes
        self.spaces: dict[ShardUid, Space] = {}
        self._locks: WeakValueDictionary[ShardUid, trio.Lock] = WeakValueDictionary()  # anybody may ask for any id
        files = runtime.files
        self._directories = Directories(files)
        self._unsettled: set[ShardUid] = set()  # spaces that came or went, and may not have with the next power loss
        with suppress(FileNotFoundError):
            names = {*files.list(root)} - {"lost+found"}
            if not names <= _OWN and not {LOCK, SPACES} <= names:  # fewer of ours: it was ended while it made them
                raise NoVolume(f"{root} is not empty, and no shard server's")
        for directory in (root, f"{root}/{SPACES}", f"{root}/{TRUST}"):
            with suppress(FileExistsError):
                files.mkdir(directory)
        self._lock_fd = files.open(f"{root}/{LOCK}", os.O_RDWR | os.O_CREAT)
        if not files.lock(self._lock_fd):
            files.close(self._lock_fd)
            raise VolumeInUse(f"another shard server has {root}")
        files.syncfs(self._lock_fd)  # what a killed server has left is told of from now on, and must not be gone with a power loss
        for name in files.list(f"{root}/{SPACES}"):
            if "." in name:  # a space that was being made or removed when the server ended
                self._clear(name)
        self._reserve = Reserve(files, f"{root}/{RESERVE}", RESERVE_BYTES)
        self._reserve.keep()

    def make_room(self) -> bool:
        """On a full disk: give up what was kept for deletes, and for who takes over. False if nothing was."""
        return self._reserve.give_up()

    def keep_room(self) -> None:
        """Keep it again, where something was freed."""
        self._reserve.keep()

    def lock(self, uid: ShardUid) -> trio.Lock:
        """Held while a space is opened or changed."""
        return self._locks.setdefault(uid, trio.Lock())

    def path(self, uid: ShardUid) -> str:
        return f"{self.root}/{SPACES}/{uid.hex()}"

    def find(self, uid: ShardUid) -> Space:
        """The space, opened if need be; Refusal `no_space_here`, or `failed` where it cannot be told whether it is. Under its lock."""
        space = self.spaces.get(uid)
        if space is None:
            self._settle(uid)
            try:
                self.runtime.files.path_status(self.path(uid))
            except FileNotFoundError:
                raise Refusal("no_space_here", "that shard is not on this server") from None
            space = self.spaces[uid] = Space(self.runtime, self.path(uid), self._quota_bytes, self.make_room)
        return space

    def create(self, uid: ShardUid, issuer: str, marker: bytes) -> Space:
        """A new space. The same one again is fine; Refusal `exists` for another one of that name, `full` where its issuer has so many
        that it would take what belongs to others. Under its lock.
        """
        try:
            space = self.find(uid)
        except Refusal as refusal:
            if refusal.type != "no_space_here":
                raise
            return self._make(uid, issuer, marker)
        if (space.issuer, space.marker) != (issuer, marker):
            raise Refusal("exists", "there is another shard of that id")
        return space

    def _make(self, uid: ShardUid, issuer: str, marker: bytes) -> Space:
        with answering():
            names = [name for name in self.runtime.files.list(f"{self.root}/{SPACES}") if "." not in name]
        if sum(owner_of(self.runtime, f"{self.root}/{SPACES}/{name}") == issuer for name in names) >= SPACES_MAX:
            raise Refusal("full", f"this server keeps {SPACES_MAX} shards of one store and no more")
        self._unsettled.add(uid)
        try:
            Space.create(self.runtime, self.path(uid), issuer, marker, self._directories)
            return self.find(uid)
        except Refusal:
            with suppress(OSError):  # it would be in the way of another one; nobody sees it unless it lasts
                self._clear(self._put_out_of_sight(uid))
            raise

    def _settle(self, uid: ShardUid) -> None:
        """Make it last that a space came, or went. Refusal `failed` where that cannot be: nobody is to go by what may be otherwise."""
        if uid in self._unsettled:
            with answering():
                self._directories.sync(f"{self.root}/{SPACES}")
            self._unsettled.discard(uid)

    def _put_out_of_sight(self, uid: ShardUid) -> str:
        """What a space is called from now on until it is removed, at the next start at the latest. OSError."""
        name = f"{uid.hex()}.gone.{self.runtime.randomness.bytes(8).hex()}"  # what could not be removed keeps its own
        self._unsettled.add(uid)
        self.runtime.files.rename(self.path(uid), f"{self.root}/{SPACES}/{name}")
        return name

    def _clear(self, name: str) -> None:
        """Remove what is not seen any more. What stays of it is in nobody's way."""
        try:
            shutil.rmtree(f"{self.root}/{SPACES}/{name}")
        except OSError as error:
            log.warning("what is left of a space that went stays until the next start: %s", of_system(error).message)

    def remove(self, uid: ShardUid) -> None:
        """Take a space away with all that is in it: out of sight at once, durably, then off the disk. Under its lock."""
        space = self.find(uid)
        del self.spaces[uid]
        space.close()
        with answering():
            gone = self._put_out_of_sight(uid)
        self._settle(uid)
        self._clear(gone)

    def capacity(self) -> Capacity:
        """Bytes of the file system."""
        system = self.runtime.files.file_system(self._lock_fd)
        return Capacity(system.total, system.free)

    def close(self) -> None:
        for space in self.spaces.values():
            space.close()
        self.spaces.clear()
        self.runtime.files.close(self._lock_fd)
