"""The authority that the configuration names, ready for use."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from zstor_local.access.authority import Authority
from zstor_local.access.builtin import builtin_authority
from zstor_local.config import AuthorityConfig
from zstor_local.errors import InvalidParams
from zstor_local.model.permission import check_organization
from zstor_local.runtime import Files
from zstor_local.store.faults import StoreFault
from zstor_local.store.store import Store


def check_authority(files: Files, config: AuthorityConfig) -> None:
    """StoreFault for settings that cannot be used. Nobody is asked."""
    try:
        check_organization(config.organization)
    except InvalidParams as error:
        raise StoreFault(f"[authority] organization: {error.message}", error.hint or "") from None
    if config.kind != "builtin":
        from zstor_local.access.itsyouonline_opening import read_settings

        read_settings(files, config)


@asynccontextmanager
async def open_authority(store: Store) -> AsyncIterator[Authority]:
    """The authority, until the end. StoreFault for settings that cannot be used."""
    config = store.config.authority
    check_authority(store.runtime.files, config)
    if config.kind == "builtin":
        yield builtin_authority(store)
        return
    from zstor_local.access.itsyouonline_opening import open_itsyouonline  # with an HTTP client, that takes long to import

    async with open_itsyouonline(store.runtime, config) as authority:
        yield authority
