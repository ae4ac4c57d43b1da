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
    kind = next((kind for kind in _KINDS if kind in error.data), None)
    if isinstance(error, NotFound) and kind is not None and not options.json:
        from difflib import get_close_matches

        from zstor_local.cli.completing import known

        wanted = str(error.data[kind])
        if found := get_close_matches(wanted, known(_KINDS[kind], options, wanted[:1]), n=1):
            error.hint = f"did you mean {found[0]!r}? " + (error.hint or "")
    return error
