"""What may have been meant by a key, namespace, log or name that is not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from zstor_local.cli.options import Completed, Options
from zstor_local.errors import NotFound, ZstorError

Error = TypeVar("Error", bound=ZstorError)

# What the error's data calls the missing thing, the narrower first.
_KINDS: Final[Mapping[str, Completed]] = {"key": "keys", "log": "logs", "name": "names", "namespace": "namespaces"}


def nearer(error: Error, options: Options) -> Error:
    """The error; for people, its hint names what is there under nearly the same name."""
    if isinstance(error, NotFound) and not options.json:
        from difflib import get_close_matches

        from zstor_local.cli.completing import known

        for kind in [kind for kind in _KINDS if kind in error.data]:
            wanted = str(error.data[kind])
            if kind == "key" and (below := known("keys", options, f"{wanted.rstrip('/')}/")):
                error.hint = f"there are keys below it, as {below[0]!r}: get and rm take all of them with -r"
                break
            names = known(_KINDS[kind], options, wanted[:1])
            if wanted not in names and (found := get_close_matches(wanted, names, n=1)):
                error.hint = f"did you mean {found[0]!r}? " + (error.hint or "")
                break
    return error
