"""Aurora in one process, over a real Redis: the same parts that `deployments` puts into Serve, without Serve.

For everything that does not need replicas to die. The pool calls its generator directly; `kill_run` breaks a run the way
a dying replica does: nothing of it is ever heard again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
import yaml

from serve_app.api.about import About
from serve_app.api.access import Access
from serve_app.api.app import build_app
from serve_app.api.wire import EngineView
from serve_app.chat.drain import Departure, DrainWatch
from serve_app.chat.engine import Engine
from serve_app.chat.errors import EngineUnavailable
from serve_app.chat.generate import Generator, GeneratorConfig
from serve_app.chat.meter import UNMEASURED, Meter
from serve_app.chat.nodes import NodeStatus, Presence
from serve_app.chat.options import OptionLimits
from serve_app.chat.personalities import Personalities, Personality
from serve_app.chat.placing import Roster
from serve_app.chat.service import ChatService, ServiceConfig
from serve_app.chat.supervise import Pools, Ran, Supervisor, SupervisorConfig
from serve_app.chat.turns import Plan
from serve_app.engines.scripted import ScriptedConfig, ScriptedEngine
from serve_app.state.bus import RedisBus
from serve_app.state.connection import connect
from serve_app.state.conversations import RedisConversations
from serve_app.state.drain import RedisDrains
from serve_app.state.nodes import RedisNodes, RedisReplicas
from serve_app.state.scripts import Scripts
from serve_app.state.sessions import RedisSessions
from serve_app.state.turns import RedisTurns
from tests.support.redis_process import free_port
from tests.support.waiting import until

PERSONALITIES = Path(__file__).resolve().parents[2] / "configs" / "personalities"


def personalities() -> Personalities:
    files = sorted(PERSONALITIES.glob("*.yaml"))
    members = [Personality.model_validate(yaml.safe_load(f.read_text())).speaking_through(["scripted"]) for f in files]
    return Personalities(members, default="robbie")


class DirectPool:
    """A pool of one generator in this process."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.others: list[DirectPool] = []
        self.runs: dict[str, asyncio.Task[Any]] = {}
        self._all: set[asyncio.Task[Any]] = set()
        self.begun = 0
        """Runs so far."""

    async def run_turn(
        self, turn_id: str, *, dispatch: str, run: str, plan: Plan, elsewhere: bool = False, prefer: str = ""
    ) -> Ran:
        if elsewhere and self.others:
            return await self.others[0].run_turn(turn_id, dispatch=dispatch, run=run, plan=plan)
        task = asyncio.ensure_future(self.generator.run(turn_id, dispatch=dispatch, run=run, plan=plan))
        self.runs[turn_id] = task
        self._all.add(task)
        task.add_done_callback(self._all.discard)
        self.begun += 1
        try:
            return Ran(await asyncio.shield(task))
        except asyncio.CancelledError:
            if task.cancelled():
                raise EngineUnavailable("The replica is gone.") from None
            raise
        finally:
            self.runs.pop(turn_id, None)

    def kill_run(self, turn_id: str) -> None:
        self.runs[turn_id].cancel()

    async def close(self) -> None:
        """End what still runs, while there is a store to say so to: a run outlives who asked for it (law 4)."""
        for task in self._all:
            task.cancel()
        await asyncio.gather(*self._all, return_exceptions=True)


class Stack:
    """One node in one process."""

    def __init__(
        self,
        url: str,
        *,
        bus_url: str = "",
        engine: Engine | None = None,
        node: str = "aurora",
        run: GeneratorConfig | None = None,
        service: ServiceConfig | None = None,
        clock: str | None = None,
        patience_s: float = 10.0,
        replicas: int = 0,
        meter: Meter = UNMEASURED,
        pools: Pools | None = None,
        people: Personalities | None = None,
        supervising: SupervisorConfig | None = None,
    ) -> None:
        people = people or personalities()
        self.redis = connect(url, replicas=replicas)
        self.scripts = Scripts(self.redis, replicas=replicas, patience_s=patience_s, clock=clock, meter=meter)
        self.turns = RedisTurns(self.scripts)
        self.conversations = RedisConversations(self.scripts)
        self.sessions = RedisSessions(self.scripts)
        self.bus_redis = connect(bus_url) if bus_url else self.redis
        self.bus = RedisBus(self.bus_redis, meter=meter)
        self.engine = engine or ScriptedEngine(ScriptedConfig(drills=True))
        self.departure = Departure()
        self.generator = Generator(self.turns, self.engine, node=node, config=run, meter=meter, departure=self.departure)
        self.pool = DirectPool(self.generator)
        self.roster = Roster(RedisReplicas(self.scripts) if pools else None, node=node, every_s=0.1)
        self.supervisor = Supervisor(
            self.turns, pools or self.pool, people, supervising, roster=self.roster, meter=meter, departure=self.departure
        )
        limits = ServiceConfig(limits=OptionLimits(drill_options=True))
        self.service = ChatService(
            turns=self.turns,
            conversations=self.conversations,
            sessions=self.sessions,
            bus=self.bus,
            dispatcher=self,
            personalities=people,
            node=node,
            config=service or limits,
            meter=meter,
            departure=self.departure,
        )
        self.port = 0

    async def take_turn(self, turn_id: str, *, token: str, personality: str, warm: str = "") -> None:
        self.supervisor.take(turn_id, token=token, personality=personality, warm=warm)

    async def ping(self) -> bool:
        try:
            async with asyncio.timeout(0.5):  # as `deployments.ingress` does
                return bool(await self.redis.ping())
        except Exception:  # noqa: BLE001 - whatever it is, Redis is away
            return False

    async def take_over(self, turn_id: str) -> None:
        """Let the run of a turn die, as with its replica, and return when the next one has begun, if not ended."""
        begun = self.pool.begun
        self.pool.kill_run(turn_id)

        async def begun_again() -> bool:
            if turn_id not in self.pool.runs and self.pool.begun == begun:
                await self.redis.zadd("aurora:turns:open", {turn_id: 0}, xx=True)  # due at once
            return self.pool.begun > begun

        await until(begun_again)

    async def __aenter__(self) -> "Stack":
        self._exit = contextlib.AsyncExitStack()
        await self._exit.enter_async_context(self.bus)
        await self._exit.enter_async_context(self.generator)
        await self._exit.enter_async_context(self.roster)
        await self._exit.enter_async_context(self.supervisor)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.close()
        await self.pool.close()
        await self._exit.aclose()
        await self.redis.aclose()
        await self.bus_redis.aclose()

    def watching_for_drain(self) -> DrainWatch:
        """Look whether an operator has asked this node to leave, as every replica does. Enter it while serving."""

        async def changed(leaving: bool) -> None:
            await self.presence.say(NodeStatus.DRAINING if leaving else NodeStatus.SERVING)

        def in_hand() -> int:
            return self.generator.running + self.supervisor.waiting + self.service.in_flight

        name, drains = self.service.node, RedisDrains(self.scripts)
        return DrainWatch(drains, self.departure, node=name, replica=f"Stack {name}", in_hand=in_hand, changed=changed)

    @contextlib.asynccontextmanager
    async def serving(self, *, advertise: str = "") -> AsyncIterator[str]:
        """Serve on a real socket; gives the base URL. With `advertise`, tell the other nodes that URL."""
        engines = [EngineView(pool="scripted", engine="scripted", model="scripted-1", language_model=False)]
        self.presence = Presence(RedisNodes(self.scripts), node=self.service.node, url=advertise, every_s=0.1)
        about = About(engines, ping=self.ping, presence=self.presence, replicas=RedisReplicas(self.scripts))
        app = build_app(self.service, Access(), about)
        self.port = free_port()
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=self.port, log_level="warning", lifespan="off"))
        task = asyncio.create_task(server.serve())
        while not server.started:
            assert not task.done(), "uvicorn did not start"
            await asyncio.sleep(0.01)
        try:
            async with self.presence if advertise else contextlib.nullcontext():
                yield f"http://127.0.0.1:{self.port}"
        finally:
            server.should_exit = True
            server.force_exit = True
            await task
