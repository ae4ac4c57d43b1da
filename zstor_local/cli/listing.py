"""Every object below a prefix, page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

from zstor_local.cli.client import Client, Json
from zstor_local.cli.options import Options
from zstor_local.errors import CorruptRecord

if TYPE_CHECKING:
    from zstor_local.rpc.methods.listing import Item


def items(client: Client, options: Options, prefix: str, *, damaged: Callable[[CorruptRecord], object] | None = None) -> Iterator[Item]:
    """The objects whose key begins with the prefix, in the order of the keys' bytes. `damaged`: as Client.items has it."""
    params: dict[str, Json] = {"prefix": prefix} if prefix else {}
    return cast("Iterator[Item]", client.items("object.list", params | options.place(), damaged=damaged))
