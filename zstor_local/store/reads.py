"""Reading objects: find a version, open it, hand its bytes out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import trio

from zstor_local.coding.chunk import Scratch
from zstor_local.errors import CorruptRecord, NotFound
from zstor_local.model.ids import ObjectName
from zstor_local.model.record import STORE_WIDE, Envelope, Kind
from zstor_local.store.caller import Caller
from zstor_local.store.coding import ScratchPool
from zstor_local.store.core import Core
from zstor_local.store.errorgroups import alone
from zstor_local.store.freeing import Freeing
from zstor_local.store.namespaces import Namespaces
from zstor_local.store.pace import RECORDS_A_TURN
from zstor_local.store.peeking import peek
from zstor_local.store.reading import ObjectReader, Range, whole
from zstor_local.store.shares import ShareState
from zstor_local.store.sinks import FileSink, MemorySink, OrderedSink
from zstor_local.store.stored import Stored, no_key, open_object, stored_at, stored_row, with_debts
from zstor_local.store.stream_budget import StreamBudget, WatchedSink

OnBadShares = Callable[[Stored, Mapping[int, ShareState]], None]  # a version, and states by share index


class Objects:
    """The use cases that only look; those that change objects are ObjectWriter's. What a read found bad goes to `on_bad_shares`."""

    def __init__(
        self,
        core: Core,
        namespaces: Namespaces,
        freeing: Freeing,
        scratches: ScratchPool,
        streams: StreamBudget,
        on_bad_shares: OnBadShares,
    ) -> None:
        self._core = core
        self._runtime = core.runtime
        self._metastore = core.reading
        self._pool = core.pool
        self._sealer = core.sealer
        self._namespaces = namespaces
        self._freeing = freeing
        self._scratches = scratches
        self._streams = streams
        self._on_bad_shares = on_bad_shares
        self._scratch = Scratch()  # of the event loop

    def find(self, name: ObjectName) -> Stored:
        """The key's newest version, or NotFound."""
        namespace = self._namespaces.find(name.namespace)
        stored = None if namespace is None else stored_at(self._core, namespace, name.key)
        if stored is None:
            raise no_key(name)
        return stored

    def from_seal(self, seal: bytes) -> Stored:
        """The version that a seal, as a write returned it, names; CorruptRecord if it is not authentic."""
        envelope = Envelope.parse(seal)
        if envelope.kind is not Kind.OBJECT or envelope.namespace == STORE_WIDE:
            raise CorruptRecord("the seal is not one of this store's objects", hint="give the metadata as a write returned it")
        record = open_object(self._sealer, envelope)
        namespace = self._namespaces.by_id(envelope.namespace)
        if namespace is None or namespace.gate.closed:
            raise NotFound("the namespace of that metadata was deleted", hint="`zstor namespace ls` lists those that are there")
        return with_debts(self._metastore, Stored(namespace.name, record, envelope))

    def kept(self, stored: Stored) -> AbstractContextManager[None]:
        """While it lasts none of the version's shares is freed: for who waits for something between finding and reading it."""
        return self._freeing.lease(stored.version)

    @contextmanager
    def _reader(self, stored: Stored) -> Iterator[ObjectReader]:
        """The version, open; its shares are not freed meanwhile. What was found bad goes on the repair list."""
        namespace = self._namespaces.get(stored.namespace, stored.envelope.namespace)
        version = stored.version
        with self._freeing.lease(version):
            reader = ObjectReader(
                self._runtime, self._pool, self._scratches, self._sealer.store_of(namespace.id), namespace, version, stored.record
            )
            try:
                yield reader
            finally:
                reader.close()
                if reader.bad_shares:
                    self._on_bad_shares(stored, reader.bad_shares)

    def read_value(self, stored: Stored, part: Range) -> bytes | None:
        """Bytes of a small object, if no disk has to be waited for and all is well; else None: `read` them."""
        namespace = self._namespaces.get(stored.namespace, stored.envelope.namespace)
        return peek(self._pool, self._sealer.store_of(namespace.id), namespace, stored, part, self._scratch)

    async def read(self, stored: Stored, part: Range | None = None) -> bytes:
        """The bytes in memory, all of them or a part; the caller has checked that they are few."""
        part = part or whole(stored.record)
        with self._reader(stored) as reader:
            sink = MemorySink()
            await alone(reader.to_stream(sink, part, lambda done: None))
            return sink.value()

    async def read_to_file(self, stored: Stored, sink: FileSink, part: Range, caller: Caller) -> None:
        """The bytes to their places in a regular file."""
        with self._reader(stored) as reader:
            await alone(reader.to_file(sink, part, lambda done: caller.progress(done, part.length)))

    async def read_to_stream(self, stored: Stored, sink: OrderedSink, part: Range, caller: Caller) -> None:
        """The bytes in order to a pipe or socket."""
        with self._streams.take(stored.record.policy, caller) as turn, self._reader(stored) as reader:
            await alone(reader.to_stream(WatchedSink(sink, turn), part, lambda done: caller.progress(done, part.length)))

    async def list(self, namespace_name: str, prefix: str, after: str | None, limit: int) -> AsyncGenerator[Stored, None]:
        """Newest versions in the order of their keys' bytes, at most `limit`. A record that does not open ends it with its error."""
        namespace = self._namespaces.find(namespace_name)
        if namespace is None:
            return
        while limit > 0 and (rows := self._metastore.scan(namespace.id, prefix, after, min(limit, RECORDS_A_TURN))):
            for row in rows:
                yield stored_row(self._core, namespace_name, row)
            limit, after = limit - len(rows), rows[-1].name
            await trio.lowlevel.checkpoint()
