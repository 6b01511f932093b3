"""Sessions in Redis: who is here, and through which node."""

from typing import Any

import orjson

from serve_app.chat.conversations import Session, SessionStore
from serve_app.state.scripts import Scripts


class RedisSessions(SessionStore):
    """Keeps sessions in Redis, shared by every node."""

    def __init__(self, scripts: Scripts) -> None:
        """Use `scripts`."""
        self._scripts = scripts

    async def touch(self, *, client_id: str, node: str, timestamp: str, connected: bool) -> tuple[Session, bool]:
        """See `SessionStore.touch`."""
        raw, new = await self._scripts.run("session", client_id, node, timestamp, "1" if connected else "")
        return _session(raw), bool(new)

    async def list(self, *, limit: int, offset: int) -> tuple[list[Session], int]:
        """See `SessionStore.list`."""
        total, *found = await self._scripts.run("sessions", limit, offset)
        return [_session(raw) for raw in found], int(total)


def _session(raw: Any) -> Session:
    data = orjson.loads(raw)
    return Session(
        client_id=data["client_id"],
        user_id=data["user_id"],
        node=data["node"],
        created_at=data["created_at"],
        connected_at=data["connected_at"],
        status=data["status"],
        conversations=dict(data["conversations"]),
    )
