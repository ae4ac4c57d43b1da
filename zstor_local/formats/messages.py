"""The messages of 3/REMOTE-LOG and 2/MVDS, with the field numbers of their specifications.

Sources: vacp2p/rfc-index docs/ift-ts/raw/3/remote-log.md, 2/mvds.md and 4/mvds-meta.md. The two services' `Content` would clash within
one package, so the name system's is vac.ns.Content; package names are not on the wire.
"""

from __future__ import annotations

from typing import Final

from zstor_local.formats.protobuf import Field, Schema

# --- The content-addressed store and the name system ---

CONTENT: Final = Schema("vac.cas.Content", (Field(1, "data", "bytes"),))
ADDRESS: Final = Schema("vac.cas.Address", (Field(1, "id", "bytes"),))
NAME_UPDATE: Final = Schema("vac.ns.NameUpdate", (Field(1, "name", "string"), Field(2, "content", "bytes")))
QUERY: Final = Schema("vac.ns.Query", (Field(1, "name", "string"),))
NAME_CONTENT: Final = Schema("vac.ns.Content", (Field(1, "data", "bytes"),))
RESPONSE: Final = Schema("vac.ns.Response", (Field(1, "data", "bytes"),))

# --- The remote log ---

PAIR: Final = Schema(
    "vac.remotelog.RemoteLog.Pair", (Field(1, "remoteHash", "bytes"), Field(2, "localHash", "bytes"), Field(3, "data", "bytes"))
)
REMOTE_LOG: Final = Schema("vac.remotelog.RemoteLog", (Field(1, "pair", PAIR, repeated=True), Field(2, "tail", "bytes")))

# --- MVDS ---

METADATA: Final = Schema("vac.mvds.Metadata", (Field(1, "parents", "bytes", repeated=True), Field(2, "ephemeral", "bool")))
MESSAGE: Final = Schema(
    "vac.mvds.Message",
    (
        Field(6001, "group_id", "bytes"),
        Field(6002, "timestamp", "int64"),
        Field(6003, "body", "bytes"),
        Field(6004, "metadata", METADATA),
    ),
)
PAYLOAD: Final = Schema(
    "vac.mvds.Payload",
    (
        Field(5001, "acks", "bytes", repeated=True),
        Field(5002, "offers", "bytes", repeated=True),
        Field(5003, "requests", "bytes", repeated=True),
        Field(5004, "messages", MESSAGE, repeated=True),
    ),
)
