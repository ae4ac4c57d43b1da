"""MVDS: message ids, and which messages a log takes."""

from __future__ import annotations

import pytest

from tests.formats.vectors import BY_NAME, VECTORS, message
from zstor_local.formats.messages import MESSAGE, METADATA
from zstor_local.formats.mvds import logged_message_id, message_id
from zstor_local.formats.protobuf import Malformed

WITH_ID = [vector["name"] for vector in VECTORS if "message_id_hex" in vector]


@pytest.mark.parametrize("name", WITH_ID)
def test_a_message_has_the_id_of_its_vector(name: str) -> None:
    assert message_id(message(BY_NAME[name])).hex() == BY_NAME[name]["message_id_hex"]


def test_the_flow_of_alice_and_bob_has_its_id() -> None:
    flow = BY_NAME["flow-alice-bob"]
    assert logged_message_id(bytes.fromhex(flow["mvds_message_hex"])).hex() == flow["local_hash_hex"]


@pytest.mark.parametrize("group", [b"", bytes(31), bytes(33)])
def test_a_group_of_another_length_has_no_place_in_a_log(group: bytes) -> None:
    with pytest.raises(Malformed, match="32 bytes"):
        logged_message_id(MESSAGE.make(group_id=group, timestamp=1, body=b"x").encode())


def test_an_ephemeral_message_has_no_place_in_a_log() -> None:
    lasting = MESSAGE.make(group_id=bytes(32), timestamp=1, body=b"x", metadata=METADATA.make(parents=(bytes(32),)))
    passing = MESSAGE.make(group_id=bytes(32), timestamp=1, body=b"x", metadata=METADATA.make(ephemeral=True))
    assert logged_message_id(lasting.encode()) == message_id(passing)
    with pytest.raises(Malformed, match="ephemeral"):
        logged_message_id(passing.encode())


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(Malformed):
        logged_message_id(b"\x8a")
