"""Sample contents, and what every IPFS tool calls them (docs of the profile, checked with two independent implementations)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final


def pattern(size: int, seed: bytes = b"ipfs") -> bytes:
    """sha256(seed ‖ u32 big-endian i) for i = 0, 1, 2, … in a row, cut to the size."""
    return b"".join(hashlib.sha256(seed + i.to_bytes(4)).digest() for i in range(-(-size // 32)))[:size]


@dataclass(frozen=True, slots=True)
class Sample:
    """A content with its ids: of the profile unixfs-v1-2025, of one raw block, CIDv0; and of our own CAR file of it."""

    name: str
    data: bytes
    cid: str
    raw: str
    v0: str
    car_bytes: int
    car_sha256: str


SAMPLES: Final = (
    Sample(
        "empty",
        b"",
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
        "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
        "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH",
        96,
        "50e7408f2eeee58f0a305319619dcc4c89baa7b8425550b9e1b4fdecc020699e",
    ),
    Sample(
        "hello",
        b"hello\n",
        "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am",
        "bafkreicysg23kiwv34eg2d7qweipxwosdo2py4ldv42nbauguluen5v6am",
        "QmZULkCELmmk5XNfCgTnCyFgAVxBRBXyDHGGMVoLFLiXEN",
        102,
        "5e33102dc537d5797eb831fa1cb084af5577b8d6072b062dc63f39902542c2c9",
    ),
    Sample(
        "pattern(262143)",
        pattern(262143),
        "bafkreibthejaaqgo7vjwhzb3ep3rqhhjjtjopgygshprbbzmubxjiz6fq4",
        "bafkreibthejaaqgo7vjwhzb3ep3rqhhjjtjopgygshprbbzmubxjiz6fq4",
        "QmQfnM4e1XhSNpHhySg2PRYzGwWLhaBo7h1Luvut9y8grm",
        262241,
        "7b591da696cde4eda190c69c487b9bc93b6063bd7ae62128a0fbbecdaa5f297e",
    ),
    Sample(
        "pattern(262144)",
        pattern(262144),
        "bafkreieyaw3loekbi7az5puilx4eqxbxxkqfjazk4nl5t4p4vce4rhfasi",
        "bafkreieyaw3loekbi7az5puilx4eqxbxxkqfjazk4nl5t4p4vce4rhfasi",
        "QmWtekfSe1dUDHvh6zs6o7bnn7xbUL7yPH9SNoaxJaS6cH",
        262242,
        "71dd3bc22558aa47432b03fd8091c444bf1b8d56eaf2af9296e1ea4f924e86b5",
    ),
    Sample(
        "pattern(1048577)",
        pattern(1048577),
        "bafybeidahv3j7o73kjqdm22pwk6d5jhxdylbdwofsbhpe7thcnvygljume",
        "bafkreibplnzb7jinfqnijeziawrmc5oh3tatklkgkwgvnm4ptir7an2eaq",
        "QmdQvQMLw7fPQbFuDWTh7WgJRJTxdceMmsLGRnsvjvDZvg",
        1048854,
        "be1709afcb329d6589c5f8fe6efe612fbb6fb8ea747c4aaecf620d92c6a75e44",
    ),
    Sample(
        "pattern(5242880)",
        pattern(5242880),
        "bafybeiervx77psoae3tq6mg5cb2ld6g6szfa3oe52rgtbdnniseewmny2y",
        "bafkreiavimoo5v65flduxz2np5a66pq3n2vt5iahrrypfebca6s55ypkpi",
        "QmRRPZLNaPaSWQ4Skc8XjGmQcZMh5sF4AKKKRZGDBHsGsK",
        5243431,
        "75c1a39203e9221e6d2d25e21add6e6b3f4fd262de940a3abaa3599086db85c2",
    ),
)
