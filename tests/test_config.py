"""The configuration: which source wins, and how a wrong setting is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zstor_local.cli.units import SERVICE, drop_ins
from zstor_local.config import AuthorityConfig, Config, ConfigError, ScrubConfig, ShardConfig, config_file, load_config
from zstor_local.model.policy import Policy

HOME = {"HOME": "/home/ann"}
FILE = "/home/ann/.config/zstor/config.toml"


def load(text: str | None = None, *, socket: str | None = None, namespace: str | None = None, **environment: str) -> Config:
    return load_config(text=text, file=FILE, environment=HOME | environment, socket=socket, namespace=namespace)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return str(caught.value)


def test_without_a_file_everything_lies_under_the_home_directory() -> None:
    assert load() == Config(
        store="/home/ann/.local/share/zstor",
        socket="/home/ann/.local/state/zstor/run/zstor.sock",
        master_key_file="/home/ann/.config/zstor/master.key",
        file=FILE,
    )


def test_the_xdg_directories_are_used_and_relative_ones_ignored() -> None:
    config = load(XDG_DATA_HOME="/data", XDG_CONFIG_HOME="/etc/ann", XDG_RUNTIME_DIR="/run/user/7", XDG_STATE_HOME="state")
    assert config.store == "/data/zstor"
    assert config.master_key_file == "/etc/ann/zstor/master.key"
    assert config.socket == "/run/user/7/zstor/zstor.sock"
    assert load(XDG_RUNTIME_DIR="run").socket == "/home/ann/.local/state/zstor/run/zstor.sock"


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default() -> None:
    text = 'socket = "/file.sock"\ndefault_namespace = "from-file"'
    assert load(text, XDG_RUNTIME_DIR="/run").socket == "/file.sock"
    assert load(text, ZSTOR_SOCKET="/environment.sock").socket == "/environment.sock"
    assert load(text, ZSTOR_SOCKET="/environment.sock", socket="/flag.sock").socket == "/flag.sock"
    assert load(text).default_namespace == "from-file"
    assert load(text, namespace="from-flag").default_namespace == "from-flag"


def test_every_key_of_the_file_arrives() -> None:
    config = load("""
        store = "/srv/store"
        socket = "~/zstor.sock"
        default_namespace = "photos"
        write_quorum = 3
        allowed_roots = ["/home/ann", "/srv/in//box/"]
        master_key_file = "/mnt/key/master.key"

        [policy]
        k = 2
        m = 3
        chunk_size = 524288
        compression = "none"
        padding = "padme"

        [[shard]]
        id = "usb"
        url = "/media/usb/zstor"

        [[shard]]
        id = "attic"
        url = "https://attic.example:7000/"
        group = "attic"

        [metastore]
        url = "http://127.0.0.1:2379"

        [authority]
        kind = "itsyouonline"
        url = "https://itsyou.online"
        organization = "acme"

        [scrub]
        days = 7
        rate = 1048576
    """)
    assert config == Config(
        store="/srv/store",
        socket="/home/ann/zstor.sock",
        master_key_file="/mnt/key/master.key",
        default_namespace="photos",
        write_quorum=3,
        allowed_roots=("/home/ann", "/srv/in/box"),
        shards=(ShardConfig("usb", "/media/usb/zstor"), ShardConfig("attic", "https://attic.example:7000/", "attic")),
        policy=Policy(k=2, m=3, chunk_size=524_288, compression="none", padding="padme"),
        metastore_url="http://127.0.0.1:2379",
        authority=AuthorityConfig("itsyouonline", "https://itsyou.online", "acme"),
        scrub=ScrubConfig(7, 1_048_576),
        file=FILE,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('\n\nstroe = "/a"', f"{FILE}:3: unknown key stroe; did you mean store?"),
        ("[policy]\nk = 4\nshards = 3", f"{FILE}:3: unknown key shards; known here: chunk_size, compression, k, m, padding"),
        ("[polcy]\nk = 4", f"{FILE}:1: unknown key polcy; did you mean policy?"),
        ("[policy]\n\nk = 'four'", f"{FILE}:3: k is an integer, not 'four'"),
        ("policy.k = true", f"{FILE}:1: k is an integer from 1 to 255, not true"),
        ("policy = { k = 300 }", f"{FILE}:1: k is an integer from 1 to 255, not 300"),
        ("# x\n[policy]\nk = 5\nm = 3", f"{FILE}:2: k = 5, m = 3: a policy needs 1 ≤ k ≤ m ≤ 255"),
        ("[policy]\ncompression = 'gzip'", f"{FILE}:2: compression is 'zstd' or 'none', not 'gzip'"),
        ("policy = 3", f"{FILE}:1: policy is a table, not 3"),
        ("store = 'here'", f"{FILE}:1: store is an absolute path, not 'here'"),
        ("allowed_roots = '/a'", f"{FILE}:1: allowed_roots is a list of strings, not '/a'"),
        ("allowed_roots = ['/a', 'b']", f"{FILE}:1: allowed_roots is an absolute path, not 'b'"),
        ("write_quorum = 4", f"{FILE}:1: write_quorum is an integer from 5 to 6, not 4"),
        ("[[shard]]\nid='a'\nurl='/a'\n[[shard]]\nid='b'\nurl='ftp://x'", "config.toml:6: url is an absolute path or a URL"),
        ("[[shard]]\nid='a'\nurl='file://media/a'", f"{FILE}:3: url is an absolute path, not 'media/a'"),
        ("[authority]\nkind='itsyouonline'\nurl='/a'", f"{FILE}:3: url is a URL (http://, https://), not '/a'"),
        ("[[shard]]\nid='a'\nurl='/a'\n[[shard]]\nid='a'\nurl='/b'", f"{FILE}:5: there are two shards 'a'"),
        ("[[shard]]\nid='a'\nurl='/a'\n[[shard]]\nid='b'\nurl='/a/'", f"{FILE}:6: two shards have the url '/a'"),
        ("[[shard]]\nid='a'", f"{FILE}:2: a [[shard]] needs id and url"),
        ("[shard]\nid='a'", f"{FILE}:1: shard is an array of tables ([[shard]]), not a table"),
        ("[authority]\nkind = 'itsyouonline'", f"{FILE}:2: kind itsyouonline needs a url"),
        (
            "[twirp]\nlisten = '0.0.0.0:80'",
            f"{FILE}:2: Twirp is served at unix:/PATH, 127.0.0.1:PORT and [::1]:PORT only, not at '0.",
        ),
        ("[twirp]\nlisten = ['127.0.0.1']", f"{FILE}:2: Twirp is served at"),
        ("[twirp]\nlisten = ['localhost:1']", f"{FILE}:2: Twirp is served at"),
        ("[twirp]\nlisten = 'unix:relative'", f"{FILE}:2: Twirp is served at"),
        ('[twirp]\nlisten = "unix:/a\\u0000b"', f"{FILE}:2: Twirp is served at"),
        ("[twirp]\nlisten = 5", f"{FILE}:2: listen is a string or a list of strings, not 5"),
        ("default_namespace = 'A.b'", f"{FILE}:1: that is not a namespace name: 'A.b'"),
        ("a = 1\nb = = 2", f"{FILE}:2: this is not TOML: Invalid value"),
        ("a = '''", f"{FILE}:1: "),
        (f"a = {'9' * 5_000}", f"{FILE}:1: this is not TOML: Exceeds the limit"),
        (f"a = {'[' * 5_000}", f"{FILE}:1: this is not TOML: maximum recursion depth exceeded"),
        ("socket = '/a'\nsocket = '/b'", f"{FILE}:2: this is not TOML: Cannot overwrite a value"),
    ],
)
def test_a_wrong_setting_is_refused_with_file_and_line(text: str, message: str) -> None:
    assert message in refusal(text)


@pytest.mark.parametrize("path", ["/mnt/disk#1/zstor", "/mnt/who?/zstor", "/mnt/50%20full/zstor"])
def test_a_file_url_names_just_the_path_behind_it(path: str) -> None:
    """As a shard's place that was added by `shard.add` does; nothing of it is a query or escaped."""
    config = load(f"[[shard]]\nid='a'\nurl='file://{path}'")
    assert [shard.url for shard in config.shards] == [path]
    units = drop_ins(config, {"XDG_RUNTIME_DIR": "/run/user/1000"}, flags=(), strict=False)
    assert f"ReadWritePaths=-{path.replace('%', '%%')}\n" in units[SERVICE]


def test_the_words_of_a_unit_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """$ begins a variable in the arguments of a command alone, and : parts two paths."""
    monkeypatch.setattr("sys.argv", ["not the command"])
    monkeypatch.setattr("sys.executable", "/opt/$HOME/python")
    environment = {"XDG_RUNTIME_DIR": "/run/user/1000", "XDG_DATA_HOME": "/data/$HOME"}
    units = drop_ins(load("store = '/disks/a:b $USER'"), environment, flags=["--config", "/etc/$USER/${x}.toml"], strict=True)[SERVICE]
    assert "\nExecStart=/opt/$HOME/python -m zstor_local --config /etc/$$USER/$${x}.toml daemon\n" in units
    assert "\nEnvironment=XDG_DATA_HOME=/data/$HOME\n" in units
    assert '\nBindPaths="/disks/a:b $USER"\n' in units
    assert '\nReadWritePaths=-"/disks/a:b $USER"\n' in units


def test_twirp_is_served_nowhere_but_where_it_is_told() -> None:
    assert load("").twirp == ()
    assert load("[twirp]\nlisten = '127.0.0.1:8001'").twirp == ("127.0.0.1:8001",)
    assert load("[twirp]\nlisten = ['unix:/run/x', '[::1]:0']").twirp == ("unix:/run/x", "[::1]:0")


def test_relative_paths_in_flags_and_environment_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="ZSTOR_SOCKET is not an absolute path"):
        load(ZSTOR_SOCKET="run/zstor.sock")
    with pytest.raises(ConfigError, match="--socket is not an absolute path"):
        load(socket="zstor.sock")
    with pytest.raises(ConfigError, match="--namespace: that is not a namespace name"):
        load(namespace="No.Dots")


def test_paths_that_are_not_utf_8_are_refused_before_anything_is_made_there() -> None:
    for environment in ({"XDG_DATA_HOME": "/d\udce9"}, {"HOME": "/home/caf\udce9"}, {"ZSTOR_SOCKET": "/\udce9"}):
        with pytest.raises(ConfigError, match=r"\\udce9.*not UTF-8"):
            load(**environment)
    with pytest.raises(ConfigError, match="not UTF-8"):
        load('allowed_roots = ["~/in"]', HOME="/\udce9", XDG_DATA_HOME="/d", XDG_CONFIG_HOME="/c", XDG_RUNTIME_DIR="/r")


def test_without_a_home_the_message_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match="set HOME"):
        load_config(text=None, file=FILE, environment={})


def test_the_file_is_found_by_flag_then_environment_then_the_xdg_directory() -> None:
    assert config_file(HOME) == (FILE, False)
    assert config_file(HOME | {"XDG_CONFIG_HOME": "/etc/ann"}) == ("/etc/ann/zstor/config.toml", False)
    assert config_file(HOME | {"ZSTOR_CONFIG": "/env.toml"}) == ("/env.toml", True)
    assert config_file(HOME | {"ZSTOR_CONFIG": "/env.toml"}, "/flag.toml") == ("/flag.toml", True)


@given(st.text())
def test_text_that_cannot_be_used_raises_only_config_error_with_the_file(text: str) -> None:
    refused = ""
    try:
        load(text)
    except ConfigError as error:
        refused = str(error)
    assert not refused or refused.startswith(FILE)
