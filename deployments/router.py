"""The deployment that routes personalities: takes turns from ingresses and supervises them."""

import asyncio
import logging
from typing import Any

from ray import serve

from deployments.config import ChatArgs, gather
from deployments.handles import PoolHandles
from deployments.replica import prepare_replica
from deployments.store import open_store
from serve_app.chat.personalities import Personalities
from serve_app.chat.supervise import Supervisor

log = logging.getLogger(__name__)


@serve.deployment(name="PersonalityRouter")
class PersonalityRouter:
    """Knows the personalities and their pools; one replica per node, each sweeping once a second (law 7)."""

    def __init__(self, args: ChatArgs) -> None:
        """Make handles to the pools."""
        settings = prepare_replica()
        self._args = args
        self._pools = PoolHandles(args.pools, timeout_s=args.turns.deadline_s + 30)
        self._turns = open_store(settings).turns
        self._personalities: Personalities | None = None
        self._supervisor: Supervisor | None = None
        self._starting = asyncio.Lock()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take other personalities, from now on; turns already claimed keep theirs (law 5)."""
        personalities = gather(user_config, self._args.default_personality)
        unknown = {pool for p in personalities for pool in p.pools} - set(self._args.pools)
        if unknown:
            raise ValueError(f"A personality names pools that this application does not have: {', '.join(sorted(unknown))}.")
        self._personalities = personalities
        async with self._starting:
            if self._supervisor is None:
                supervisor = Supervisor(self._turns, self._pools, personalities)
                await supervisor.__aenter__()
                self._supervisor = supervisor
            else:
                self._supervisor.personalities = personalities
        log.info("Personalities: %s.", ", ".join(f"{p.name} {personalities.pinned(p.name).version}" for p in personalities))

    async def take_turns(self, turns: list[tuple[str, str, str]]) -> None:
        """Supervise turns, each (turn_id, token, personality), from now on; returns at once."""
        if self._supervisor is None:
            raise RuntimeError("This router has no personalities yet.")
        for turn_id, token, personality in turns:
            self._supervisor.take(turn_id, token=token, personality=personality)

    async def check_health(self) -> None:
        """Raise if the sweeping has stopped: Serve then replaces this replica."""
        if self._supervisor is not None:
            self._supervisor.check()

    async def __del__(self) -> None:
        """Leave the turns to the other routers; Serve awaits this after draining."""
        if self._supervisor is not None:
            await self._supervisor.__aexit__()
