"""What a shard server counts, as Prometheus reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from zstor_local.shards.base import Capacity
from zstor_local.shardserver.space import Space


class Metrics:
    """One for a server."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._running = 0

    @contextmanager
    def counting(self, method: str) -> Iterator[Callable[[int], None]]:
        """While a request is done; the status is told to what this gives."""

        def outcome(status: int) -> None:
            self._requests[method if method in ("GET", "HEAD", "PUT", "POST", "DELETE") else "other", status] += 1

        self._running += 1
        try:
            yield outcome
        finally:
            self._running -= 1

    def text(self, spaces: Sequence[Space], capacity: Capacity) -> str:
        """Of the spaces that are open, and the file system. What is not open since the start is told of once somebody asks for it."""
        rooms = [room for space in spaces for room in space.rooms]
        lines = [
            "# TYPE zstor_shard_requests_total counter",
            *(
                f'zstor_shard_requests_total{{method="{method}",status="{status}"}} {count}'
                for (method, status), count in sorted(self._requests.items())
            ),
            *_gauge("zstor_shard_requests_running", self._running),
            *_gauge("zstor_shard_spaces_open", len(spaces)),
            *_gauge("zstor_shard_namespaces_open", len(rooms)),
            *_gauge("zstor_shard_namespaces_unreadable", sum(len(space.rooms.unreadable) for space in spaces)),
            *_gauge("zstor_shard_used_bytes", sum(room.used_bytes for room in rooms)),
            *_gauge("zstor_shard_disk_total_bytes", capacity.total),
            *_gauge("zstor_shard_disk_free_bytes", capacity.free),
        ]
        return "\n".join(lines) + "\n"


def _gauge(name: str, value: int) -> list[str]:
    return [f"# TYPE {name} gauge", f"{name} {value}"]
