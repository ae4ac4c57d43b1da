"""The store's figures in the text format of Prometheus (version 0.0.4).

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypedDict, get_args

from zstor_local.errors import ZstorError
from zstor_local.shards.base import ShardState
from zstor_local.store.scrub import ScrubState
from zstor_local.store.scrubrow import WORDS
from zstor_local.store.store import Store, StoreHealth

Sample = tuple[Mapping[str, str], float | None]


class Queues(TypedDict):
    """Waiting: versions to repair, things shards that were away are owed, shares to free. Null where the metastore cannot be read."""

    repair: int
    owed: int | None
    collect: int | None


def queues(store: Store) -> tuple[Queues, list[str]]:
    """With a warning where the metastore cannot be read: who is told of such errors is sent to look at the status."""
    waiting: Queues = {"repair": store.mending.waiting, "owed": None, "collect": None}
    try:
        waiting["owed"], waiting["collect"] = store.metastore.debts_count(), store.metastore.garbage_count()
    except ZstorError as error:
        return waiting, [
            f"{error.message}; see whether the disk of {store.config.store} is there, and what the system's log says of it"
        ]
    return waiting, []


def metrics(store: Store) -> str:
    """Everything, a line for each sample; what cannot be told is left out."""
    return "".join(f"{line}\n" for line in _lines(store))


def _lines(store: Store) -> Iterator[str]:
    state, scrub, shards = store.committer.state, store.scrub.status(), store.shard_statuses()
    yield from _metric("state", "gauge", "1 for the state that the store is in.", _one_of(store.health, get_args(StoreHealth)))
    yield from _metric("objects", "gauge", "Objects stored.", [({}, state.objects)])
    yield from _metric("object_bytes", "gauge", "Plain bytes of all objects.", [({}, state.bytes)])
    yield from _metric("sequence", "counter", "Sequence of the last committed change.", [({}, state.sequence)])
    waiting, _ = queues(store)
    sizes: list[Sample] = [
        ({"queue": "repair"}, waiting["repair"]),
        ({"queue": "owed"}, waiting["owed"]),
        ({"queue": "collect"}, waiting["collect"]),
    ]
    yield from _metric("queue", "gauge", "What waits to be done.", sizes)
    yield from _metric(
        "shard_state",
        "gauge",
        "1 for the state that a shard is in.",
        [({"shard": shard.id, **labels}, value) for shard in shards for labels, value in _one_of(shard.state, get_args(ShardState))],
    )
    for name, help_text, attribute in (
        ("shard_used_bytes", "Bytes used where a shard lies.", "used"),
        ("shard_free_bytes", "Bytes free where a shard lies.", "free"),
        ("shard_latency_milliseconds", "How long a shard took to answer.", "latency_ms"),
    ):
        yield from _metric(name, "gauge", help_text, [({"shard": shard.id}, getattr(shard, attribute)) for shard in shards])
    yield from _metric("scrub_state", "gauge", "1 for what the scrub does.", _one_of(scrub.state, get_args(ScrubState)))
    yield from _metric("scrub_percent", "gauge", "How far the scrub is.", [({}, scrub.percent)])
    yield from _metric("scrub_overdue", "gauge", "1 if no scrub has ended for too long.", [({}, scrub.overdue)])
    ended = None if scrub.last_ended is None else scrub.last_ended / 1e6
    yield from _metric("scrub_last_end_seconds", "gauge", "When the last scrub ended, since 1970 UTC.", [({}, ended)])
    found = [({"kind": kind}, getattr(scrub.found, kind)) for kind in WORDS]
    yield from _metric("scrub_found", "gauge", "What the present scrub, or the last one, has found.", found)
    jobs = [job.state for job in store.jobs.list()]
    yield from _metric("jobs_running", "gauge", "Jobs that run.", [({}, jobs.count("running"))])


def _one_of(state: str, states: Iterable[str]) -> list[Sample]:
    return [({"state": each}, each == state) for each in states]


def _metric(name: str, kind: str, help_text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP zstor_{name} {help_text}"
    yield f"# TYPE zstor_{name} {kind}"
    for labels, value in samples:
        if value is not None:
            told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
            yield f"zstor_{name}{{{told}}} {value + 0}" if told else f"zstor_{name} {value + 0}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
