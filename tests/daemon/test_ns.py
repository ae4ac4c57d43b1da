"""`ns.*` over the wire."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.daemon.client import Client, error_type
from tests.daemon.process import Daemon


def test_a_name_is_set_fetched_listed_and_deleted(client: Client) -> None:
    assert client.result("ns.update", name="page/a", value="one") == {"seq": 1}
    assert client.result("ns.update", name="page/a", value_b64=base64.b64encode(b"\xff").decode(), if_seq=1) == {"seq": 2}
    fetched = client.result("ns.fetch", name="page/a")
    assert (fetched["value_b64"], fetched["seq"]) == ("/w==", 2)
    assert client.refusal("ns.fetch", name="page/a", encoding="utf-8") == "bad_encoding"
    (item,) = client.result("ns.list", prefix="page/")["items"]
    assert item == {"name": "page/a", "seq": 2, "size": 1, "updated_epoch": fetched["updated_epoch"]}
    assert client.result("ns.delete", name="page/a") == {"deleted": True, "seq": 3}
    assert client.refusal("ns.fetch", name="page/a") == "not_found"
    deleted = client.result("ns.fetch", name="page/a", after_seq=2)
    assert (deleted["deleted"], deleted["seq"]) == (True, 3)


def test_a_stale_number_is_a_conflict(client: Client) -> None:
    client.result("ns.update", name="cas", value="1")
    reply = client.call("ns.update", {"name": "cas", "value": "2", "if_seq": 0})
    assert error_type(reply) == "conflict"
    assert reply["error"]["data"]["current"] == 1


def test_nothing_new_is_an_empty_answer(client: Client) -> None:
    assert client.result("ns.fetch", name="never", after_seq=0) == {"seq": 0, "updated_epoch": None}
    client.result("ns.update", name="old", value="x")
    answer = client.result("ns.fetch", name="old", after_seq=1)
    assert answer["seq"] == 1
    assert "value_b64" not in answer


def test_one_change_answers_every_long_poll(daemon: Daemon, client: Client) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(10) as threads:
        clients = [stack.enter_context(daemon.client()) for _ in range(10)]
        polls = [
            threads.submit(each.result, "ns.fetch", name="news", after_seq=0, wait_seconds=300, encoding="utf-8") for each in clients
        ]
        client.result("ns.update", name="news", value="it happened")
        assert {poll.result()["value"] for poll in polls} == {"it happened"}


def test_names_come_in_pages(client: Client) -> None:
    for number in range(5):
        client.result("ns.update", name=f"many/{number}", value="")
    first = client.result("ns.list", prefix="many/", limit=3)
    rest = client.result("ns.list", prefix="many/", limit=3, cursor=first["cursor"])
    assert [item["name"] for item in first["items"] + rest["items"]] == [f"many/{number}" for number in range(5)]
    assert rest["cursor"] is None


@pytest.mark.parametrize("name", ["log/default", ""])
def test_a_name_that_is_not_ones_own_is_refused(client: Client, name: str) -> None:
    assert client.refusal("ns.update", name=name, value="x") == "invalid_params"
