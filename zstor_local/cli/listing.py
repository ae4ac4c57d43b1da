"""Every object below a prefix, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from zstor_local.cli.client import Client, Json
from zstor_local.cli.options import Options

if TYPE_CHECKING:
    from zstor_local.rpc.methods.listing import Item, Page


def items(client: Client, options: Options, prefix: str) -> Iterator[Item]:
    """The objects whose key begins with the prefix, in the order of the keys' bytes."""
    params: dict[str, Json] = {"prefix": prefix} if prefix else {}
    if options.namespace:
        params["namespace"] = options.namespace
    while True:
        page = cast("Page", client.call("object.list", params))
        yield from page["items"]
        if page["cursor"] is None:
            return
        params["cursor"] = page["cursor"]
