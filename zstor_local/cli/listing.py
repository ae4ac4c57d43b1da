"""Every object below a prefix, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from zstor_local.cli.client import Client, Json
from zstor_local.cli.options import Options

if TYPE_CHECKING:
    from zstor_local.rpc.methods.listing import Item


def items(client: Client, options: Options, prefix: str) -> Iterator[Item]:
    """The objects whose key begins with the prefix, in the order of the keys' bytes."""
    params: dict[str, Json] = {"prefix": prefix} if prefix else {}
    return cast("Iterator[Item]", client.items("object.list", params | options.place()))
