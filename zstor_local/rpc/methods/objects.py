"""`object.*`: write, read, delete, stat. Thin: arguments to a use case, its result to JSON."""

from __future__ import annotations

from typing import Annotated, Final, Literal, NotRequired, TypedDict, Unpack

from zstor_local import limits
from zstor_local.errors import (
    AlreadyExists,
    BadEncoding,
    Busy,
    Conflict,
    Incomplete,
    InvalidParams,
    NoSpace,
    NotFound,
    OutcomeUnknown,
    PathRefused,
    PermissionDenied,
    TooLarge,
    Unavailable,
)
from zstor_local.model.ids import ObjectName, Version
from zstor_local.rpc.call import Call
from zstor_local.rpc.methods.attributes import checked_references, checked_user
from zstor_local.rpc.methods.failures import COMMIT_ERRORS, FILE_ERRORS, METASTORE_ERRORS, READ_ERRORS, Failures
from zstor_local.rpc.methods.handover import Handover, Producer
from zstor_local.rpc.methods.names import Key, MetadataIn, Namespace, Naming
from zstor_local.rpc.methods.pages import much_changed, much_known
from zstor_local.rpc.methods.values import exactly_one, inline, text_of
from zstor_local.rpc.registry import Registry, Soon
from zstor_local.rpc.schema import Length, Pattern, Range
from zstor_local.rpc.streams import Opened, Streams
from zstor_local.rpc.strict_json import Base64, Json
from zstor_local.store.caller import Caller
from zstor_local.store.links import Previous
from zstor_local.store.metadata import Metadata, describe
from zstor_local.store.paths import Mode, Paths
from zstor_local.store.reading import Range as Part
from zstor_local.store.reading import stretch
from zstor_local.store.sinks import OrderedSink
from zstor_local.store.sources import BytesSource, StreamSource
from zstor_local.store.store import Store
from zstor_local.store.stored import Stored
from zstor_local.store.writes import Source, WriteOptions

PreviousKey = Annotated[str, "link it behind this object, which nothing else may follow"]
PreviousMetadata = Annotated[dict[str, Json], "instead of `previous_key`: its metadata; `conflict` if it has left that version"]
Fd = Annotated[int, "index of a descriptor sent with this message", Range(0, limits.FDS_PER_CALL - 1)]
Path = Annotated[str, "an absolute path, opened by the daemon"]
References = Annotated[list[Annotated[str, Length(1, limits.REFERENCE_BYTES)]], "texts to keep with the object, in order"]
VersionText = Annotated[str, "a version, 32 hex digits", Pattern("[0-9a-f]{32}")]
User = Annotated[dict[str, Json], "members of your own, kept with the object"]
Offset = Annotated[int, "first byte wanted", Range(0)]
Count = Annotated[int, "bytes wanted at most", Range(0)]
Size = Annotated[int, "refuse the write unless just so many bytes arrive", Range(0)]
Digest = Annotated[str, "refuse the write unless the bytes have this digest", Pattern("blake3:[0-9a-f]{64}")]

WRITE_ERRORS: Final[Failures] = [
    NotFound,
    AlreadyExists,
    Conflict,
    PermissionDenied,
    TooLarge,
    Incomplete,
    PathRefused,
    Busy,
    *COMMIT_ERRORS,
]
DELETE_ERRORS: Final[Failures] = [NotFound, Conflict, PermissionDenied, NoSpace, OutcomeUnknown, Unavailable, *METASTORE_ERRORS]


class WriteIn(TypedDict, total=False):
    """What each kind of write may say beside where its bytes are."""

    namespace: Namespace | None
    metadata: MetadataIn | None
    references: References | None
    keep_references: Annotated[bool, "keep those of the version before"]
    previous_key: PreviousKey | None
    previous_metadata: PreviousMetadata | None
    user: User | None
    if_version: VersionText | None
    exclusive: Annotated[bool, "refuse to replace an object"]
    expected_size: Size | None
    expected_digest: Digest | None


class Written(TypedDict):
    """What a write stored."""

    metadata: Metadata


class Value(TypedDict):
    """An object's bytes: `value` if an encoding was asked for, else `value_b64`."""

    value_b64: NotRequired[Base64]
    value: NotRequired[str]
    references: list[str]
    metadata: Metadata


class Sent(TypedDict):
    """What was written to the file."""

    metadata: Metadata
    bytes: int


class Streamed(TypedDict):
    """What was written to the pipe or socket."""

    metadata: Metadata
    references: list[str]
    bytes: int


class Deleted(TypedDict):
    """`owed`: shards that were away and still have to be told."""

    deleted: bool
    owed: int


def register(registry: Registry, store: Store, paths: Paths) -> None:
    """Add the methods."""
    names = Naming(store)
    handover = Handover(store.runtime, paths)
    streams = Streams(store.runtime.randomness)
    objects, writer = store.objects, store.writer

    def wanted(key: str | None, more: WriteIn) -> tuple[ObjectName, WriteOptions]:
        name, version = names.target(key, more.get("namespace"), more.get("metadata"))
        previous = names.previous(name, more.get("previous_key"), more.get("previous_metadata"))
        return name, _options(more, version, previous)

    async def store_it(caller: Caller, name: ObjectName, source: Source, options: WriteOptions) -> Written:
        return written(await writer.write(name, source, options, caller))

    def written(stored: Stored) -> Written:
        return {"metadata": describe(stored, store.pool)}

    def room_to_tell(name: ObjectName, options: WriteOptions) -> int:
        return much_changed(store, name, options.references, kept=options.keep_references)

    async def store_stream(call: Call, fd: int, name: ObjectName, options: WriteOptions) -> Written:
        await call.reply_room(room_to_tell(name, options))
        async with handover.source(call, fd, stream=True) as source:
            return await store_it(Producer(call), name, source, options)

    @registry.method("object.write", errors=WRITE_ERRORS)
    def write(
        call: Call,
        /,
        key: Key | None = None,
        value: Annotated[str | None, "the object as text, stored as UTF-8"] = None,
        value_b64: Annotated[bytes | None, "the object in standard base64"] = None,
        fd: Fd | None = None,
        **more: Unpack[WriteIn],
    ) -> Soon[Written]:
        """Store a small object: its bytes come in the call.

        Give exactly one of value, value_b64 and fd. The reply means that it is durable. Values over 8 MiB go by object.write_file or
        object.write_stream.
        """
        name, options = wanted(key, more)
        exactly_one(value=value, value_b64=value_b64, fd=fd)
        if fd is not None:
            return store_stream(call, fd, name, options)
        data = inline(value, value_b64, hint="use object.write_file with a path, or object.write_stream with a pipe's descriptor")
        room = room_to_tell(name, options)

        async def store_in_turn() -> Written:
            await call.reply_room(room)
            return await store_it(Producer(call), name, BytesSource(data), options)

        if not call.take_reply_room(room):
            return store_in_turn()
        later = writer.write_value(name, data, options, call)
        return store_it(Producer(call), name, BytesSource(data), options) if later is None else later.map(written)

    @registry.method("object.write_file", errors=WRITE_ERRORS, long=True)
    async def write_file(
        call: Call,
        /,
        key: Key | None = None,
        path: Path | None = None,
        fd: Fd | None = None,
        **more: Unpack[WriteIn],
    ) -> Written:
        """Store a regular file, named by its path or handed over as a descriptor (read from its offset on).

        A file that changes while it is read is refused, and the old version stays.
        """
        name, options = wanted(key, more)
        exactly_one(path=path, fd=fd)
        await call.reply_room(room_to_tell(name, options))
        opened = handover.source(call, fd, stream=False) if fd is not None else handover.file(call, path or "")
        async with opened as source:
            return await store_it(Producer(call), name, source, options)

    @registry.method("object.write_stream", errors=WRITE_ERRORS, long=True)
    async def write_stream(
        call: Call,
        /,
        key: Key | None = None,
        fd: Annotated[Fd | None, "index of a pipe's or socket's descriptor, sent with this message"] = None,
        **more: Unpack[WriteIn],
    ) -> Written | Opened:
        """Store what comes out of a pipe or socket, to its end, in constant memory; or, without a descriptor, what stream.write brings.

        With fd the reply is {metadata}. The daemon cannot see a producer that fails: give expected_size or expected_digest where that
        matters. Without fd the reply is {stream}: send the bytes by stream.write, then stream.close, which answers {metadata}.
        """
        name, options = wanted(key, more)
        if fd is None:

            async def store_pieces(source: StreamSource, caller: Caller) -> Written:
                return await store_it(caller, name, source, options)

            await call.reply_room(room_to_tell(name, options))
            return await streams.write(call, store_pieces)
        return await store_stream(call, fd, name, options)

    @registry.method("object.read", errors=[*READ_ERRORS, TooLarge, BadEncoding])
    def read(
        call: Call,
        /,
        key: Key | None = None,
        offset: Offset | None = None,
        length: Count | None = None,
        encoding: Annotated[Literal["utf-8"] | None, "give the bytes as text"] = None,
        namespace: Namespace | None = None,
        metadata: MetadataIn | None = None,
    ) -> Value | Soon[Value]:
        """Give a small object's bytes, or a stretch of a large one's, in the reply."""

        def find() -> tuple[Stored, Part]:
            stored = names.find(key, namespace, metadata)
            part = stretch(stored.record, offset, length)
            if part.length > limits.INLINE_VALUE_BYTES:
                raise TooLarge(
                    f"the value has {part.length} bytes",
                    hint="use object.read_file or object.read_stream, or read it in stretches (offset, length)",
                    limit=limits.INLINE_VALUE_BYTES,
                )
            return stored, part

        def value(stored: Stored, data: bytes) -> Value:
            references, about = list(stored.record.references), describe(stored, store.pool)
            if encoding is None:
                return {"value_b64": Base64(data), "references": references, "metadata": about}
            return {"value": text_of(data), "references": references, "metadata": about}

        async def read_in_turn(room: int, *, taken: bool) -> Value:
            if not taken:
                await call.reply_room(room)  # who waits holds nothing
            stored, part = find()  # here, where its bytes are read next: so they cannot be freed in between
            while (more := part.length + much_known(stored)) > room:  # it was replaced meanwhile
                del stored
                call.replied()
                await call.reply_room(room := more)
                stored, part = find()
            with names.still_there(stored, by_metadata=metadata is not None):
                return value(stored, await objects.read(stored, part))

        stored, part = find()
        room = part.length + much_known(stored)
        taken = call.take_reply_room(room)
        data = objects.read_value(stored, part) if taken and metadata is None else None
        return read_in_turn(room, taken=taken) if data is None else value(stored, data)

    @registry.method("object.read_file", errors=[*READ_ERRORS, *FILE_ERRORS, AlreadyExists], long=True)
    async def read_file(
        call: Call,
        /,
        key: Key | None = None,
        path: Path | None = None,
        fd: Fd | None = None,
        mode: Annotated[Mode, "what to do with a file that is there"] = "truncate",
        sync: Annotated[bool, "make it durable before the reply"] = True,
        offset: Offset | None = None,
        length: Count | None = None,
        namespace: Namespace | None = None,
        metadata: MetadataIn | None = None,
    ) -> Sent:
        """Write an object to a regular file, by path or descriptor (from its offset on).

        A file named by its path is replaced by a whole new one, or not touched at all.
        """
        exactly_one(path=path, fd=fd)
        await call.reply_room(much_known(names.find(key, namespace, metadata)))  # who waits holds nothing
        async with handover.output(call, fd, path, mode, stream=False, sync=sync) as take:
            # The version is looked up where its bytes are read next: so they cannot be freed in between.
            stored = names.find(key, namespace, metadata)
            part = stretch(stored.record, offset, length)
            with names.still_there(stored, by_metadata=metadata is not None):
                await take(objects, stored, part)
        return {"metadata": describe(stored, store.pool), "bytes": part.length}

    @registry.method("object.read_stream", errors=[*READ_ERRORS, *FILE_ERRORS], long=True)
    async def read_stream(
        call: Call,
        /,
        key: Key | None = None,
        fd: Annotated[Fd | None, "index of a pipe's or socket's descriptor, sent with this message"] = None,
        offset: Offset | None = None,
        length: Count | None = None,
        namespace: Namespace | None = None,
        metadata: MetadataIn | None = None,
    ) -> Streamed | Opened:
        """Write an object into a pipe or socket, in order, in constant memory; or, without a descriptor, into notifications.

        After an error a pipe may have got a part. Without fd the reply is {stream}. Then stream.data {stream, seq, value_b64} follow,
        at most four of them that stream.ack has not answered, and in the end stream.end {stream, result} or {stream, error}.
        """

        async def send(sink: OrderedSink, caller: Caller) -> Streamed:
            # The version is looked up where its bytes are read next: so they cannot be freed in between.
            stored = names.find(key, namespace, metadata)
            part = stretch(stored.record, offset, length)
            with names.still_there(stored, by_metadata=metadata is not None):
                await objects.read_to_stream(stored, sink, part, caller)
            return {"metadata": describe(stored, store.pool), "references": list(stored.record.references), "bytes": part.length}

        await call.reply_room(much_known(names.find(key, namespace, metadata)))  # and what is wrong with it is told at once
        if fd is not None:
            async with handover.sink(call, fd) as sink:
                return await send(sink, call)
        return streams.read(call, send)

    @registry.method("object.delete", errors=DELETE_ERRORS)
    async def delete(
        call: Call,
        /,
        key: Key | None = None,
        if_version: VersionText | None = None,
        namespace: Namespace | None = None,
        metadata: MetadataIn | None = None,
    ) -> Deleted:
        """Delete an object, durably. With metadata only that version: `conflict` if the key has moved on.

        With metadata a key is deleted too of which the metastore knows nothing any more: a rebuild will not bring it back.
        """
        name, version = names.target(key, namespace, metadata)
        wanted = Version(bytes.fromhex(if_version)) if if_version is not None else version
        owed = await writer.delete(name, wanted, call, None if metadata is None else names.find(None, namespace, metadata))
        return {"deleted": True, "owed": owed}

    @registry.method("object.stat", errors=[NotFound, *METASTORE_ERRORS])
    def stat(
        call: Call, /, key: Key | None = None, namespace: Namespace | None = None, metadata: MetadataIn | None = None
    ) -> Written | Soon[Written]:
        """Tell what is known of an object, without reading it."""
        stored = names.find(key, namespace, metadata)
        room = much_known(stored)  # ten thousand references may be in it

        async def stat_in_turn() -> Written:
            await call.reply_room(room)
            return written(names.find(key, namespace, metadata))

        return written(stored) if call.take_reply_room(room) else stat_in_turn()


def _options(more: WriteIn, version: Version | None, previous: Previous | None) -> WriteOptions:
    """`version` is that of the metadata, which a write must find unless it names another one."""
    references, keep_references, if_version = more.get("references"), more.get("keep_references", False), more.get("if_version")
    if references and keep_references:
        raise InvalidParams("references and keep_references exclude each other", parameter="references")
    return WriteOptions(
        references=checked_references(references or []),
        keep_references=keep_references,
        previous=previous,
        user=checked_user(more.get("user") or {}),
        if_version=version if if_version is None else Version(bytes.fromhex(if_version)),
        exclusive=more.get("exclusive", False),
        expected_size=more.get("expected_size"),
        expected_digest=more.get("expected_digest"),
    )
