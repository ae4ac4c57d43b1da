"""How sizes, times and foreign text are shown to people."""

from __future__ import annotations

import sys
import time
from typing import IO


def size(count: int) -> str:
    """Bytes with a binary unit: 0 B, 999 B, 1.5 KiB, 120 MiB."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1023.95 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}" if value < 99.95 else f"{value:.0f} {units[0]}"


def when(epoch: int) -> str:
    """Microseconds since 1970 as local date and time, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch // 1_000_000))


def duration(seconds: int) -> str:
    """Roughly how long: 40 s, 12 min, 3 h, 5 days."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def safe(text: str, stream: IO[str]) -> str:
    """The text as it may be shown: on a terminal, control characters (a key may hold any) appear as escapes."""
    if not stream.isatty():
        return text
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


def shown_lines(text: str) -> str:
    """`shown` for a text of several lines, which stay lines; without the last one's end."""
    return "\n".join(map(shown, text.removesuffix("\n").split("\n")))


def shown(text: str) -> str:
    """`safe` for standard output."""
    return safe(text, sys.stdout)
