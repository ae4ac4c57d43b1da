"""The laws of access.authority.Authority, as tests that every implementation passes: inherit and give a `subject` fixture."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import pytest

from zstor_local.access.authority import Authority
from zstor_local.access.trust import parse_trust
from zstor_local.access.verify import TokenRefused, Verified, verify
from zstor_local.errors import AlreadyExists, NotFound, PermissionDenied
from zstor_local.model.permission import ALL, PERMISSIONS, Permission, Rights


@dataclass(frozen=True)
class Subject:
    """An authority under test. `accept`: the user takes up his invitations, where rights are given by such; `holder`: a user for whom
    the authority signs tokens (None: only for the owner); `now`: its clock, in seconds."""

    authority: Authority
    accept: Callable[[str], Awaitable[None]]
    holder: str | None
    now: Callable[[], int]

    async def give(self, namespace: str, user: str, *permissions: Permission) -> None:
        await self.authority.give(namespace, user, Rights.of(permissions))
        await self.accept(user)

    async def verified(
        self, namespace: str, permissions: Sequence[Permission], user: str | None = None, seconds: int = 300
    ) -> Verified:
        """What a shard server that trusts the authority makes of its token."""
        token = await self.authority.token(namespace, permissions, user, seconds)
        trust = parse_trust(json.dumps(await self.authority.trust()))
        return verify(token.text, {trust.issuer: trust}, self.now())


class AuthorityLaws:
    """What holds for every authority."""

    async def test_namespaces_are_created_and_deleted(self, subject: Subject) -> None:
        authority = subject.authority
        assert await authority.namespaces() == []
        await authority.create("photos")
        await authority.create("music")
        assert await authority.namespaces() == ["music", "photos"]
        await authority.delete("music")
        assert await authority.namespaces() == ["photos"]
        await authority.delete("music")

    async def test_a_namespace_is_created_once(self, subject: Subject) -> None:
        await subject.authority.create("photos")
        with pytest.raises(AlreadyExists):
            await subject.authority.create("photos")

    async def test_rights_go_with_their_namespace(self, subject: Subject) -> None:
        authority = subject.authority
        await authority.create("photos")
        await subject.give("photos", "bob", "admin", "read")
        await authority.delete("photos")
        await authority.create("photos")
        assert await authority.get("photos", "bob") == Rights()
        assert "bob" not in await authority.users("photos")

    @pytest.mark.parametrize("permission", PERMISSIONS)
    async def test_each_right_is_given_and_removed_by_itself(self, subject: Subject, permission: Permission) -> None:
        authority, right = subject.authority, Rights.of([permission])
        await authority.create("photos")
        await authority.create("music")
        await subject.give("photos", "bob", permission)
        assert await authority.get("photos", "bob") == right
        assert await authority.get("photos", "eve") == Rights()
        assert await authority.get("music", "bob") == Rights()
        assert (await authority.remove("photos", "bob", ALL - right)).rights == right
        assert (await authority.remove("photos", "bob", right)).rights == Rights()
        assert await authority.get("photos", "bob") == Rights()

    async def test_giving_and_removing_twice_is_doing_it_once(self, subject: Subject) -> None:
        authority = subject.authority
        await authority.create("photos")
        await subject.give("photos", "bob", "read")
        await subject.give("photos", "bob", "read", "write")
        assert await authority.get("photos", "bob") == Rights(read=True, write=True)
        for _ in range(2):
            given = await authority.remove("photos", "bob", Rights(read=True))
            assert given.rights == Rights(write=True)

    async def test_everybody_with_a_right_is_listed(self, subject: Subject) -> None:
        await subject.authority.create("photos")
        await subject.give("photos", "bob", "read")
        await subject.give("photos", "eve", "admin")
        await subject.give("photos", "tom", "write")
        await subject.authority.remove("photos", "tom", ALL)
        users = await subject.authority.users("photos")
        assert (users["bob"], users["eve"]) == (Rights(read=True), Rights(admin=True))
        assert "tom" not in users

    async def test_there_are_no_rights_in_what_is_not_there(self, subject: Subject) -> None:
        authority = subject.authority
        await authority.create("photos")
        for attempt in (
            authority.give("musik", "bob", ALL),
            authority.get("musik", "bob"),
            authority.users("musik"),
        ):
            with pytest.raises(NotFound):
                await attempt

    async def test_a_token_of_the_owner_bears_what_was_asked_for_and_no_more(self, subject: Subject) -> None:
        await subject.authority.create("photos")
        verified = await subject.verified("photos", ["read", "delete"], seconds=60)
        assert verified.rights == {"photos": Rights(read=True, delete=True)}
        assert 0 < verified.expires - subject.now() <= 61
        admin = await subject.verified("photos", ["admin"])
        assert admin.allows("photos", "write")
        assert not admin.allows("music", "read")

    async def test_a_user_gets_a_token_only_for_what_was_given(self, subject: Subject) -> None:
        await subject.authority.create("photos")
        if subject.holder is None:
            pytest.skip("this authority signs for its own user alone")
        await subject.give("photos", subject.holder, "read")
        verified = await subject.verified("photos", ["read"], subject.holder)
        assert (verified.user, verified.rights) == (subject.holder, {"photos": Rights(read=True)})
        for permissions in (["write"], ["read", "write"], ["admin"], []):
            with pytest.raises(PermissionDenied):
                await subject.authority.token("photos", permissions, subject.holder, 300)  # type: ignore[arg-type]
        await subject.authority.remove("photos", subject.holder, Rights(read=True))
        with pytest.raises(PermissionDenied):
            await subject.authority.token("photos", ["read"], subject.holder, 300)

    async def test_a_token_ends(self, subject: Subject) -> None:
        await subject.authority.create("photos")
        token = await subject.authority.token("photos", ["read"], None, 60)
        trust = parse_trust(json.dumps(await subject.authority.trust()))
        assert verify(token.text, {trust.issuer: trust}, token.expires - 1).expires == token.expires
        with pytest.raises(TokenRefused, match="expired"):
            verify(token.text, {trust.issuer: trust}, token.expires + 11)

    async def test_nothing_secret_shows(self, subject: Subject) -> None:
        await subject.authority.create("photos")
        token = await subject.authority.token("photos", ["read"], None, 60)
        assert token.text not in repr(token)
        assert '"d"' not in json.dumps(await subject.authority.trust())
