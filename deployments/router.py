"""The deployment that routes personalities: takes turns from ingresses and supervises them."""

import asyncio
import logging
from typing import Any

from ray import serve

from deployments.config import ChatArgs, gather
from deployments.handles import PoolHandles, TakenTurn
from deployments.meter import RayMeter
from deployments.preferred_replica import use_in_this_process
from deployments.replica import prepare_replica
from deployments.store import open_store
from serve_app.chat.drain import Departure, DrainWatch
from serve_app.chat.personalities import Personalities
from serve_app.chat.placing import Roster
from serve_app.chat.supervise import Supervisor
from serve_app.state.drain import RedisDrains
from serve_app.state.nodes import RedisReplicas

log = logging.getLogger(__name__)


@serve.deployment(name="PersonalityRouter")
class PersonalityRouter:
    """Knows the personalities and their pools; one replica per node, each sweeping once a second (law 7)."""

    def __init__(self, args: ChatArgs) -> None:
        """Make handles to the pools."""
        settings = prepare_replica()
        use_in_this_process()
        self._args = args
        self._pools = PoolHandles(args.pools, timeout_s=args.turns.deadline_s + 30)
        self._meter = RayMeter(settings.node_name)
        self._node = settings.node_name
        self._store = open_store(settings, self._meter)
        self._departure = Departure()
        self._watch: DrainWatch | None = None
        self._personalities: Personalities | None = None
        self._supervisor: Supervisor | None = None
        self._roster: Roster | None = None
        self._starting = asyncio.Lock()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take other personalities, from now on; turns already claimed keep theirs (law 5)."""
        personalities = gather(user_config, self._args)
        self._personalities = personalities
        async with self._starting:
            if self._supervisor is None:
                roster = Roster(RedisReplicas(self._store.scripts), node=self._node)
                supervisor = Supervisor(
                    self._store.turns, self._pools, personalities, roster=roster, meter=self._meter, departure=self._departure
                )
                self._roster = await roster.__aenter__()
                await supervisor.__aenter__()
                self._supervisor = supervisor
                self._watch = DrainWatch(
                    RedisDrains(self._store.scripts),
                    self._departure,
                    node=self._node,
                    replica=f"PersonalityRouter {serve.get_replica_context().replica_id.unique_id}",
                    in_hand=lambda: supervisor.waiting,
                )
                await self._watch.__aenter__()
            else:
                self._supervisor.personalities = personalities
        log.info("Personalities: %s.", ", ".join(f"{p.name} {personalities.pinned(p.name).version}" for p in personalities))

    async def take_turns(self, turns: list[TakenTurn]) -> None:
        """Supervise turns from now on; returns at once."""
        if self._supervisor is None:
            raise RuntimeError("This router has no personalities yet.")
        for turn_id, token, personality, warm in turns:
            self._supervisor.take(turn_id, token=token, personality=personality, warm=warm)

    async def check_health(self) -> None:
        """Raise if the sweeping has stopped: Serve then replaces this replica."""
        if self._supervisor is not None:
            self._supervisor.check()
        if self._roster is not None:
            self._roster.check()
        if self._watch is not None:
            self._watch.check()

    async def __del__(self) -> None:
        """Leave the turns to the other routers; Serve awaits this after draining."""
        if self._watch is not None:
            await self._watch.__aexit__()
        if self._supervisor is not None:
            await self._supervisor.__aexit__()
        if self._roster is not None:
            await self._roster.__aexit__()
