"""Every limit in one place; `daemon.info` and `rpc.discover` show those that a client can meet."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- The wire (facts measured in docs/wire.md) ---
MESSAGE_BYTES: Final = 16 * MIB  # one message, in or out
INPUT_BUDGET_BYTES: Final = 48 * MIB  # messages over all connections, from their first byte until their calls have ended
SMALL_MESSAGE_BYTES: Final = 64 * KIB  # of a connection's input that always has room
MESSAGE_VALUES: Final = 100_000  # JSON values in a message: `[],[],…` parses to 25 times its size
JSON_DEPTH: Final = 64
INLINE_VALUE_BYTES: Final = 8 * MIB  # a value inside a message, before base64
REPLY_BUDGET_BYTES: Final = 32 * MIB  # large replies over all connections, from reading their bytes until clients have taken them
BATCH_BUDGET_BYTES: Final = 32 * MIB  # replies of batches over all connections that are collected until the last one is there
SMALL_REPLY_BYTES: Final = 64 * KIB  # a reply of this size always has room, whatever its client has yet to take
BATCH_ITEMS: Final = 1_000
RUNNING_INPUT_BYTES: Final = 32 * MIB  # of a connection's input in memory; it is read on when there is less
CALLS_PER_CONNECTION: Final = 64  # running at once; further ones wait in order
LONG_POLLS_PER_CONNECTION: Final = 32
LONG_POLL_SECONDS: Final = 300
CONNECTIONS: Final = 128
FDS_PER_CALL: Final = 2
BAD_MESSAGES_IN_A_ROW: Final = 16
PROGRESS_PER_SECOND: Final = 10
SLOW_READER_SECONDS: Final = 30.0
PASSED_BY_SECONDS: Final = 1.0  # how long who wants much room for a reply lets others go first who want little
CROWDED_SECONDS: Final = 10.0  # how long others wait for what a slow client holds before it is looked at
CROWDED_BYTES_PER_SECOND: Final = MIB  # that it has to take or give from then on
IDLE_CONNECTION_SECONDS: Final = 3_600.0
SILENT_SECONDS: Final = 10.0  # for which a client was silent that has to make way for another one, where there are CONNECTIONS
STOP_SECONDS: Final = 20.0
TERMINATOR_GRACE_SECONDS: Final = 0.020
SEND_QUEUE_MESSAGES: Final = 4
SEND_QUEUE_BYTES: Final = MIB  # and what is over it; a client's further calls begin when it has taken some
STREAM_MESSAGE_BYTES: Final = MIB  # plain bytes in a message of a stream: some milliseconds of a client's JSON reader
STREAM_WINDOW: Final = 4  # messages of a stream not yet answered: enough to hide the way there and back, little to hold in memory
STREAMS_PER_CONNECTION: Final = 16
STREAM_IDLE_SECONDS: Final = 60.0  # without the message that a stream waits for; it holds memory and share files meanwhile
URGENT_CALLS_PER_CONNECTION: Final = 128  # more than full streams have waiting (16 times 4 writes and a close): an abort gets through
JOBS_RUNNING: Final = 64  # detached calls and the store's own long work
JOBS_KEPT: Final = 200  # that have ended; their results stay in memory
JOB_RESULTS_BYTES: Final = 16 * MIB  # of them together, but for the last
SAFE_INTEGER: Final = 2**53 - 1  # what every JSON reader holds exactly

# --- Objects ---
KEY_BYTES: Final = 1_024
REFERENCES: Final = 10_000
REFERENCE_BYTES: Final = 255
USER_METADATA_BYTES: Final = 16 * KIB  # the `user` member, as CBOR
LIST_ITEMS: Final = 1_000
LIST_BYTES: Final = 8 * MIB

# --- Shards ---
SHARD_NUMBERS: Final = 10_000  # of one store: those of another one, which lets us read there, count from a multiple of it on

# --- Names ---
NAME_VALUE_BYTES: Final = 512 * KIB  # half of what a store-wide row holds; what is larger belongs into the content store

# --- Logs ---
LOG_PAGE_ENTRIES: Final = 1_000  # some 100 KiB
LOG_PAGE_BYTES: Final = 256 * KIB  # a page is closed rather than made larger, for its head is written anew with each append
LOG_EMBED_BYTES: Final = 64 * KIB  # larger content is never embedded: a page with one entry still fits under a name
LOG_APPENDS: Final = 256  # appends that wait are published together, at most so many
LOCAL_HASH_BYTES: Final = 64  # SHA-512
LOG_PROBLEMS: Final = 100  # that a check names; the first one is the one to look at

# --- Coding ---
CHUNK_SIZE_MIN: Final = 256 * KIB
CHUNK_SIZE_MAX: Final = 4 * MIB
SHARES_MAX: Final = 255  # m; a block index is one byte
CHUNKS_MAX: Final = 2**32 - 1  # chunk number 2³² − 1 seals the chunk table
CHUNK_TABLE_INLINE_BYTES: Final = 32 * KIB  # longer tables become a sealed blob in every share
FOREIGN_TABLE_BYTES: Final = 64 * MIB  # of an object that others wrote: it is held in memory, and may come from servers of theirs

# --- Directory shards ---
SMALL_SHARE_BYTES: Final = 64 * KIB  # a share up to this size is a log entry, a larger one a file
SEGMENT_BYTES: Final = 8 * MIB
SEGMENT_STEP_BYTES: Final = MIB  # of it that is allocated at once
RESERVE_BYTES: Final = 32 * MIB  # of a disk, kept from writes so that deletes go on: a log segment for each of several shards
METASTORE_RESERVE_BYTES: Final = 8 * MIB  # given up when other programs have filled even that
ROW_BYTES: Final = MIB  # a store-wide row's value: an eighth of a log segment on every shard
GROUP_CHANGES: Final = 256  # changes that one group commit takes at most
ROWS_BYTES: Final = 8 * MIB  # of rows that are read from the metastore at once, but for the last
GROUP_BYTES: Final = 8 * MIB  # of their records and references, but for the last change's: 10,000 references are some megabytes

# --- Content ---
PINS: Final = 1_000  # owners of one content: they lie in its record
PIN_REASON_BYTES: Final = 255
UNPINNED_KEPT_SECONDS: Final = 7 * 24 * 3_600  # content that nobody pins is kept at least so long
