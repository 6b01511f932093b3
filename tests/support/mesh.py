"""Pools with several replicas in one process, over a real Redis: what Serve would reach on other machines.

Each replica is a real generator that tells the routers how it is; a call goes to the one that the router prefers, as
`deployments.preferred_replica` has it.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

from serve_app.chat.engine import Engine, EngineInfo, EnginePiece, EngineStatus, Prefix, Prompt
from serve_app.chat.errors import EngineError, EngineUnavailable, Overloaded
from serve_app.chat.events import Usage
from serve_app.chat.generate import Generator, GeneratorConfig
from serve_app.chat.options import Options
from serve_app.chat.replicas import ReplicaPresence, ReplicaRecord, ReplicaStatus
from serve_app.chat.supervise import Pools, Ran
from serve_app.chat.turns import Plan, Verdict
from serve_app.state.connection import connect
from serve_app.state.nodes import RedisReplicas
from serve_app.state.scripts import Scripts
from serve_app.state.turns import RedisTurns

WORDS = tuple(f"word{number} " for number in range(12))
TEXT = "".join(WORDS)
QUICK = GeneratorConfig(first_piece_timeout_s=0.4, piece_timeout_s=0.4, beat_s=0.1)


@dataclass
class Wordy(Engine):
    """Says `WORDS` from where it is to go on, and may be told to fail after some of them.

    `fails` is raised, or with `hangs` nothing more is said, after `after` words of this engine's own; both once only with `once`.
    """

    model: str = "wordy-1"
    fails: EngineError | None = None
    hangs: bool = False
    after: int = 0
    once: bool = False
    pause_s: float = 0.0
    ids: bool = False
    slots: int = 0
    prompts: list[tuple[Prompt, Options, Prefix]] = field(default_factory=list)
    busy: int = 0

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(kind="wordy", model=self.model, language_model=False)

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(models=(self.model,), busy=self.busy, slots=self.slots)

    async def start(self) -> None: ...

    async def check(self) -> None: ...

    async def close(self) -> None: ...

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        self.prompts.append((prompt, options, continue_from))
        self.busy += 1
        try:
            fails, hangs = self.fails, self.hangs
            if self.once:
                self.fails, self.hangs = None, False
            said = continue_from.text.count(" ")
            for number, word in enumerate(WORDS[said:]):
                if number == self.after and fails:
                    raise fails
                if number == self.after and hangs:
                    await asyncio.Event().wait()
                await asyncio.sleep(self.pause_s)
                yield EnginePiece(word, token_ids=(said + number,) if self.ids else ())
            yield EnginePiece("", usage=Usage(prompt_tokens=1, completion_tokens=len(WORDS)))
        finally:
            self.busy -= 1


@dataclass
class Replica:
    """One replica of a pool, on a node."""

    name: str
    pool: str
    engine: Engine
    node: str = "star"
    status: ReplicaStatus = ReplicaStatus.READY
    dead: bool = False
    """Calls to it fail as those to a dead actor do; its record stands until it ends by itself."""
    refuses: int = 0
    """So many calls find no room there."""
    queues: int = 0
    """So many calls wait there for room that does not come."""
    passes_on: int = 0
    """So many calls find no room there, and are taken by another replica of the pool, as Serve does it."""


class Mesh(Pools):
    """All replicas of all pools. Use as `async with`."""

    def __init__(self, url: str, *replicas: Replica, config: GeneratorConfig = QUICK) -> None:
        self._url = url
        self._config = config
        self.replicas = list(replicas)
        self.calls: list[str] = []
        """The replicas that were called, in order; `?` where the router preferred none."""
        self._tasks: set[asyncio.Task[Verdict]] = set()

    async def __aenter__(self) -> "Mesh":
        self._exit = contextlib.AsyncExitStack()
        self._redis = connect(self._url)
        self._exit.push_async_callback(self._redis.aclose)
        scripts = Scripts(self._redis)
        self._presences: dict[str, ReplicaPresence] = {}
        self._store = RedisReplicas(scripts)
        self._generators: dict[str, Generator] = {}
        for each in self.replicas:
            generator = Generator(RedisTurns(scripts), each.engine, node=each.node, replica=each.name, config=self._config)
            self._generators[each.name] = await self._exit.enter_async_context(generator)
            await self.wake(each.name)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for name in list(self._presences):
            await self.sleep(name)
        await self._exit.aclose()

    def __getitem__(self, name: str) -> Replica:
        return next(each for each in self.replicas if each.name == name)

    async def wake(self, name: str) -> None:
        """Have a replica say again how it is."""

        def describe() -> ReplicaRecord:
            each = self[name]
            info, status = each.engine.info, each.engine.status
            facts = {
                "engine": info.kind,
                "model": info.model,
                "models": status.models,
                "busy": status.busy,
                "slots": status.slots,
            }
            return ReplicaRecord.model_validate(
                {"replica": name, "pool": each.pool, "node": each.node, "status": each.status, **facts}
            )

        await self._store.register(describe())
        self._presences[name] = await ReplicaPresence(self._store, describe, every_s=0.05).__aenter__()

    async def sleep(self, name: str) -> None:
        """Have a replica say nothing more, and be forgotten."""
        await self._presences.pop(name).__aexit__()

    async def run_turn(
        self, turn_id: str, *, dispatch: str, run: str, plan: Plan, elsewhere: bool = False, prefer: str = ""
    ) -> Ran:
        self.calls.append(prefer or "?")
        there = [each for each in self.replicas if each.pool == plan.pool and each.name in self._presences]
        each = next((each for each in there if each.name == prefer), there[0] if there else None)
        if each is not None and each.passes_on:
            each.passes_on -= 1
            each = next(other for other in there if other is not each)
        if each is None or each.dead:
            raise EngineUnavailable("The replica is gone.")
        if each.refuses:
            each.refuses -= 1
            raise Overloaded()
        if each.queues:
            each.queues -= 1
            await asyncio.Event().wait()
        work = self._generators[each.name].run(turn_id, dispatch=dispatch, run=run, plan=replace(plan))
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Ran(await asyncio.shield(task), each.name)
