"""The shard server's requests: paths and methods to what answers them; docs/shard-server.md.

Each request goes: bearer token → route → body, bounded and compared with its digest → the space, in a worker thread → answer. Errors
are JSON `{"type", "message"}`. Nothing of a token is ever logged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from zstor_local.access.verify import TRUST_BYTES, TokenRefused, verify_trust
from zstor_local.model.ids import NamespaceId, ShardUid
from zstor_local.shards.http.wire import BadWire, parse_id
from zstor_local.shardserver.answer import Answer, as_json, refused
from zstor_local.shardserver.connections import Give
from zstor_local.shardserver.guard import Guard, Guest
from zstor_local.shardserver.log_requests import LogRequests
from zstor_local.shardserver.memory import Memory
from zstor_local.shardserver.metrics import Metrics
from zstor_local.shardserver.refusal import Refusal, of_system
from zstor_local.shardserver.request import Request
from zstor_local.shardserver.share_requests import ShareRequests
from zstor_local.shardserver.space_requests import SpaceRequests
from zstor_local.shardserver.spaces import Spaces
from zstor_local.shardserver.trusting import TrustKeeper
from zstor_local.shardserver.volume import Volume

log = logging.getLogger("zstor.shardserver")


class App:
    """One server. Whoever waits for what comes is answered when `stop` is called."""

    def __init__(self, volume: Volume, guard: Guard, trust: TrustKeeper, metrics: Metrics) -> None:
        self._guard = guard
        self._trust = trust
        self._metrics = metrics
        self._memory = Memory()
        self._spaces = Spaces(volume)
        self._whole = SpaceRequests(self._spaces, self._memory)
        self._logs = LogRequests(self._spaces, self._memory)
        self._shares = ShareRequests(self._spaces, self._memory)
        self._trusting = trio.Lock()  # one document at a time: an older one that is slower must not be the last

    def stop(self) -> None:
        """Let nobody wait any longer for what comes."""
        self._logs.stop()

    async def serve(self, request: Request, give: Give) -> None:
        """See connections.Application."""
        with self._metrics.counting(request.method) as outcome, request.held:
            try:
                answer = await self._answer(request)
            except Refusal as error:
                answer = refused(error)
            except BadWire as error:
                answer = refused(Refusal("bad_request", str(error)))
            except OSError as error:
                answer = refused(of_system(error))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise  # its client is gone: see rpc.http_connection.ending
            except Exception:
                log.exception("a request failed")
                answer = refused(Refusal("failed", "a fault of the shard server's; its log has more"))
            outcome(answer.status)
            await give(answer)

    async def _answer(self, request: Request) -> Answer:
        if request.path == ["health"] and request.method in ("GET", "HEAD"):
            return as_json({"status": "ok"})
        match request.method, request.path:
            case "GET", ["v1", uid, "letters", name]:  # sealed to whoever it is for: no token is asked, who has none comes for one
                return await self._whole.letter(ShardUid(parse_id(uid)), parse_id(name))
        guest = self._guard.admit(request.headers.get("authorization"))
        match request.path:
            case ["metrics"] if request.method == "GET":
                volume = self._spaces.volume
                capacity = await self._spaces.in_thread(volume.capacity)
                text = self._metrics.text([*volume.spaces.values()], capacity)
                return Answer(text.encode(), kind="text/plain; version=0.0.4")
            case ["v1", "trust"] if request.method == "PUT":
                return await self._put_trust(request, guest)
            case ["v1", uid, *rest]:
                return await self._on_space(request, guest, ShardUid(parse_id(uid)), rest)
        raise Refusal("bad_request", "there is nothing of that name")

    async def _on_space(self, request: Request, guest: Guest, uid: ShardUid, rest: Sequence[str]) -> Answer:
        match request.method, rest:
            case "PUT", []:
                return await self._whole.create(request, guest, uid)
            case "GET", []:
                return await self._whole.describe(request, guest, uid)
            case "DELETE", []:
                return await self._whole.remove(request, guest, uid)
            case "POST", ["writer"]:
                return await self._whole.raise_fence(request, guest, uid)
            case "POST", ["log"]:
                return await self._logs.append(request, guest, uid)
            case "GET", ["log"]:
                return await self._logs.page(request, guest, uid)
            case "POST", ["superseded"]:
                return await self._logs.supersede(request, guest, uid)
            case "GET", ["unsettled"]:
                return await self._logs.unsettled(request, guest, uid)
            case (("GET" | "HEAD"), ["shares", name]):
                return await self._shares.read(request, guest, uid, name)
            case "GET", ["shares"]:
                return await self._shares.list(request, guest, uid)
            case "PUT", ["uploads", name]:
                return await self._shares.put_part(request, guest, uid, name)
            case "POST", ["uploads", name]:
                return await self._shares.finish(request, guest, uid, name)
            case "DELETE", ["uploads", name]:
                return await self._shares.abort(request, guest, uid, name)
            case "POST", ["free"]:
                return await self._shares.free(request, guest, uid)
            case "PUT", ["letters"]:
                return await self._whole.keep_letters(request, guest, uid)
            case "PUT", ["letters", name]:
                return await self._whole.put_letter(request, guest, uid, parse_id(name))
            case "PUT", ["namespaces", name]:
                return await self._whole.name(request, guest, uid, NamespaceId(parse_id(name)))
            case "DELETE", ["namespaces", name]:
                return await self._whole.retire(request, guest, uid, NamespaceId(parse_id(name)))
        raise Refusal("method_not_allowed", "no such request")

    async def _put_trust(self, request: Request, guest: Guest) -> Answer:
        """A newer trust document of the bearer's issuer: it proves itself."""
        body = await request.body(TRUST_BYTES, self._memory, guest.bearer)
        async with self._trusting:
            try:
                known = self._guard.verifier.trusts[guest.token.issuer]
                trust = verify_trust(body.decode("ascii", "replace"), known)
            except TokenRefused as error:
                raise Refusal("bad_request", str(error)) from None
            await self._spaces.in_thread(self._trust.keep, trust.issuer, body)
            self._guard.verifier.trust(trust)
        return Answer(status=204)
