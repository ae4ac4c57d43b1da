"""The shapes of the daemon's answers, as far as the command reads them (`zstor call rpc.discover` has them whole)."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict


class Policy(TypedDict):
    k: int
    m: int
    chunk_size: int
    compression: str
    padding: str


class Placement(TypedDict):
    shard: str
    index: int


class Metadata(TypedDict):
    """A version of an object; sizes in bytes, epochs in microseconds since 1970."""

    namespace: str
    key: str
    version: str
    size: int
    stored_size: int
    digest: str
    created_epoch: int
    modified_epoch: int
    policy: Policy
    shards: list[Placement]
    previous_key: str | None
    next_key: str | None
    references: list[str]
    user: dict[str, str]
    health: Literal["optimal", "valid"]
    owed: int
    seal: str


class Written(TypedDict):
    metadata: Metadata


class Sent(TypedDict):
    metadata: Metadata
    bytes: int


class Read(TypedDict):
    value: str


class Rotated(TypedDict):
    store: str
    key_file: str
    job: str


class Deleted(TypedDict):
    deleted: bool
    owed: int


class Item(TypedDict):
    key: str
    metadata: Metadata


class Page(TypedDict):
    items: list[Item]
    cursor: str | None


class References(TypedDict):
    references: list[str]


class KeysPage(TypedDict):
    keys: list[str]
    cursor: str | None


class Shard(TypedDict):
    id: str
    url: str
    group: str | None
    state: str
    used: int | None
    free: int | None
    latency_ms: float | None
    last_error: str | None
    draining: bool


class Metastore(TypedDict):
    kind: str
    writable: bool


class Scrub(TypedDict):
    """The scrub in daemon.status, and what health.scrub answers."""

    state: Literal["idle", "running", "paused"]
    cursor_percent: NotRequired[float]
    started_epoch: NotRequired[int | None]
    last_ended_epoch: NotRequired[int | None]
    eta_seconds: NotRequired[int | None]
    overdue: NotRequired[bool]
    found: NotRequired[dict[str, int]]


class KeptShare(TypedDict):
    shard: str
    version: str
    index: int
    reason: str
    namespace: NotRequired[str]
    key: NotRequired[str]


class CollectedShares(TypedDict):
    """health.collect."""

    dry_run: bool
    looked_at: int
    freed: int
    waiting: int
    kept: int
    found: list[KeptShare]
    unseen: list[str]


class NotRepaired(TypedDict):
    namespace: str
    key: str
    error: str
    message: str


class RepairedAll(TypedDict):
    """health.repair_all."""

    objects: int
    repaired: int
    failed: int
    owed: int
    found: list[NotRepaired]


class Status(TypedDict):
    """daemon.status. What is not known (the room on a missing shard) is null."""

    state: Literal["ok", "degraded", "readonly", "failed"]
    shards: list[Shard]
    metastore: Metastore
    objects: int
    bytes: int
    queues: dict[str, int]
    scrub: Scrub
    warnings: list[str]


class NameFetched(TypedDict):
    """ns.fetch. Without a value nothing is new, or the name was deleted."""

    value_b64: NotRequired[str]
    seq: int
    updated_epoch: int | None
    deleted: NotRequired[bool]


class NameListed(TypedDict):
    name: str
    seq: int
    size: int
    updated_epoch: int


class NamesPage(TypedDict):
    items: list[NameListed]
    cursor: str | None


class NamespacePolicy(TypedDict):
    k: int
    m: int
    chunk_size: int
    compression: str
    padding: str


class NamespaceShown(TypedDict):
    """namespace.get, namespace.create, namespace.set."""

    namespace: str
    policy: NamespacePolicy
    placement: list[str]
    objects: int
    bytes: int
    quota_bytes: int | None
    created_epoch: int


class NamespacePage(TypedDict):
    items: list[NamespaceShown]
    cursor: str | None


class NamespaceDeleted(TypedDict):
    deleted: bool
    objects: int


class JobStarted(TypedDict):
    job: str


class Rights(TypedDict):
    """permission.get."""

    read: bool
    write: bool
    delete: bool
    admin: bool


class PermissionGiven(Rights):
    """permission.give, permission.remove."""

    namespace: str
    user: str
    pending: list[str]


class PermissionList(TypedDict):
    items: list[PermissionGiven]


class TokenShown(TypedDict):
    """token.create."""

    token: str
    expires_epoch: int
    scopes: list[str]


class Uploaded(TypedDict):
    id: str
    size: int
    new: bool


class Pin(TypedDict):
    owner: str
    reason: str
    since_epoch: int


class Content(TypedDict):
    id: str
    size: int
    created_epoch: int
    pins: list[Pin]
    kept_until_epoch: int | None
    stored_size: int
    health: Literal["optimal", "valid"]
    owed: int


class ContentsPage(TypedDict):
    items: list[Content]
    cursor: str | None


class Unpinned(TypedDict):
    deleted: bool
    content: Content | None


class Collected(TypedDict):
    looked_at: int
    contents: int
    bytes: int
    dry_run: bool


class LogView(TypedDict):
    log: str
    entries: int
    head: str | None
    name: str
    name_seq: int
    page_size: int
    embed_last: int
    encoding: str
    messages: str
    created_epoch: int | None


class LogsPage(TypedDict):
    items: list[LogView]
    cursor: str | None


class LogAppended(TypedDict):
    seq: int
    id: str
    head: str
    new: bool


class LogEntry(TypedDict):
    """An entry; without an id it was scrubbed, without a value that was not asked for or is too large."""

    seq: int
    local_hash_b64: str
    id: str | None
    size: NotRequired[int]
    value_b64: NotRequired[str]


class LogEntries(TypedDict):
    entries: list[LogEntry]
    next: int


class LogPageView(TypedDict):
    id: str
    head: bool
    first: int
    last: int
    value_b64: str
    view: list[object]


class LogHead(TypedDict):
    log: LogView
    page: LogPageView


class Invited(TypedDict):
    """namespace.invite."""

    invitation: str


class JoiningKey(TypedDict):
    """namespace.key."""

    public_key: str


class NamespaceJoined(TypedDict):
    """namespace.join."""

    namespace: str
    objects: int
    bytes: int
