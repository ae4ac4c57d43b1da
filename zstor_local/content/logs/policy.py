"""How a log's pages are made, and the row in which a log is known."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from zstor_local import limits
from zstor_local.content.names import LOGS
from zstor_local.errors import CorruptRecord, InvalidParams
from zstor_local.formats.remotelog import ENCODINGS, Encoding
from zstor_local.model.fields import decode, encode

DEFAULT_LOG: Final = "default"
TABLE: Final = "log"

Messages: TypeAlias = Literal["any", "mvds"]
MESSAGES: Final[tuple[Messages, ...]] = ("any", "mvds")

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?\Z")


@dataclass(frozen=True, slots=True)
class LogPolicy:
    """What one log looks like.

    A page is closed when it has `page_size` entries (1: a linked list). In each page the newest `embed_last` entries carry their
    content (0: none, page_size: all, fully replicated). In a log of `mvds` every entry is an MVDS message under its message id.
    """

    page_size: int = 64
    embed_last: int = 0
    encoding: Encoding = "protobuf"
    messages: Messages = "any"

    def __post_init__(self) -> None:
        if not 1 <= self.page_size <= limits.LOG_PAGE_ENTRIES:
            raise InvalidParams(f"a page has 1 to {limits.LOG_PAGE_ENTRIES} entries", parameter="page_size")
        if not 0 <= self.embed_last <= self.page_size:
            raise InvalidParams("embed_last is a number of entries in a page: 0 to page_size", parameter="embed_last")


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A log as its row tells it, schema 1. `unsettled`: pins may be there that the log does not need (a scrub is under way)."""

    policy: LogPolicy
    created: int  # microseconds since 1970 UTC
    unsettled: bool = False

    def encode(self) -> bytes:
        policy = self.policy
        fields = [policy.page_size, policy.embed_last, ENCODINGS.index(policy.encoding), MESSAGES.index(policy.messages)]
        return encode({0: 1, 1: fields, 4: self.created} | ({5: True} if self.unsettled else {}))

    @classmethod
    def decode(cls, data: bytes) -> LogRecord:
        """The reverse of `encode`; CorruptRecord for anything else (a later schema too)."""
        plain = decode(data)
        try:
            if plain[0] != 1:
                raise ValueError
            fields, created = plain[1], plain[4]
            if not isinstance(fields, list) or any(type(each) is not int or each < 0 for each in [*fields, created]):
                raise ValueError
            page_size, embed_last, encoding, messages = fields
            policy = LogPolicy(page_size, embed_last, ENCODINGS[encoding], MESSAGES[messages])
            return cls(policy, int(str(created)), plain.get(5) is True)
        except (KeyError, IndexError, ValueError, InvalidParams):
            raise CorruptRecord("the row of a log is malformed", hint="a later zstor may have written it") from None


def check_log(name: str) -> str:
    """The log's name itself, or InvalidParams."""
    if not _NAME.match(name):
        raise InvalidParams(
            "that is not a log's name",
            hint="1 to 63 of a-z, 0-9, dot, _ and -, beginning and ending with a letter or digit",
            parameter="log",
        )
    return name


def head_name(log: str) -> str:
    """The name whose value is the log's newest page; also who owns the pins of what the log holds."""
    return LOGS + log
