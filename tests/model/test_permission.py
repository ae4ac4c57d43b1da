"""Rights and scopes: what a scope means, and that none means more than it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from zstor_local.errors import InvalidParams
from zstor_local.model.permission import ALL, PERMISSIONS, Permission, Rights, check_organization, check_user, parse_scope, scope

names = some.from_regex(r"\A[a-z0-9]([a-z0-9_-]{0,9}[a-z0-9])?\Z").filter(lambda name: "_0stor_" not in name)


@given(names, names, some.sampled_from(PERMISSIONS))
def test_a_scope_means_what_it_was_made_of(organization: str, namespace: str, permission: Permission) -> None:
    assert parse_scope(scope(organization, namespace, permission), organization) == (namespace, permission)


def test_the_scopes_are_those_of_0_stor() -> None:
    assert scope("local", "photos", "read") == "user:memberof:local.0stor.photos.read"
    assert scope("local", "photos", "admin") == "user:memberof:local.0stor.photos"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "user:memberof:local.0stor.",
        "user:memberof:local.0stor",
        "user:memberof:local",
        "user:memberof:other.0stor.photos",
        "user:memberof:local.0stor.photos.read.read",
        "user:memberof:local.0stor.photos.",
        "user:memberof:local.0stor.photos.admin",
        "user:memberof:local.0stor.photos.READ",
        "user:memberof:local.0stor.Photos.read",
        "user:memberof:local.0stor.photos.read ",
        "user:memberof:local.0stor.photos\n",
        "USER:memberof:local.0stor.photos",
        "local.0stor.photos",
        "organization:owner",
        "user:admin",
    ],
)
def test_any_other_scope_means_nothing(text: str) -> None:
    assert parse_scope(text, "local") is None


@given(some.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    assert parse_scope(f"user:memberof:local.0stor.{text}", "local") in (None, *((text.split(".")[0], verb) for verb in PERMISSIONS))


def test_admin_allows_everything_and_nothing_else_allows_more_than_itself() -> None:
    assert all(Rights(admin=True).allows(permission) for permission in PERMISSIONS)
    assert [permission for permission in PERMISSIONS if Rights(write=True).allows(permission)] == ["write"]


def test_rights_are_added_and_taken_away() -> None:
    assert Rights(read=True) | Rights(write=True) == Rights(read=True, write=True)
    assert ALL - Rights(admin=True) == Rights(read=True, write=True, delete=True)
    assert not Rights(read=True) - ALL


@pytest.mark.parametrize("name", ["", ".", "a b", "a/b", "a\0", "a\n", "ü", "a" * 256, "-a", "@"])
def test_no_user_has_such_a_name(name: str) -> None:
    with pytest.raises(InvalidParams):
        check_user(name)


@pytest.mark.parametrize("name", ["bob", "bob@example.org", "A.B-c_d+e", "1"])
def test_users_have_such_names(name: str) -> None:
    assert check_user(name) == name


@pytest.mark.parametrize("name", ["", "a.b", "a_0stor_b", "A", "-a", "a-", "a" * 64])
def test_no_organization_has_such_a_name(name: str) -> None:
    with pytest.raises(InvalidParams):
        check_organization(name)
