"""Methods about the methods: discovery, help, a sign of life, a dry run."""

from __future__ import annotations

from typing import Annotated, TypedDict

from zstor_local.errors import MethodNotFound
from zstor_local.rpc.call import Call
from zstor_local.rpc.dispatch import Missing, Request, bind
from zstor_local.rpc.openrpc import document, manual, overview
from zstor_local.rpc.registry import Registry
from zstor_local.rpc.strict_json import Json


class MethodSummary(TypedDict):
    """A method in a line."""

    name: str
    synopsis: str
    summary: str


class Checked(TypedDict):
    """A request that would have been run."""

    ok: bool


def register(registry: Registry, *, version: str) -> None:
    """Add the methods; `version` is the daemon's."""

    @registry.method("rpc.ping")
    def ping(call: Call, /) -> str:
        """Answer "pong"."""
        return "pong"

    @registry.method("rpc.methods")
    async def methods(call: Call, /) -> list[MethodSummary]:
        """List the methods."""
        return [{"name": method.name, "synopsis": method.synopsis, "summary": method.summary} for method in registry]

    @registry.method("rpc.discover")
    async def discover(call: Call, /) -> dict[str, object]:
        """Describe all methods, their parameters, results and errors as an OpenRPC document."""
        return {**document(registry, version)}

    @registry.method("rpc.check", errors=[MethodNotFound])
    async def check(
        call: Call,
        /,
        method: Annotated[str, "the method to check for"],
        params: Annotated[list[Json] | dict[str, Json] | None, "its parameters, by position or by name"] = None,
    ) -> Checked:
        """Check a request without running it: the same errors for the method and its parameters, no effect."""
        request = Request(method, {} if params is None else params, Missing.ID, {})
        bind(registry, request, Call(method, call.connection, call.descriptors, call.answered))
        return {"ok": True}

    @registry.method("help", errors=[MethodNotFound])
    async def help_(call: Call, /, method: Annotated[str | None, "leave it out for the list of methods"] = None) -> str:
        """Explain the methods, or one of them, in words."""
        if method is None:
            return overview(registry)
        if method not in registry:
            raise registry.unknown(method)
        return manual(registry[method])
