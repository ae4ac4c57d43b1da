"""The configuration: what the file, the environment and the flags say, checked, as one frozen value.

Flag > environment > file > default (README, “Disks of its own”). Nothing here opens a file: the edge reads the text and hands it in.
The daemon and the command read the same file, so both find the same socket.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Literal

from zstor_local import limits
from zstor_local.configfile import ConfigError as ConfigError
from zstor_local.configfile import Source, Table
from zstor_local.errors import InvalidParams
from zstor_local.model.ids import check_namespace
from zstor_local.model.policy import Policy

AuthorityKind = Literal["builtin", "itsyouonline"]

_SHARD_ID: Final = re.compile(r"[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?\Z")
_SHARD_SCHEMES: Final = ("file", "http", "https", "http+unix")
_METASTORE_SCHEMES: Final = ("file", "http", "https")  # a SQLite file, or etcd's gateway
_AUTHORITY_SCHEMES: Final = ("http", "https")


@dataclass(frozen=True, slots=True)
class ShardConfig:
    """A `[[shard]]`: its short name, where it is, and which others fail together with it (none given: its file system or host)."""

    id: str
    url: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class AuthorityConfig:
    """Who creates namespaces and signs tokens: built in, or a service that speaks ItsYou.Online's API at `url`.

    For that service `credentials_file` holds a user's API key and `keys_file` the public key of its tokens.
    """

    kind: AuthorityKind = "builtin"
    url: str | None = None
    organization: str = "local"
    credentials_file: str | None = None
    keys_file: str | None = None


@dataclass(frozen=True, slots=True)
class ScrubConfig:
    """How often everything is read and proved: once in `days`, at most `rate` bytes a second."""

    days: int = 30
    rate: int = 20 * limits.MIB


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be set. Paths are absolute.

    `shards` empty means the default store: six directories under `store`. `write_quorum` none means what the policy asks for at
    least. `metastore_url` none means `metastore.sqlite` in the store. `twirp` is where the original wire of the remote log is served:
    `unix:/PATH` and loopback `HOST:PORT`. `file` is the configuration file, there or not.
    """

    store: str
    socket: str
    master_key_file: str
    default_namespace: str = "default"
    write_quorum: int | None = None
    allowed_roots: tuple[str, ...] = ()
    shards: tuple[ShardConfig, ...] = ()
    policy: Policy = field(default_factory=Policy)
    metastore_url: str | None = None
    authority: AuthorityConfig = field(default_factory=AuthorityConfig)
    scrub: ScrubConfig = field(default_factory=ScrubConfig)
    twirp: tuple[str, ...] = ()
    file: str | None = None


def config_file(environment: Mapping[str, str], flag: str | None = None) -> tuple[str, bool]:
    """Where the configuration file is, and whether it was asked for by name (then it must exist)."""
    if flag is not None:
        return _absolute(flag, "--config"), True
    if named := environment.get("ZSTOR_CONFIG"):
        return _absolute(named, "ZSTOR_CONFIG"), True
    return posixpath.join(_base_directory(environment, "XDG_CONFIG_HOME", ".config"), "zstor", "config.toml"), False


def load_config(
    *,
    text: str | None,
    file: str,
    environment: Mapping[str, str],
    socket: str | None = None,
    namespace: str | None = None,
) -> Config:
    """The configuration from a file's text (None: there is no file), the environment, and the flags `--socket` and `--namespace`.

    Raises ConfigError for an unknown key, a wrong type, a value out of range, a path that is relative or not UTF-8, or text that is not
    TOML.
    """
    top = Source(file, text or "", home=environment.get("HOME", "")).top()
    policy = _policy(top)
    file_socket = top.path("socket")
    file_namespace = top.text("default_namespace")
    if file_namespace is not None:
        _check_namespace(file_namespace, lambda why: top.error("default_namespace", why))
    if namespace is not None:
        _check_namespace(namespace, lambda why: ConfigError(f"--namespace: {why}"))
    config = Config(
        store=top.path("store") or posixpath.join(_base_directory(environment, "XDG_DATA_HOME", ".local/share"), "zstor"),
        socket=_socket(environment, flag=socket, from_file=file_socket),
        master_key_file=top.path("master_key_file")
        or posixpath.join(_base_directory(environment, "XDG_CONFIG_HOME", ".config"), "zstor", "master.key"),
        default_namespace=namespace or file_namespace or "default",
        write_quorum=top.integer("write_quorum", low=policy.write_quorum, high=policy.m),
        allowed_roots=top.paths("allowed_roots"),
        shards=_shards(top),
        policy=policy,
        metastore_url=_metastore(top),
        authority=_authority(top),
        scrub=_scrub(top),
        twirp=_twirp(top),
        file=file,
    )
    top.refuse_the_rest()
    for path in (config.store, config.socket, config.master_key_file, *config.allowed_roots, *(shard.url for shard in config.shards)):
        _check_text(path)
    return config


def _check_text(path: str) -> None:
    """ConfigError for a path that is not UTF-8: Python takes such bytes for lone surrogates, which no answer could hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"the path {path!r} is not UTF-8; name another place in the configuration or the environment") from None


def _socket(environment: Mapping[str, str], *, flag: str | None, from_file: str | None) -> str:
    """The order that the daemon, the command and every client try."""
    if flag is not None:
        return _absolute(flag, "--socket")
    if named := environment.get("ZSTOR_SOCKET"):
        return _absolute(named, "ZSTOR_SOCKET")
    if from_file is not None:
        return from_file
    if (runtime := environment.get("XDG_RUNTIME_DIR", "")).startswith("/"):
        return posixpath.join(runtime, "zstor", "zstor.sock")
    return posixpath.join(_base_directory(environment, "XDG_STATE_HOME", ".local/state"), "zstor", "run", "zstor.sock")


def _base_directory(environment: Mapping[str, str], variable: str, default: str) -> str:
    """A directory of the XDG Base Directory Specification, which says to ignore relative values."""
    if (value := environment.get(variable, "")).startswith("/"):
        return value
    home = environment.get("HOME", "")
    if not home.startswith("/"):
        raise ConfigError(f"neither {variable} nor HOME names a directory; set HOME")
    return posixpath.join(home, default)


def _absolute(path: str, name: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise ConfigError(f"{name} is not an absolute path: {path!r}")
    return posixpath.normpath(path)


def _check_namespace(name: str, error: Callable[[str], ConfigError]) -> None:
    try:
        check_namespace(name)
    except InvalidParams as refusal:
        raise error(f"{refusal.message}: {name!r} ({refusal.hint})") from None


# --- The tables of the file ---


def _policy(top: Table) -> Policy:
    table = top.table("policy")
    default = Policy()
    try:
        policy = Policy(
            k=_or(table.integer("k", low=1, high=limits.SHARES_MAX), default.k),
            m=_or(table.integer("m", low=1, high=limits.SHARES_MAX), default.m),
            chunk_size=_or(table.integer("chunk_size", low=limits.CHUNK_SIZE_MIN, high=limits.CHUNK_SIZE_MAX), default.chunk_size),
            compression=table.choice("compression", {"zstd": "zstd", "none": "none"}) or default.compression,
            padding=table.choice("padding", {"none": "none", "padme": "padme"}) or default.padding,
        )
    except InvalidParams as refusal:
        raise top.error("policy", refusal.message) from None
    table.refuse_the_rest()
    return policy


def _shards(top: Table) -> tuple[ShardConfig, ...]:
    shards: list[ShardConfig] = []
    for table in top.tables("shard"):
        name, url = table.text("id"), table.url("url", _SHARD_SCHEMES)
        if name is None or url is None:
            raise table.error("id", "a [[shard]] needs id and url")
        if not _SHARD_ID.match(name):
            raise table.error("id", f"id is 1 to 63 of a-z, 0-9, _ and -, not {name!r}")
        if any(name == other.id for other in shards):
            raise table.error("id", f"there are two shards {name!r}")
        if any(url == other.url for other in shards):
            raise table.error("url", f"two shards have the url {url!r}")
        shards.append(ShardConfig(name, url, table.text("group")))
        table.refuse_the_rest()
    return tuple(shards)


def _metastore(top: Table) -> str | None:
    table = top.table("metastore")
    url = table.url("url", _METASTORE_SCHEMES)
    table.refuse_the_rest()
    return url


def _authority(top: Table) -> AuthorityConfig:
    table = top.table("authority")
    default = AuthorityConfig()
    kinds: Mapping[str, AuthorityKind] = {"builtin": "builtin", "itsyouonline": "itsyouonline"}
    authority = AuthorityConfig(
        kind=table.choice("kind", kinds) or default.kind,
        url=table.url("url", _AUTHORITY_SCHEMES),
        organization=table.text("organization") or default.organization,
        credentials_file=table.path("credentials_file"),
        keys_file=table.path("keys_file"),
    )
    if authority.kind == "builtin" and (authority.credentials_file or authority.keys_file):
        raise table.error("kind", "kind builtin has neither credentials_file nor keys_file")
    if (authority.url is None) != (authority.kind == "builtin"):
        raise table.error("kind", "kind itsyouonline needs a url, kind builtin has none")
    table.refuse_the_rest()
    return authority


def _scrub(top: Table) -> ScrubConfig:
    table = top.table("scrub")
    default = ScrubConfig()
    scrub = ScrubConfig(
        days=_or(table.integer("days", low=1, high=3_650), default.days),
        rate=_or(table.integer("rate", low=limits.MIB, high=limits.SAFE_INTEGER), default.rate),
    )
    table.refuse_the_rest()
    return scrub


def _twirp(top: Table) -> tuple[str, ...]:
    table = top.table("twirp")
    places = table.texts("listen")
    for place in places:
        if "\0" in place or not (place.startswith("unix:/") or _is_loopback(place)):
            raise table.error("listen", f"Twirp is served at unix:/PATH, 127.0.0.1:PORT and [::1]:PORT only, not at {place!r}")
    table.refuse_the_rest()
    return places


def _is_loopback(place: str) -> bool:
    """Whether that is an address of this machine alone, with a port."""
    host, _, port = place.rpartition(":")
    try:
        return ip_address(host.strip("[]")).is_loopback and 0 <= int(port) < 1 << 16
    except ValueError:
        return False


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
