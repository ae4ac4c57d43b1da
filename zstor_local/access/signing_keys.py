"""What the built-in authority keeps to sign with: its keys and revocations, as one row that changes as a whole."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zstor_local.access.signing import SigningKey
from zstor_local.access.trust import LEEWAY_SECONDS, TOKEN_SECONDS_MAX, Revocation
from zstor_local.errors import CorruptRecord, NotFound
from zstor_local.model.fields import decode, encode, expect_schema, take, take_list

SCHEMA = 1
REVOCATIONS_MAX = 2_000  # a row, and the document that servers are told of, hold so many; they are forgotten after a day


@dataclass(frozen=True, slots=True)
class KeptKey:
    """A key and from when on it signs, in seconds since 1970 UTC."""

    key: SigningKey
    signs_from: int


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """Keys in the order in which they sign, and what was revoked. Times are seconds since 1970 UTC. `retired`: how many older master
    keys counted no more when they were made.
    """

    keys: tuple[KeptKey, ...] = ()
    revoked: tuple[Revocation, ...] = ()
    retired: int = 0

    def signer(self, now: int) -> SigningKey | None:
        """The newest key whose time has come; None if there is none."""
        return next((kept.key for kept in reversed(self.keys) if kept.signs_from <= now), None)

    def with_key(self, key: SigningKey, signs_from: int, now: int) -> SigningKeys:
        """The ring with one key more. One that was to sign later than this is dropped: it has signed nothing."""
        kept = tuple(each for each in self.pruned(now).keys if each.signs_from <= signs_from)
        return replace(self, keys=(*kept, KeptKey(key, signs_from)))

    def without_key(self, kid: str, now: int) -> SigningKeys:
        """The ring without a key, at once: its tokens count no more. NotFound if it is not in it."""
        left = tuple(kept for kept in self.pruned(now).keys if kept.key.kid != kid)
        if len(left) == len(self.pruned(now).keys):
            raise NotFound("there is no such signing key", hint="`zstor token keys` lists them")
        return replace(self, keys=left)

    def with_revocation(self, revocation: Revocation, now: int) -> SigningKeys:
        """The ring with one revocation more. Instead of more than REVOCATIONS_MAX one that covers every token until now."""
        kept = self.pruned(now)
        if len(kept.revoked) < REVOCATIONS_MAX:
            return replace(kept, revoked=(*kept.revoked, revocation))
        until = max(each.until for each in (*kept.revoked, revocation))
        return replace(kept, revoked=(Revocation(until, issued_until=self.last_second(None, None, now)),))

    def first_second(self, user: str, namespace: str, now: int) -> int:
        """When a new token of the user may claim to be issued: behind the last second that a revocation covers."""
        covered = (
            each.issued_until
            for each in self.revoked
            if each.issued_until is not None and each.sub in (None, user) and each.namespace in (None, namespace)
        )
        return max((now, *(second + 1 for second in covered)))

    def last_second(self, user: str | None, namespace: str | None, now: int) -> int:
        """The last second that a token issued by now may claim: behind a revocation it lies ahead. None: of any user or namespace."""
        met = (
            each.issued_until + 1
            for each in self.revoked
            if each.issued_until is not None
            and (each.sub is None or user in (None, each.sub))
            and (each.namespace is None or namespace in (None, each.namespace))
        )
        return max((now, *met))

    def pruned(self, now: int) -> SigningKeys:
        """Without what can concern no valid token any more: a key goes once its successor has signed for the longest life of one."""
        successors = [*(kept.signs_from for kept in self.keys[1:]), None]
        over = now - TOKEN_SECONDS_MAX - LEEWAY_SECONDS
        keys = (kept for kept, until in zip(self.keys, successors, strict=False) if until is None or until > over)
        return SigningKeys(tuple(keys), tuple(each for each in self.revoked if each.until > now), self.retired)

    def since(self, retired: int) -> SigningKeys:
        """The ring without keys that are older than this: whoever has a master key that counts no more may have them too."""
        return self if self.retired >= retired else SigningKeys((), self.revoked, retired)

    def encode(self) -> bytes:
        revoked = [[each.until, each.jti, each.issued_until, each.sub, each.namespace] for each in self.revoked]
        plain: dict[int, object] = {0: SCHEMA, 1: [[kept.key.secret, kept.signs_from] for kept in self.keys], 2: revoked}
        return encode(plain | {3: self.retired} if self.retired else plain)

    @classmethod
    def decode(cls, data: bytes) -> SigningKeys:
        """The reverse of `encode`; CorruptRecord for anything else."""
        plain = decode(data)
        expect_schema(plain, SCHEMA)
        try:
            keys = tuple(KeptKey(SigningKey.parse(secret), signs_from) for secret, signs_from in take_list(plain, 1, list))
            revoked = tuple(Revocation(*each) for each in take_list(plain, 2, list))
            return cls(keys, revoked, take(plain, 3, int, 0))
        except (TypeError, ValueError):
            raise CorruptRecord("the signing keys are malformed", hint="use the newest zstor that wrote to this store") from None
