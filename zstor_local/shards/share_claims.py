"""What a large share's file says of itself, wherever it lies. Nobody vouches for it: what proves blocks and table is their seals."""

from __future__ import annotations

from abc import ABC, abstractmethod

from zstor_local.coding.block import BadBlock
from zstor_local.coding.share import ShareHeader, parse_share_footer, parse_share_header
from zstor_local.model.ids import NamespaceId, Version
from zstor_local.runtime import Buffer
from zstor_local.shards.base import ShareMissing


def table_offset(footer: Buffer, size: int, length: int) -> int:
    """Where the sealed chunk table of `length` bytes lies in a file of `size` bytes that ends with this footer.

    ShareMissing if that is no footer, or one of a table of another length.
    """
    try:
        parsed = parse_share_footer(footer, size)
    except BadBlock as error:
        raise ShareMissing from error
    if parsed.table_length != length:
        raise ShareMissing
    return parsed.table_offset


def claimed_header(start: Buffer) -> ShareHeader | None:
    """The header with which a file begins; None if there is none."""
    try:
        return parse_share_header(start)
    except BadBlock:
        return None


class Claiming(ABC):
    """A reader that tells what its share claims to be: see shards.base.ShareReader."""

    @abstractmethod
    def _start(self) -> Buffer:
        """The first SHARE_HEADER_BYTES of its file; none of a share without a header, whose record lies beside it."""

    def claimed_version(self) -> Version | None:
        header = claimed_header(self._start())
        return None if header is None else header.version

    def claimed_namespace(self) -> NamespaceId | None:
        header = claimed_header(self._start())
        return None if header is None else header.namespace
