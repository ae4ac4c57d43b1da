"""Invitations and letters: how another user's daemon comes to read a namespace. Pure: random bytes and the time are given.

An invitation is `zstor1` and base64url of a CBOR map {0: 1, 1: store id, 2: namespace id, 3: sealed}. What is sealed, with HPKE
(RFC 9180; X25519, HKDF-SHA256, AES-256-GCM) to the user's public key, bound to both ids, is a `Pass`. From then on letters on the shard
servers renew it: the same, sealed with the key that the first one brought, so that only the owner can have written them. That key
follows from a master key. Once such keys are retired letters are sealed to the reader's public key too, and bring that of later ones.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from zstor_local import limits
from zstor_local.coding.keys import KEY_BYTES, NamespaceKeys
from zstor_local.errors import CorruptRecord, InvalidParams
from zstor_local.model.fields import decode, encode, expect_schema, policy_fields, take, take_list, take_policy, take_sized
from zstor_local.model.ids import ID_BYTES, NamespaceId, StoreId, check_namespace
from zstor_local.model.policy import Policy

TokenSourceKind = Literal["letters", "authority"]
PREFIX: Final = "zstor1"
PLACES: Final = 500  # at once: each costs its reader a connection
_SCHEMA: Final = 1
_FOR_ONE: Final = 2  # of a letter: what is a pass inside is sealed to a public key
_TOKEN: Final = re.compile(r"[A-Za-z0-9._-]{0,8192}\Z")  # goes into a header as it is
_TEXT_CHARACTERS: Final = 4_096
_INVITATION: Final = b"zstor/1 invitation"
_LETTER: Final = b"zstor/1 letter"
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@dataclass(frozen=True, slots=True)
class Place:
    """A shard server's place of the owner's store: its number in placements, its name and URL."""

    number: int
    id: str
    url: str


@dataclass(frozen=True, slots=True, repr=False)
class Pass:
    """What a reader needs; repr shows none of it. `record_keys` newest first; `token` is "" once there is no permission any more;
    `made` in microseconds: of two the later counts. `policy` and `created`: the namespace's, which are only shown. `through`: the last
    sequences that the oldest of the keys open, as they were replaced since.
    """

    namespace: str
    namespace_id: NamespaceId
    store_id: StoreId
    user: str
    record_keys: tuple[bytes, ...]
    places: tuple[Place, ...]
    source: TokenSourceKind
    organization: str
    token: str
    letter_key: bytes
    letter_id: bytes
    made: int
    policy: Policy = field(default_factory=Policy)
    created: int = 0
    through: tuple[int, ...] = ()

    def is_of_one_owner_with(self, other: Pass) -> bool:
        """Whether who wrote one of them has written the other: nobody else but its reader knows the key of the letters."""
        one, another = ((each.store_id, each.namespace_id, each.letter_id, each.letter_key) for each in (self, other))
        return one == another

    def encode(self) -> bytes:
        places = [[place.number, place.id, place.url] for place in self.places]
        return encode(
            {
                0: _SCHEMA,
                1: self.namespace,
                2: self.namespace_id,
                3: self.store_id,
                4: self.user,
                5: [*self.record_keys],
                6: places,
                7: self.source,
                8: self.organization,
                9: self.token,
                10: self.letter_key,
                11: self.letter_id,
                12: self.made,
                13: policy_fields(self.policy),
                14: self.created,
                **({15: [*self.through]} if self.through else {}),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Pass:
        """The reverse of `encode`; CorruptRecord for anything else."""
        try:
            plain = decode(data)
            expect_schema(plain, _SCHEMA)
            record_keys, places = take_list(plain, 5, bytes), take_list(plain, 6, list)
            through = take_list(plain, 15, int) if 15 in plain else []  # since 0.3
            source, token = take(plain, 7, str), take(plain, 9, str)
            if not _are_keys(record_keys, through) or not _are_places(places) or not _TOKEN.match(token):
                raise CorruptRecord("a key, a place or the token cannot be one")
            made, created = take(plain, 12, int), take(plain, 14, int, 0)
            if max(made, created) > limits.SAFE_INTEGER:  # it is shown
                raise CorruptRecord("a time is none")
            if source not in ("letters", "authority"):
                raise CorruptRecord("tokens come from elsewhere")
            return cls(
                namespace=check_namespace(take(plain, 1, str)),
                namespace_id=NamespaceId(take_sized(plain, 2, ID_BYTES)),
                store_id=StoreId(take_sized(plain, 3, ID_BYTES)),
                user=take(plain, 4, str),
                record_keys=tuple(record_keys),
                places=tuple(Place(*each) for each in places),
                source="letters" if source == "letters" else "authority",
                organization=take(plain, 8, str),
                token=token,
                letter_key=take_sized(plain, 10, KEY_BYTES),
                letter_id=take_sized(plain, 11, ID_BYTES),
                made=made,
                policy=take_policy(plain, 13) if 13 in plain else Policy(),  # before 0.2
                created=created,
                through=tuple(through),
            )
        except (CorruptRecord, InvalidParams) as error:
            raise CorruptRecord(
                f"that invitation is not one of this version: {error}", hint="use the newest zstor, or ask for another one"
            ) from None


def _are_places(places: Sequence[Sequence[Any]]) -> bool:
    """Whoever wrote them may be up to anything: they become requests, and are shown to people."""
    if len(places) > PLACES:
        return False
    numbers = set()
    for place in places:
        if [type(each) for each in place] != [int, str, str]:
            return False
        number, *texts = place
        if not 0 <= number < limits.SHARD_NUMBERS or any(len(text) > _TEXT_CHARACTERS or not text.isprintable() for text in texts):
            return False
        numbers.add(number)
    return len(numbers) == len(places)


def _are_keys(keys: Sequence[bytes], through: Sequence[int]) -> bool:
    return len(keys) >= max(1, len(through)) and all(len(key) == KEY_BYTES for key in keys)


def public_key(private: bytes) -> str:
    """The public key of 32 random bytes, as an invitation takes it."""
    return base64.urlsafe_b64encode(X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()).rstrip(b"=").decode()


def parse_public_key(text: str) -> bytes:
    """32 bytes, or InvalidParams."""
    data = _from_base64(text)
    if len(data) != KEY_BYTES or not any(data):
        raise InvalidParams("that is no public key", hint="the user's `zstor namespace join` prints theirs", parameter="public_key")
    return data


def seal_invitation(given: Pass, public: bytes) -> str:
    """The invitation, for the bearer of the public key alone."""
    info = _INVITATION + given.store_id + given.namespace_id
    try:
        sealed = _SUITE.encrypt(given.encode(), X25519PublicKey.from_public_bytes(public), info)
    except ValueError:
        raise InvalidParams(
            "that is no public key", hint="the user's `zstor namespace join` prints theirs", parameter="public_key"
        ) from None
    data = encode({0: _SCHEMA, 1: given.store_id, 2: given.namespace_id, 3: sealed})
    return PREFIX + base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def open_invitation(text: str, private: bytes) -> Pass:
    """What the invitation gives, or InvalidParams."""
    text = "".join(text.split())
    try:
        plain = decode(_from_base64(text.removeprefix(PREFIX)))
        expect_schema(plain, _SCHEMA)
        if not text.startswith(PREFIX):
            raise InvalidParams("that is no invitation")
        info = _INVITATION + take(plain, 1, bytes) + take(plain, 2, bytes)
        return Pass.decode(_SUITE.decrypt(take(plain, 3, bytes), X25519PrivateKey.from_private_bytes(private), info))
    except (ValueError, InvalidTag, CorruptRecord, InvalidParams):
        raise InvalidParams(
            "that invitation does not open", hint="it must be whole, and made for the key that `zstor namespace join` prints here"
        ) from None


def seal_letter(given: Pass, salt: bytes, public: bytes | None = None, before: Secret | None = None) -> bytes:
    """What renews a pass, for whoever has the one before, which may bear another secret. `salt` is 32 fresh random bytes. With a
    public key for its bearer alone.
    """
    secret = before or Secret(given.letter_key, given.letter_id)
    bound, plain = _bound(given, secret.id), given.encode()
    if public is not None:
        plain = encode({0: _FOR_ONE, 1: _SUITE.encrypt(plain, X25519PublicKey.from_public_bytes(public), bound)})
    return NamespaceKeys(secret.key).seal_record(salt, bound, plain)


def open_letter(letter: bytes, before: Pass, private: bytes) -> Pass:
    """The newer pass, or the one before if the letter is older; CorruptRecord if the owner did not write it, or for another one."""
    bound = _bound(before, before.letter_id)
    plain = NamespaceKeys(before.letter_key).open_record(bound, letter)
    outer = decode(plain)
    if outer.get(0) == _FOR_ONE:
        try:
            plain = _SUITE.decrypt(take(outer, 1, bytes), X25519PrivateKey.from_private_bytes(private), bound)
        except (CorruptRecord, ValueError, InvalidTag):
            raise CorruptRecord("a letter is for another reader") from None
    opened = Pass.decode(plain)
    if (opened.store_id, opened.namespace_id) != (before.store_id, before.namespace_id):
        raise CorruptRecord("a letter is of another namespace")
    return opened if opened.made >= before.made else before


def _bound(given: Pass, letter_id: bytes) -> bytes:
    return _LETTER + given.store_id + given.namespace_id + letter_id


def _from_base64(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        return b""


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """What seals the letters to one reader, and under what name they lie."""

    key: bytes
    id: bytes


def letter_secrets(store_wide: NamespaceKeys, namespace: NamespaceId, public: bytes) -> Sequence[Secret]:
    """Those of the letters to a public key, one from each master key, the newest first. Nobody else who was invited knows them."""
    bound = namespace + public
    keys = store_wide.derive_each(b"zstor/1 letter key" + bound, KEY_BYTES)
    return [*map(Secret, keys, store_wide.derive_each(b"zstor/1 letter id" + bound, ID_BYTES))]
