"""A shard server that speaks TLS, and a daemon that takes no other server for it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.shards.ground import STORE, keys, uid
from tests.shardserver.server import LIMIT, Issuer, Server
from zstor_local.access.ownership import OwnerTokens
from zstor_local.model.storewide import ShardEntry
from zstor_local.network import open_network
from zstor_local.shards.base import ShardError
from zstor_local.shards.http.engine import HttpEngine
from zstor_local.shards.marker import Marker
from zstor_local.system import real_runtime


def self_signed(directory: Path, host: x509.GeneralName) -> tuple[Path, Path]:
    """A certificate that vouches for itself, and its key: files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"shards {secrets.token_hex(4)}")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([host]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir()
    (directory / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "key.pem").write_bytes(private)
    return directory / "cert.pem", directory / "key.pem"


LOCAL = x509.IPAddress(ip_address("127.0.0.1"))


@pytest.fixture
def issuer() -> Issuer:
    return Issuer(STORE)


@pytest.fixture
def trust(tmp_path: Path, issuer: Issuer) -> Path:
    file = tmp_path / "trust.json"
    file.write_text(json.dumps(issuer.document()))
    return file


@pytest.fixture
def server(tmp_path: Path, trust: Path) -> Iterator[Server]:
    certificate, key = self_signed(tmp_path / "right", LOCAL)
    server = Server(tmp_path / "data", [trust], "127.0.0.1:0", "--tls-cert", str(certificate), "--tls-key", str(key))
    yield server
    server.stop()


async def use(url: str, issuer: Issuer) -> str:
    """Make a shard there and open it, as a daemon does. Returns its state, or why that did not come to pass."""
    runtime = real_runtime()
    async with open_network() as network:
        tokens = OwnerTokens(lambda: [issuer.key], STORE, "local", runtime.clock, runtime.randomness)
        engine = HttpEngine(runtime, network, tokens, STORE, keys())

        def make_and_open() -> str:
            try:
                engine.create(url, Marker(STORE, uid(0), 0, 1))
            except ShardError as error:
                return str(error)
            shard = engine.open(ShardEntry(0, uid(0), "shard0", url, ""), url)
            try:
                shard.start(1, runtime.randomness)
                return shard.check()
            finally:
                shard.close()

        with trio.fail_after(LIMIT):
            return await trio.to_thread.run_sync(make_and_open)


async def test_a_daemon_uses_a_server_whose_certificate_it_trusts(
    server: Server, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.url.startswith("https://127.0.0.1:")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "right" / "cert.pem"))
    assert await use(server.url, issuer) == "ok"
    assert [*(server.data / "spaces").iterdir()]


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    server: Server, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, _ = self_signed(tmp_path / "other", LOCAL)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert "its certificate is not trusted (" in await use(server.url, issuer)
    assert not [*(server.data / "spaces").iterdir()]


async def test_a_certificate_of_another_host_is_refused(
    tmp_path: Path, trust: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = self_signed(tmp_path / "elsewhere", x509.DNSName("shards.example"))
    server = Server(tmp_path / "data", [trust], "127.0.0.1:0", "--tls-cert", str(certificate), "--tls-key", str(key))
    try:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert "its certificate is not trusted (IP address mismatch" in await use(server.url, issuer)
    finally:
        server.stop()


def test_it_says_nothing_without_tls(server: Server) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.url.replace('https', 'http')}/health", timeout=LIMIT, trust_env=False)
