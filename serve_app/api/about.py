"""What a node says about itself: which engines speak here, which other nodes there are, and how it is."""

from collections.abc import Awaitable, Callable

from serve_app import __version__
from serve_app.api import errors, wire
from serve_app.chat.messages import now
from serve_app.chat.nodes import NodeStatus, Presence
from serve_app.chat.personalities import Personalities
from serve_app.chat.replicas import ReplicaStore

ENDPOINTS = {
    "GET /": "Service info",
    "GET /health": "Health check",
    "POST /api/chat": "Send message (REST; stream: true for server-sent events)",
    "WS /ws/{client_id}": "Real-time chat (WebSocket)",
    "GET /api/sessions": "List active sessions",
    "POST /api/sessions": "Create session",
    "GET /api/conversations": "List a client's conversations",
    "POST /api/conversations": "Start a conversation",
    "GET /api/conversations/{id}/history": "Get conversation history",
    "DELETE /api/conversations/{id}": "Delete a conversation",
    "GET /api/turns/{id}": "A turn as it stands",
    "GET /api/turns/{id}/events": "Follow or resume a turn (server-sent events)",
    "DELETE /api/turns/{id}": "Stop a turn",
    "GET /api/personalities": "Who there is to talk to",
    "GET /api/pools": "What makes the answers, and how it is",
}


class About:
    """Describes this deployment."""

    def __init__(
        self,
        engines: list[wire.EngineView],
        *,
        ping: Callable[[], Awaitable[bool]],
        presence: Presence | None = None,
        replicas: ReplicaStore | None = None,
    ) -> None:
        """Name `engines`; `ping` says whether Redis answers, `presence` which nodes there are and whether this one leaves.

        `replicas` knows how those of the pools are.
        """
        self._engines = engines
        self._ping = ping
        self._presence = presence
        self._replicas = replicas

    def info(self, node: str, personalities: Personalities) -> wire.ServiceInfo:
        """Return what `GET /` says; the engines are always named, so that nobody takes a script for a language model."""
        known = self._presence.known if self._presence is not None else ()
        named = [
            f"{e.engine}, {e.model}" + ("" if e.language_model else " (a script, not a language model)") for e in self._engines
        ]
        return wire.ServiceInfo(
            service="Aurora chat",
            version=__version__,
            node=node,
            status="running",
            engine="; ".join(named),
            engines=self._engines,
            personalities=[p.name for p in personalities],
            nodes=[wire.NodeView(node=n.node, url=n.url, status=n.status) for n in known],
            endpoints=ENDPOINTS,
            docs="/docs",
        )

    async def pools(self, node: str) -> wire.PoolList:
        """Return what `GET /api/pools` says.

        Raises:
            StoreUnavailable: the store did not answer.
        """
        replicas = await self._replicas.list() if self._replicas is not None else ()
        views = [
            wire.PoolView(
                pool=e.pool,
                engine=e.engine,
                model=e.model,
                language_model=e.language_model,
                replicas=[replica for replica in replicas if replica.pool == e.pool],
            )
            for e in self._engines
        ]
        return wire.PoolList(pools=views, node=node)

    async def health(self, node: str) -> wire.HealthView:
        """Return what `GET /health` says.

        Raises:
            Draining: this node is leaving.
        """
        if self._presence is not None and self._presence.status is NodeStatus.DRAINING:
            raise errors.Draining()
        there = await self._ping()
        return wire.HealthView(
            status="healthy" if there else "degraded", node=node, redis="ok" if there else "away", timestamp=now()
        )
