"""The connection of a call that goes on as a job: nobody listens, progress is kept for those who ask about the job."""

from __future__ import annotations

from typing import TypeVar, cast

from zstor_local.errors import NotSupported
from zstor_local.rpc.budget import Room
from zstor_local.rpc.call import Peer, Work
from zstor_local.store.jobs import Job

T = TypeVar("T")


class JobConnection:
    """See rpc.call.Connection."""

    def __init__(self, peer: Peer, reply_room: Room) -> None:
        self._peer = peer
        self._reply_room = reply_room
        self._states: dict[type, object] = {}
        self.job: Job | None = None

    @property
    def peer(self) -> Peer:
        return self._peer

    @property
    def reply_room(self) -> Room:
        return self._reply_room

    @property
    def replies_only(self) -> bool:
        return False

    def state(self, kind: type[T]) -> T:
        if kind not in self._states:
            self._states[kind] = kind()
        return cast(T, self._states[kind])

    def begin(self, work: Work) -> None:
        raise NotSupported("streams of messages need a connection", hint="call it without detach, or with a descriptor or a path")

    async def notify(self, method: str, params: object) -> None:
        pass

    def offer(self, method: str, params: object) -> None:
        """What Call.progress sends."""
        if self.job is not None and isinstance(params, dict):
            self.job.progress(params["progress"], params.get("total"), params.get("message"))

    def client_gone(self) -> bool:
        return False
