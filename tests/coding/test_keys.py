"""Keys derive as the RFCs say, records open only as what they were, and no key shows itself."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from hypothesis import given
from hypothesis import strategies as st

from zstor_local.coding.keys import KeyHasher, KeyRing, NamespaceKeys, commitment, expand
from zstor_local.errors import CorruptRecord
from zstor_local.model.ids import NamespaceId, StoreId

MASTER = bytes(range(100, 132))
STORE = StoreId(b"store id 16bytes")
ONE, TWO = NamespaceId(b"namespace number"), NamespaceId(b"another number..")
SALT = bytes(range(32))
RING = KeyRing(MASTER, STORE)


@pytest.mark.parametrize(
    ("prk", "info", "okm"),
    [
        (
            "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5",
            "f0f1f2f3f4f5f6f7f8f9",
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            "06a6b88c5853361a06104c9ceb35b45cef760014904671014a193f40c15fc244",
            bytes(range(0xB0, 0x100)).hex(),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
            "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            "19ef24a32c717b167f33a91d6f648bdf96596776afdb6377ac434c1c293ccb04",
            "",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
    ids=["RFC 5869 A.1", "RFC 5869 A.2", "RFC 5869 A.3"],
)
def test_expand_is_hkdf_expand(prk: str, info: str, okm: str) -> None:
    for length in (16, 32, len(okm) // 2):
        assert expand(bytes.fromhex(prk), bytes.fromhex(info), length) == bytes.fromhex(okm)[:length]


def test_wrap_is_rfc_3394() -> None:
    """§4.6: 256 bits of key data under a 256-bit key."""
    keys = NamespaceKeys(bytes(32))
    keys._sealing.wrapping = bytes(range(32))
    data_key = bytes.fromhex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
    wrapped = bytes.fromhex("28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21")
    assert keys.wrap(data_key) == wrapped
    assert keys.unwrap(wrapped) == data_key


@given(st.binary(max_size=300), st.binary(max_size=100), st.binary(min_size=32, max_size=32))
def test_a_record_opens_as_it_was(plain: bytes, associated: bytes, salt: bytes) -> None:
    keys = RING.namespace(ONE)
    sealed = keys.seal_record(salt, associated, plain)
    assert sealed[:32] == salt
    assert len(sealed) == len(plain) + 48
    assert keys.open_record(associated, sealed) == plain


@pytest.mark.parametrize("at", [0, 31, 32, 40, -1])
def test_a_damaged_record_is_corrupt(at: int) -> None:
    sealed = bytearray(RING.namespace(ONE).seal_record(SALT, b"associated", b"a record"))
    sealed[at] ^= 1
    with pytest.raises(CorruptRecord):
        RING.namespace(ONE).open_record(b"associated", bytes(sealed))


def test_a_record_opens_only_in_its_place() -> None:
    sealed = RING.namespace(ONE).seal_record(SALT, b"associated", b"a record")
    assert RING.namespace(ONE).open_record(b"associated", sealed) == b"a record"
    for keys, associated, data in [
        (RING.namespace(TWO), b"associated", sealed),
        (RING.store_wide(), b"associated", sealed),
        (KeyRing(MASTER, StoreId(b"another store id")).namespace(ONE), b"associated", sealed),
        (KeyRing(bytes(32), STORE).namespace(ONE), b"associated", sealed),
        (RING.namespace(ONE), b"Associated", sealed),
        (RING.namespace(ONE), b"associated", sealed[:47]),
        (RING.namespace(ONE), b"associated", b""),
    ]:
        with pytest.raises(CorruptRecord):
            keys.open_record(associated, data)


def test_the_same_record_under_two_salts_has_nothing_in_common() -> None:
    keys = RING.namespace(ONE)
    one, two = (keys.seal_record(salt, b"", bytes(64))[32:] for salt in (SALT, bytes(32)))
    assert bytes(a ^ b for a, b in zip(one, two, strict=True)).count(0) < 8


def test_a_wrapped_key_opens_only_whole_and_in_its_namespace() -> None:
    wrapped = RING.namespace(ONE).wrap(bytes(32))
    assert len(wrapped) == 40
    assert RING.namespace(ONE).unwrap(wrapped) == bytes(32)
    for keys, data in [
        (RING.namespace(TWO), wrapped),
        (RING.namespace(ONE), wrapped[:-1] + bytes([wrapped[-1] ^ 1])),
        (RING.namespace(ONE), wrapped[:-8]),
        (RING.namespace(ONE), wrapped + bytes(8)),
        (RING.namespace(ONE), aes_key_wrap(expand(RING.record_keys(ONE)[0], b"zstor/1 wrap"), bytes(24))),
        (RING.namespace(ONE), b""),
    ]:
        with pytest.raises(CorruptRecord):
            keys.unwrap(data)


def test_a_data_key_is_wrapped_anew_with_the_key_that_seals() -> None:
    ring = KeyRing(MASTER, STORE)
    keys = ring.namespace(ONE)
    before = keys.wrap(bytes(32))
    assert keys.wrap_anew(before) == before
    ring.announce(bytes(32))
    assert keys.wrap_anew(before) == before  # as yet
    ring.switch()
    after = keys.wrap_anew(before)
    assert KeyRing(bytes(32), STORE).namespace(ONE).unwrap(after) == bytes(32)
    assert keys.wrap_anew(after) == after
    assert keys.wrap_anew(bytes(40)) == bytes(40)  # of no use to anybody, and no reason to refuse a change of its record


def test_every_key_is_its_own() -> None:
    keys = {RING.record_keys(ONE)[0], RING.record_keys(TWO)[0], RING._record_key(MASTER, None), MASTER}
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)
    assert len(commitment(SALT)) == 16
    assert commitment(SALT) != commitment(MASTER)


def test_keys_of_a_namespace_are_derived_once() -> None:
    assert RING.namespace(ONE) is RING.namespace(ONE)
    assert RING.store_wide() is RING.store_wide()


def test_an_invited_namespace_opens_with_its_record_key_alone() -> None:
    sealed = RING.namespace(ONE).seal_record(SALT, b"", b"shared")
    assert NamespaceKeys(RING.record_keys(ONE)[0]).open_record(b"", sealed) == b"shared"


def test_nothing_shows_a_key() -> None:
    for thing in (RING, RING.namespace(ONE), KeyHasher(MASTER)):
        for key in (MASTER, RING.record_keys(ONE)[0]):
            assert key.hex() not in repr(thing)
            assert repr(key)[2:-1] not in repr(thing)


def test_key_hashes_tell_namespaces_and_keys_apart() -> None:
    hasher = KeyHasher(MASTER)
    hashes = [hasher.key_hash(namespace, key) for namespace in (ONE, TWO) for key in ("a", "b", "ab", "ä", "x" * 1024)]
    hashes.append(KeyHasher(bytes(32)).key_hash(ONE, "a"))
    assert len(set(hashes)) == len(hashes)
    assert all(len(value) == 16 for value in hashes)
    assert hasher.key_hash(ONE, "a") == hashes[0]


def test_sizes_are_checked_where_keys_come_in() -> None:
    for call in (
        lambda: KeyRing(b"short", STORE),
        lambda: KeyRing(MASTER, StoreId(b"short")),
        lambda: RING.namespace(NamespaceId(b"short")),
        lambda: NamespaceKeys(b"short"),
        lambda: RING.namespace(ONE).seal_record(b"short", b"", b""),
        lambda: RING.namespace(ONE).wrap(b"short"),
        lambda: KeyHasher(b"short"),
        lambda: KeyHasher(MASTER).key_hash(NamespaceId(b"short"), "a"),
    ):
        with pytest.raises(ValueError):
            call()
