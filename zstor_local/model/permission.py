"""Rights in a namespace, and the scopes that say them in tokens.

A scope is `user:memberof:O.0stor.N` with `.read`, `.write` or `.delete` behind it; without, it is admin, which implies the others.
Neither O nor N hold a dot that could be misread: scopes are compared as the parsed (namespace, verb) they mean, never by prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Final, Literal, get_args

from zstor_local.errors import InvalidParams
from zstor_local.model.ids import check_namespace

Permission = Literal["read", "write", "delete", "admin"]
PERMISSIONS: Final[tuple[Permission, ...]] = get_args(Permission)
OWNER: Final = "owner"  # the user of the daemon: has every right, and nobody else may bear the name

STORE_NAMESPACE: Final = "_store"  # no namespace's name: admin there is the daemon of the store itself, which may do everything

_SCOPE_PREFIX: Final = "user:memberof:"
_MIDDLE: Final = ".0stor."
_ORGANIZATION: Final = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?\Z")
_USER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,254}\Z")


@dataclass(frozen=True, slots=True)
class Rights:
    """What a user may do in a namespace, as given: `admin` alone allows everything."""

    read: bool = False
    write: bool = False
    delete: bool = False
    admin: bool = False

    @classmethod
    def of(cls, permissions: Iterable[Permission]) -> Rights:
        return cls(**dict.fromkeys(permissions, True))

    @property
    def names(self) -> tuple[Permission, ...]:
        """Those given, in the order of PERMISSIONS."""
        return tuple(name for name in PERMISSIONS if getattr(self, name))

    def __or__(self, other: Rights) -> Rights:
        return Rights.of({*self.names, *other.names})

    def __sub__(self, other: Rights) -> Rights:
        return Rights.of(name for name in self.names if name not in other.names)

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def allows(self, permission: Permission) -> bool:
        """Whether the permission was given, or all of them with admin."""
        return self.admin or bool(getattr(self, permission))


ALL: Final = Rights(read=True, write=True, delete=True, admin=True)


def scope(organization: str, namespace: str, permission: Permission) -> str:
    """The scope that says the permission."""
    stem = f"{_SCOPE_PREFIX}{organization}{_MIDDLE}{namespace}"
    return stem if permission == "admin" else f"{stem}.{permission}"


def parse_scope(text: str, organization: str) -> tuple[str, Permission] | None:
    """The namespace and permission that a scope means in this organization; None for any other scope."""
    stem = f"{_SCOPE_PREFIX}{organization}{_MIDDLE}"
    if not text.startswith(stem):
        return None
    namespace, dot, verb = text[len(stem) :].partition(".")
    permission = next((each for each in PERMISSIONS[:3] if each == verb), None) if dot else "admin"
    if namespace == STORE_NAMESPACE and permission is not None:
        return namespace, permission
    try:
        return None if permission is None else (check_namespace(namespace), permission)
    except InvalidParams:
        return None


def check_user(name: str) -> str:
    """The name itself, or InvalidParams."""
    if not _USER.match(name):
        raise InvalidParams(
            "that is not a user's name",
            hint="1 to 255 of A-Z, a-z, 0-9 and . _ @ + -, beginning with a letter or digit",
            parameter="user",
        )
    return name


def check_organization(name: str) -> str:
    """The name itself, or InvalidParams. Like a namespace's: no dots, so that scopes can mean one thing only."""
    if not _ORGANIZATION.match(name) or "_0stor_" in name:
        raise InvalidParams(
            "that is not an organization's name",
            hint="1 to 63 of a-z, 0-9, _ and -, beginning and ending with a letter or digit, without _0stor_",
        )
    return name
