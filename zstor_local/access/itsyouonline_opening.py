"""ItsYou.Online's service as the configuration names it: its URL, our API key, its public keys."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import ECAlgorithm

from zstor_local.access.itsyouonline import ISSUER, ItsYouOnline
from zstor_local.access.itsyouonline_http import Credentials, Service, http_transport
from zstor_local.access.trust import parse_trust
from zstor_local.config import AuthorityConfig
from zstor_local.errors import InvalidParams, errno_text
from zstor_local.runtime import Files, Runtime, read_exactly
from zstor_local.store.faults import StoreFault

FILE_BYTES: Final = 64 * 1024
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


@asynccontextmanager
async def open_itsyouonline(runtime: Runtime, config: AuthorityConfig) -> AsyncIterator[ItsYouOnline]:
    """The authority, until the end. StoreFault for settings that cannot be used."""
    url, credentials, keys = read_settings(runtime.files, config)
    async with http_transport() as transport:
        yield ItsYouOnline(Service(runtime, transport, url, credentials), config.organization, keys)


def read_settings(files: Files, config: AuthorityConfig) -> tuple[str, Credentials, Sequence[Mapping[str, str]]]:
    """The service's URL, our API key and its public keys. StoreFault for what cannot be used."""
    return _service_url(config), _credentials(files, config), _keys(files, config)


def _service_url(config: AuthorityConfig) -> str:
    """Without `/api`. The API key goes there: over TLS, or not beyond this machine."""
    url = (config.url or "").rstrip("/").removesuffix("/api")
    parts = urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise StoreFault(f"[authority] url {url} would carry the API key in clear", "use https")
    return url


def _credentials(files: Files, config: AuthorityConfig) -> Credentials:
    path = config.credentials_file
    if path is None:
        raise StoreFault("[authority] lacks credentials_file", "a file of mode 0600 with the lines client_id = … and client_secret = …")
    text = _text(files, path, private=True)
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        found = {}
    client_id, secret = found.get("client_id"), found.get("client_secret")
    if not isinstance(client_id, str) or not isinstance(secret, str) or not client_id or not secret:
        raise StoreFault(f"{path} holds no API key", 'two lines: client_id = "…" and client_secret = "…"')
    return Credentials(client_id, secret)


def _keys(files: Files, config: AuthorityConfig) -> Sequence[Mapping[str, str]]:
    """The service's public keys, in PEM or as a JWK Set."""
    path = config.keys_file
    if path is None:
        raise StoreFault("[authority] lacks keys_file", "a file with the service's public key, in PEM or as a JWK Set")
    text = _text(files, path, private=False)
    try:
        if "-----BEGIN" in text:
            key = load_pem_public_key(text.encode())
            if not isinstance(key, ec.EllipticCurvePublicKey):
                raise ValueError
            keys = [{name: value for name, value in ECAlgorithm.to_jwk(key, as_dict=True).items() if isinstance(value, str)}]
        else:
            keys = json.loads(text)["keys"]
        parse_trust(json.dumps({"issuer": ISSUER, "organization": config.organization, "profile": "itsyouonline", "keys": keys}))
    except (ValueError, KeyError, TypeError, InvalidParams):
        raise StoreFault(f"{path} holds no public key for ES384", "the service's key, in PEM or as a JWK Set") from None
    return keys


def _text(files: Files, path: str, *, private: bool) -> str:
    try:
        fd = files.open(path, os.O_RDONLY)
        try:
            status = files.status(fd)
            if private and status.mode & 0o077:
                raise StoreFault(f"{path} can be read by others", f"chmod 600 {path}")
            if not status.is_regular or status.size > FILE_BYTES:
                raise StoreFault(f"{path} is no file of at most {FILE_BYTES} bytes", "name another one in [authority]")
            return read_exactly(files, fd, status.size, 0).decode()
        finally:
            files.close(fd)
    except (OSError, UnicodeDecodeError) as error:
        reason = errno_text(error) if isinstance(error, OSError) else "it is not UTF-8"
        raise StoreFault(f"{path} cannot be read: {reason}", "name another one in [authority]") from None
