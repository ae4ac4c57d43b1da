"""The connection of a call that goes on as a job: nobody listens, progress is kept for those who ask about the job."""

from __future__ import annotations

from zstor_local.errors import NotSupported
from zstor_local.rpc.budget import Room
from zstor_local.rpc.call import Connection, Peer, Work
from zstor_local.store.jobs import Job


class JobConnection(Connection):
    """What the job's call has in place of a client's."""

    def __init__(self, peer: Peer, reply_room: Room) -> None:
        super().__init__(peer, reply_room)
        self.job: Job | None = None

    @property
    def replies_only(self) -> bool:
        return False

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
