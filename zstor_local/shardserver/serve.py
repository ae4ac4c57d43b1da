"""`zstor shard serve`: the listener, TLS, whom to trust, the signals; one nursery for the server's lifetime."""

from __future__ import annotations

import logging
import os
import signal
import socket
import ssl
import stat
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Final

import trio

from zstor_local import process
from zstor_local.access.verify import TRUST_BYTES, TokenVerifier
from zstor_local.errors import InvalidParams, errno_text
from zstor_local.runtime import SECOND_US, Runtime
from zstor_local.shardserver.app import App
from zstor_local.shardserver.compaction import Compaction
from zstor_local.shardserver.connections import CONNECTIONS, CONNECTIONS_PART, Connections
from zstor_local.shardserver.guard import Guard
from zstor_local.shardserver.metrics import Metrics
from zstor_local.shardserver.trusting import TrustKeeper
from zstor_local.shardserver.volume import TRUST, NoVolume, Volume
from zstor_local.signals import heed
from zstor_local.unix_socket import bind_own

BACKLOG: Final = 128
GRACE_SECONDS: Final = 20.0
TRUST_SECONDS: Final = 300  # between two looks at a trust URL
FETCH_SECONDS: Final = 10.0

log = logging.getLogger("zstor.shardserver")


class ServerFault(Exception):
    """The server cannot start as it was told to. `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Settings:
    """What `zstor shard serve` was told. `trust` holds files and URLs of trust documents."""

    listen: str
    data: str
    trust: Sequence[str]
    tls_certificate: str | None = None
    tls_key: str | None = None
    quota_bytes: int | None = None  # what each space may hold
    plaintext: bool = False  # beyond loopback without TLS, as the network does that itself


async def run(runtime: Runtime, settings: Settings, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends it at once. `ready` is given the URL once it can be asked.

    ServerFault, VolumeInUse.
    """
    check(settings)
    tls = _tls(settings)
    volume = _open(runtime, settings)
    try:
        keeper = TrustKeeper(runtime, f"{settings.data}/{TRUST}")
        verifier = TokenVerifier([])
        await _load_trust(settings.trust, keeper, verifier, must=True)
        guard = Guard(verifier, lambda: runtime.clock.now() // SECOND_US)
        app = App(volume, guard, keeper, Metrics())
        connections = Connections(app, min(CONNECTIONS, runtime.files.descriptors() // CONNECTIONS_PART))
        listener = _bind(settings.listen)
        try:
            async with trio.open_nursery() as nursery:
                stopping = trio.Event()
                with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

                    def stop() -> None:
                        log.info("stopping: running requests end first; another signal stops at once")
                        app.stop()
                        stopping.set()

                    heeding = partial(heed, signals, gently=stop, at_once=nursery.cancel_scope.cancel)
                    nursery.start_soon(heeding)
                    nursery.start_soon(process.give_back_memory, process.resident_bytes, process.cpu_seconds, process.give_back)
                    nursery.start_soon(Compaction(volume).run)
                    nursery.start_soon(_refresh_trust, [each for each in settings.trust if _is_url(each)], keeper, verifier)
                    ready(_url(settings, listener))
                    await connections.serve(listener, tls, until=stopping.wait, grace=GRACE_SECONDS)
                    nursery.cancel_scope.cancel()
        finally:
            listener.close()
            if settings.listen.startswith("unix:"):
                with suppress(FileNotFoundError):
                    os.unlink(settings.listen.removeprefix("unix:"))
    finally:
        volume.close()


def check(settings: Settings) -> None:
    """ServerFault where the settings do not go together."""
    if not settings.trust:
        raise ServerFault("nobody is trusted", "give --trust FILE with what `zstor shard trust` prints, as often as there are stores")
    named = settings.listen.startswith("unix:") and settings.listen != "unix:"  # without a path any user could reach it
    host = None if named else _host_and_port(settings.listen)[0]
    if host is not None and settings.tls_certificate is None and not settings.plaintext and not _is_loopback(host):
        raise ServerFault(
            f"{settings.listen} can be reached from other machines, and tokens would go there in the clear",
            "give --tls-cert and --tls-key, listen on 127.0.0.1, or say --plaintext where the network itself is encrypted",
        )


def _tls(settings: Settings) -> ssl.SSLContext | None:
    """With its certificate, if it has one; ServerFault for what is none."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ServerFault("a certificate needs its key, and the other way round", "give --tls-cert and --tls-key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password="")  # else OpenSSL would ask for one
    except OSError as error:  # ssl.SSLError is one
        what = f"{certificate} and {key}"
        raise ServerFault(
            f"{what} are no certificate and its key: {_words(error)}", "give both in PEM, the key without a password"
        ) from None
    return context


def _open(runtime: Runtime, settings: Settings) -> Volume:
    try:
        return Volume(runtime, settings.data, settings.quota_bytes)
    except NoVolume as error:
        raise ServerFault(str(error), "give a new or empty directory, or one that a shard server has made") from None
    except OSError as error:
        raise ServerFault(f"{error.filename or settings.data}: {errno_text(error)}", "give a directory that you may write to") from None


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_and_port(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdecimal() or len(port) > 5 or int(port) > 65_535:
        raise ServerFault(f"{listen} is no place to listen on", "give HOST:PORT or unix:/PATH")
    return host, int(port)


def _bind(listen: str) -> socket.socket:
    """The listening socket; a Unix one is 0600 from its first moment."""
    try:
        return _bind_unix(listen.removeprefix("unix:")) if listen.startswith("unix:") else _bind_tcp(*_host_and_port(listen))
    except OSError as error:
        raise ServerFault(f"{listen}: {errno_text(error)}", "listen elsewhere") from None
    except UnicodeError:  # of the encoding of host names
        raise ServerFault(f"{listen}: no host can have such a name", "listen elsewhere") from None


def _bind_tcp(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def _bind_unix(path: str) -> socket.socket:
    with suppress(FileNotFoundError):
        _must_be_a_dead_socket(path)
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    bind_own(listener, path)
    listener.listen(BACKLOG)
    return listener


def _must_be_a_dead_socket(path: str) -> None:
    """One that nobody serves any more may be replaced: the lock of the data directory tells of our own, connecting of others'."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise ServerFault(f"{path} is there already, and no socket", "listen elsewhere")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
    raise ServerFault(f"somebody serves {path}", "listen elsewhere")


def _url(settings: Settings, listener: socket.socket) -> str:
    if settings.listen.startswith("unix:"):
        return f"http+unix://{settings.listen.removeprefix('unix:')}"
    host = _host_and_port(settings.listen)[0]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if settings.tls_certificate else 'http'}://{shown}:{listener.getsockname()[1]}"


# --- Whom to trust ---


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


async def _load_trust(sources: Sequence[str], keeper: TrustKeeper, verifier: TokenVerifier, *, must: bool) -> None:
    for source in sources:
        try:
            text = await _fetch(source) if _is_url(source) else await trio.Path(source).read_bytes()
            for trust in keeper.newest([text]):
                known = verifier.trusts.get(trust.issuer)
                if known is None or trust.updated > known.updated:
                    verifier.trust(trust)
        except (InvalidParams, OSError, UnicodeError, trio.TooSlowError) as error:
            why = f"it took longer than {FETCH_SECONDS:.0f} s" if isinstance(error, trio.TooSlowError) else _words(error)
            if must:
                raise ServerFault(f"{source}: {why}", getattr(error, "hint", None) or "give what `zstor shard trust` prints") from None
            log.warning("the trust document at %s was not read again: %s", source, why)


def _words(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


async def _fetch(url: str) -> bytes:
    """By httpx's transport alone: its client looks where a redirect leads, followed or not, and falls over what is no address.

    It takes a while to import, and most servers are given files.
    """
    import httpx

    try:
        async with httpx.AsyncHTTPTransport(trust_env=False) as transport:
            with trio.fail_after(FETCH_SECONDS):
                request = httpx.Request("GET", url, headers={"accept-encoding": "identity"})
                async with aclosing(await transport.handle_async_request(request)) as response:
                    if response.status_code != httpx.codes.OK:
                        raise InvalidParams(f"the answer has status {response.status_code}")
                    body = bytearray()
                    async for piece in response.aiter_raw():
                        body += piece
                        if len(body) > TRUST_BYTES:
                            raise InvalidParams(f"the document is longer than {TRUST_BYTES} bytes")
                    return bytes(body)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InvalidParams(str(error)) from None


async def _refresh_trust(urls: Sequence[str], keeper: TrustKeeper, verifier: TokenVerifier) -> None:
    while urls:
        await trio.sleep(TRUST_SECONDS)
        await _load_trust(urls, keeper, verifier, must=False)
