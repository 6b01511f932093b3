"""The deployment that serves :8000: REST, SSE and WebSocket."""

import asyncio
import logging
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.config import ChatArgs, gather
from deployments.handles import RouterHandle
from deployments.meter import RayMeter
from deployments.replica import prepare_replica
from deployments.store import open_store
from serve_app.api.about import About
from serve_app.api.access import Access
from serve_app.api.app import build_app
from serve_app.api.wire import EngineView
from serve_app.chat.drain import Departure, DrainWatch
from serve_app.chat.nodes import NodeStatus, Presence
from serve_app.chat.personalities import Personalities
from serve_app.chat.service import ChatService, ServiceConfig
from serve_app.state.bus import RedisBus
from serve_app.state.conversations import RedisConversations
from serve_app.state.drain import RedisDrains
from serve_app.state.nodes import RedisNodes, RedisReplicas
from serve_app.state.sessions import RedisSessions

PING_TIMEOUT_S = 0.5
"""Half of what clients and balancers wait for `GET /health`: a node whose Redis is away shall not be taken for dead."""

log = logging.getLogger(__name__)


@serve.deployment(name="Ingress")
@serve.ingress()
class Ingress:
    """Serves the chat of one node. Keeps nothing: everything that matters is in Redis."""

    def __init__(self, args: ChatArgs, router: DeploymentHandle[Any], personalities: Personalities) -> None:
        """Put the service together; the bus starts with the application."""
        settings = prepare_replica()
        self._args = args
        meter = RayMeter(settings.node_name)
        self._store = store = open_store(settings, meter)
        self._bus = RedisBus(store.redis, meter=meter)
        self._bus_started = False
        self._presence = Presence(RedisNodes(store.scripts), node=settings.node_name, url=settings.node_url)
        departure = Departure()
        self._service = service = ChatService(
            turns=store.turns,
            conversations=RedisConversations(store.scripts),
            sessions=RedisSessions(store.scripts),
            bus=self._bus,
            dispatcher=RouterHandle(router),
            personalities=personalities,
            node=settings.node_name,
            config=ServiceConfig(limits=args.limits, deadline_s=args.turns.deadline_s, max_open_turns=args.turns.max_open_turns),
            meter=meter,
            departure=departure,
        )
        self._watch = DrainWatch(
            RedisDrains(store.scripts),
            departure,
            node=settings.node_name,
            replica=f"Ingress {serve.get_replica_context().replica_id.unique_id}",
            in_hand=lambda: service.in_flight,
            changed=self._tell_others,
        )
        log.info("Ingress of node %s; pools: %s.", settings.node_name, ", ".join(args.pools))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the ASGI application; Serve calls this in the replica, after the constructor."""
        engines = [
            EngineView(pool=name, engine=p.engine, model=p.model, language_model=p.language_model)
            for name, p in self._args.pools.items()
        ]
        replicas = RedisReplicas(self._store.scripts)
        return build_app(self._service, Access(), About(engines, ping=self._ping, presence=self._presence, replicas=replicas))

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take other personalities, from now on."""
        self._service.personalities = gather(user_config, self._args)
        await self._start_bus()

    async def _start_bus(self) -> None:
        if not self._bus_started:
            self._bus_started = True
            await self._bus.__aenter__()
            await self._presence.__aenter__()
            await self._watch.__aenter__()

    async def _tell_others(self, leaving: bool) -> None:
        await self._presence.say(NodeStatus.DRAINING if leaving else NodeStatus.SERVING)

    async def _ping(self) -> bool:
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                await self._store.redis.ping()
        except Exception:  # noqa: BLE001 - whatever it is, it is Redis not answering; the page says so
            return False
        return True

    async def check_health(self) -> None:
        """Raise if the bus has died: Serve then replaces this replica."""
        await self._start_bus()
        self._bus.check()
        self._presence.check()
        self._watch.check()
