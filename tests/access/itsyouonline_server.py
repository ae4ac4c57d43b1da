"""A server with ItsYou.Online's API as facts/0-stor.md §3 has it: real HTTP on loopback, real ES384 tokens, organisations in memory.

`answers` puts other answers in front of its own: a status, bytes to send as they are, or DROP, by method and path.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import h11
import jwt
import trio

from zstor_local.access.signing import SEED_BYTES, SigningKey

DROP: Final = "the connection ends without an answer"
DROP_AFTER: Final = "it is done, and the connection ends without an answer"
NAME: Final = re.compile(r"[a-z0-9_. -]{3,150}\Z")
Reply = tuple[int, bytes]


@dataclass
class Organization:
    owners: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)
    invited: set[str] = field(default_factory=set)


@dataclass
class ItsYouOnlineServer:
    """Run `serve`; then it listens on `url`."""

    now: Callable[[], int]
    keys: dict[tuple[str, str], str] = field(
        default_factory=lambda: {("alice-id", "alice-secret"): "alice", ("bob-id", "bob-secret"): "bob"}
    )
    people: set[str] = field(default_factory=lambda: {"alice", "bob", "eve", "tom"})
    organizations: dict[str, Organization] = field(default_factory=dict)
    signing: SigningKey = field(default_factory=lambda: SigningKey.from_seed(bytes(range(SEED_BYTES))))
    answers: dict[tuple[str, str], list[int | bytes | str]] = field(default_factory=lambda: defaultdict(list))
    seen: list[tuple[str, str]] = field(default_factory=list)
    tokens: dict[str, tuple[str, int]] = field(default_factory=dict)
    expires_in: int = 86_400
    url: str = ""

    def calls(self, method: str, path: str) -> int:
        return self.seen.count((method, path))

    def accept(self, user: str) -> None:
        """The user takes up every invitation."""
        for organization in self.organizations.values():
            if user in organization.invited:
                organization.invited.discard(user)
                organization.members.add(user)

    # --- HTTP ---

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            self.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            task_status.started()
            await trio.serve_listeners(self._client, [listener], handler_nursery=nursery)

    async def _client(self, stream: trio.SocketStream) -> None:
        async with stream:
            connection = h11.Connection(h11.SERVER)
            while await self._request(connection, stream):
                connection.start_next_cycle()

    async def _request(self, connection: h11.Connection, stream: trio.SocketStream) -> bool:
        request, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                try:
                    connection.receive_data(await stream.receive_some())
                except trio.BrokenResourceError:
                    return False
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        assert request is not None
        split = urlsplit(request.target.decode())
        method = request.method.decode()
        self.seen.append((method, split.path))
        planned = self.answers[method, split.path]
        plan = planned.pop(0) if planned else None
        if plan == DROP:
            return False
        if isinstance(plan, bytes):
            await stream.send_all(plan)
            return False
        headers = {name.decode().lower(): value.decode() for name, value in request.headers}
        reply = (
            (plan, b"" if plan == 204 else b"{}")
            if isinstance(plan, int)
            else self._answer(method, split.path, dict(parse_qsl(split.query)), headers, body)
        )
        if plan == DROP_AFTER:
            return False
        status, content = reply
        data = connection.send(h11.Response(status_code=status, headers=[("content-length", str(len(content)))], reason=b""))
        data = (data or b"") + (connection.send(h11.Data(content)) or b"") + (connection.send(h11.EndOfMessage()) or b"")
        await stream.send_all(data)
        return connection.our_state is h11.DONE

    # --- The API ---

    def _answer(self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> Reply:
        if path == "/v1/oauth/access_token":
            return self._login(query) if method == "POST" else (404, b"")
        user = self._user(headers.get("authorization", ""))
        parts = path.removeprefix("/api/").split("/")
        if not path.startswith("/api/organizations") or user is None:
            return 401, b""
        match method, parts[1:]:
            case "POST", []:
                return self._create(user, json.loads(body)["globalid"])
            case "POST", [parent]:
                name = json.loads(body)["globalid"]
                if not name.startswith(f"{parent}.") or "." in name[len(parent) + 1 :].removeprefix("0stor"):
                    return 400, b""
                return self._create(user, name) if self._owns(user, parent) else (403, b"")
        _, name, *rest = parts
        if not (self._owns(user, name) if method != "GET" else self._sees(user, name)):
            return 403, b""
        match method, rest:
            case "GET", []:
                return 200, b"{}"
            case "GET", ["tree"]:
                return 200, json.dumps(self._tree(name)).encode()
            case "GET", ["users"]:
                return self._users(name)
            case "DELETE", []:
                for each in [each for each in self.organizations if each == name or each.startswith(f"{name}.")]:
                    del self.organizations[each]
                return 204, b""
            case "POST", ["members"]:
                return self._invite(name, json.loads(body)["searchstring"])
            case "DELETE", ["members", user]:
                return self._expel(name, user)
        return 404, b""

    def _login(self, query: dict[str, str]) -> Reply:
        user = self.keys.get((query.get("client_id", ""), query.get("client_secret", "")))
        if user is None or query.get("grant_type") != "client_credentials":
            return 400, b""
        if query.get("response_type") == "id_token":
            return 200, self._sign(user, int(query["validity"]), [each for each in query["scope"].split(",") if each])
        token = secrets.token_hex(8)
        self.tokens[token] = user, self.now() + self.expires_in
        told = {"access_token": token, "token_type": "bearer", "scope": "user:admin", "expires_in": self.expires_in}
        return 200, json.dumps({**told, "info": {"username": user}}).encode()

    def _sign(self, user: str, seconds: int, scopes: list[str]) -> bytes:
        """Scopes that the user does not hold are dropped, and it is still a 200. Neither sub nor kid."""
        held = [each for each in scopes if self._belongs(user, each.removeprefix("user:memberof:"))]
        claims = {"username": user, "azp": "alice-id", "iss": "itsyouonline", "scope": held, "exp": self.now() + min(seconds, 86_400)}
        return jwt.encode(claims, self.signing._key, "ES384").encode()

    def _user(self, header: str) -> str | None:
        user, until = self.tokens.get(header.removeprefix("token "), ("", 0))
        return user if self.now() < until else None

    def _create(self, user: str, name: str) -> Reply:
        if not NAME.match(name):
            return 400, b""
        if name in self.organizations:
            return 409, b""
        parent = name.rpartition(".")[0]
        if parent and parent not in self.organizations:
            return 404, b""
        self.organizations[name] = Organization(owners={user})
        return 201, b"{}"

    def _above(self, name: str) -> list[Organization]:
        labels = name.split(".")
        found = (self.organizations.get(".".join(labels[:count])) for count in range(1, len(labels) + 1))
        return [each for each in found if each is not None]

    def _owns(self, user: str, name: str) -> bool:
        return name in self.organizations and any(user in each.owners for each in self._above(name))

    def _sees(self, user: str, name: str) -> bool:
        return name in self.organizations and self._belongs(user, name)

    def _belongs(self, user: str, name: str) -> bool:
        return name in self.organizations and any(user in each.owners | each.members for each in self._above(name))

    def _tree(self, name: str) -> dict[str, object]:
        below = [each for each in sorted(self.organizations) if each.startswith(f"{name}.") and "." not in each[len(name) + 1 :]]
        return {"globalid": name, "children": [self._tree(each) for each in below]}

    def _users(self, name: str) -> Reply:
        organization = self.organizations[name]
        users = [{"username": user, "role": "owner", "missingscopes": []} for user in sorted(organization.owners)]
        users += [{"username": user, "role": "member", "missingscopes": []} for user in sorted(organization.members)]
        return 200, json.dumps({"haseditpermissions": True, "users": users}).encode()

    def _invite(self, name: str, user: str) -> Reply:
        organization = self.organizations[name]
        if user not in self.people:
            return 404, b""
        if user in organization.owners | organization.members:
            return 409, b""
        organization.invited.add(user)
        return 201, b"{}"

    def _expel(self, name: str, user: str) -> Reply:
        organization = self.organizations[name]
        there = user in organization.members | organization.invited
        organization.members.discard(user)
        organization.invited.discard(user)
        return (204 if there else 404), b""
