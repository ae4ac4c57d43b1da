"""Whose tokens count on a shard server: the documents it was started with, and newer ones that their issuers sent since.

A newer document is signed with a key of the one before it, which the first one, given at the start, need not hold. So beside each that
is kept stands which keys it all began with. Who gives other ones at the start begins anew: then only what those signed is believed.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Final

from zstor_local.access.trust import Trust, parse_trust
from zstor_local.access.verify import TRUST_BYTES, TokenRefused, is_trust, read_trust, verify_trust
from zstor_local.errors import errno_text
from zstor_local.runtime import Runtime
from zstor_local.shardserver.disk import Directories, read_file, write_file

_ROOT_BYTES: Final = 64  # a SHA-256 in hex
_ROOT: Final = re.compile(rf"([0-9a-f]{{{_ROOT_BYTES}}})?")  # versions before 0.2 kept none


class KeptLost(OSError):
    """What is kept cannot be read, or is damaged: whoever passes over it takes the document given at the start for the newest."""

    hint: Final = "bring that file back, or delete it: then what it revokes counts again until the store's daemon has told it anew"


class TrustKeeper:
    """Keeps each issuer's newest document, so that what was revoked stays revoked after a restart."""

    def __init__(self, runtime: Runtime, directory: str) -> None:
        self._runtime = runtime
        self._directory = directory
        self._directories = Directories(runtime.files)
        self._roots: dict[str, str] = {}  # by issuer, of the documents given at the start

    def keep(self, issuer: str, document: bytes) -> None:
        """Remember a signed document that was verified; durable when this returns. OSError, Refusal `failed`."""
        self._directories.check()
        path = self._path(issuer)
        write_file(self._runtime, f"{path}.new", document + f"\n{self._roots.get(issuer, '')}\n".encode())
        self._runtime.files.rename(f"{path}.new", path)
        self._directories.sync(self._directory)

    def newest(self, given: Iterable[bytes]) -> Iterator[Trust]:
        """The documents given at the start, or in place of each the newer one that was sent.

        InvalidParams for what is none; KeptLost where a newer one cannot be read.
        """
        for text in given:
            trust = parse_trust(text)
            root = self._roots[trust.issuer] = _root(trust)
            try:
                document, kept_root = self._read(trust.issuer)
                yield read_trust(document, trust) if kept_root == root else verify_trust(document, trust)
            except (FileNotFoundError, TokenRefused):
                yield trust

    def _read(self, issuer: str) -> tuple[str, str]:
        """A document, and the root of those that led to it. FileNotFoundError, KeptLost."""
        path = self._path(issuer)
        try:
            kept = read_file(self._runtime, path, TRUST_BYTES + _ROOT_BYTES + 2)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise KeptLost(error.errno, f"the newer one that is kept in {path} cannot be read: {errno_text(error)}") from None
        document, _, root = kept.decode("ascii", "replace").removesuffix("\n").partition("\n")
        if not (is_trust(document) and _ROOT.fullmatch(root)):
            raise KeptLost(errno.EBADMSG, f"the newer one that is kept in {path} is damaged")
        return document, root

    def _path(self, issuer: str) -> str:
        return f"{self._directory}/{hashlib.sha256(issuer.encode()).hexdigest()[:32]}"


def _root(trust: Trust) -> str:
    """Which keys a document holds."""
    numbers = sorted((kid, key.public_numbers()) for kid, key in trust.keys.items())
    return hashlib.sha256("".join(f"{kid} {each.x} {each.y}\n" for kid, each in numbers).encode()).hexdigest()
