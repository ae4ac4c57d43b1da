"""Command and daemon start fast: they import what they use, the command nothing of the daemon."""

from __future__ import annotations

import json
import subprocess
import sys

import click
import pytest

from zstor_local.cli.private_daemon import PrivateDaemon
from zstor_local.cli.root import COMMANDS, SUMMARIES, zstor

HEAVY = {
    "trio",
    "httpx",
    "cryptography",
    "rich",
    "blake3",
    "zstandard",
    "zfec",
    "cbor2",
    "asyncio",
    "zstor_local.daemon",
    "zstor_local.rpc",
}
LATER = {  # what daemon and shard server use only for some stores, or only a part of
    "asyncio",
    "http.server",
    "httpx",
    "jsonschema",
    "jwt",
    "rich",
    "zstor_local.access.itsyouonline",
    "zstor_local.store.rebuild",
    "zstor_local.twirp",
}
RUN = """
import json, sys
from zstor_local.cli import main
try:
    main(sys.argv[1:])
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def modules(arguments: list[str], environment: dict[str, str] | None = None) -> set[str]:
    done = subprocess.run([sys.executable, "-c", RUN, *arguments], env=environment, capture_output=True, text=True, check=False)
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["stat", "--help"], ["systemd", "--help"], ["stta"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert modules(arguments) & HEAVY == set()


def test_a_simple_call_imports_nothing_heavy(daemon: PrivateDaemon) -> None:
    assert modules(["call", "rpc.ping"], daemon.environment) & HEAVY == set()
    assert modules(["ls"], daemon.environment) & HEAVY == set()


@pytest.mark.parametrize(
    ("serving", "used"),
    [("zstor_local.cli.service, zstor_local.daemon", set()), ("zstor_local.cli.shard, zstor_local.shardserver.serve", {"jwt"})],
    ids=["a daemon", "a shard server"],
)
def test_what_serves_imports_what_it_uses(serving: str, used: set[str]) -> None:
    program = f"import sys, json, {serving}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) & LATER == used


def test_what_is_used_of_jsonrpcserver_leaves_the_rest_to_be_imported() -> None:
    both = (
        'import zstor_local.rpc.dispatch, jsonrpcserver; print(jsonrpcserver.dispatch(\'{"jsonrpc": "2.0", "method": "x", "id": 1}\'))'
    )
    done = subprocess.run([sys.executable, "-c", both], capture_output=True, text=True, check=True)
    assert '"code": -32601' in done.stdout


def test_the_summaries_are_those_of_the_commands() -> None:
    context = click.Context(zstor)
    commands = {name: zstor.get_command(context, name) for name in COMMANDS}
    found = {name: command.get_short_help_str(200) for name, command in commands.items() if command is not None}
    assert found == SUMMARIES
