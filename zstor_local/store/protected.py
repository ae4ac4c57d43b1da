"""What is the daemon's own among the files of its user: no client's file is read from there or written there."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from zstor_local.config import Config
from zstor_local.errors import PathRefused
from zstor_local.model.masterkey import NEXT, UNFINISHED


@dataclass(frozen=True, slots=True)
class Protected:
    """Directories with all in them, and single files, there or not, as paths without links. `shards` tells of directories that come
    and go.
    """

    directories: Sequence[str]
    files: Sequence[str]
    shards: Callable[[], Iterable[str]] = tuple

    @classmethod
    def of(cls, config: Config, real: Callable[[str], str], shards: Callable[[], Iterable[str]] = tuple) -> Self:
        """The store, the key, the socket and the configuration. `real` resolves the links in a path (os.path.realpath); of a shard's
        directory each time, as it can do so only once the disk there answers.
        """
        key = config.master_key_file
        sockets = [config.socket, *(place.removeprefix("unix:") for place in config.twirp if place.startswith("unix:"))]
        roots = [shard.url.removeprefix("file://") for shard in config.shards]
        configured = [root for root in roots if root.startswith("/")]
        settings = (config.file, config.authority.credentials_file, config.authority.keys_file)
        keys, ends = [key, key + UNFINISHED, key + NEXT], [f"{socket}{end}" for socket in sockets for end in ("", ".lock", ".new")]
        files = [*keys, *ends, f"{config.store}/metastore.sqlite", *filter(None, settings)]
        names = [
            posixpath.join(real(posixpath.dirname(file)), posixpath.basename(file)) for file in files
        ]  # whatever these names link to
        own = [*dict.fromkeys([*names, *map(real, files)])]
        return cls([real(config.store)], own, lambda: map(real, (*configured, *shards())))

    def check_place(self, real: str, path: str) -> None:
        """PathRefused for what lies in one of the directories. `path` is what the client calls it."""
        directories = (*self.directories, *self.shards())
        if any(real == directory or real.startswith(directory + "/") for directory in directories):
            raise PathRefused(f"{path} lies in the daemon's own store", hint="read and write objects by their keys")

    def check_new(self, real: str, path: str) -> None:
        """PathRefused for what may not be made or replaced: what the daemon finds there at its next start is not a client's to say."""
        self.check_place(real, path)
        if real in self.files:
            raise own_file(path)


def own_file(path: str) -> PathRefused:
    """The error for one of the files."""
    return PathRefused(f"{path} is one of the daemon's own files", hint="name another file")
