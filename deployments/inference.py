"""The deployment of a pool: an engine, and the runs on it."""

import asyncio
import contextvars
import logging
from typing import Any

from ray import serve

from deployments.config import PoolArgs
from deployments.meter import RayMeter
from deployments.replica import prepare_replica
from deployments.store import open_store
from serve_app.chat.drain import Departure, DrainWatch
from serve_app.chat.generate import Generator, GeneratorConfig
from serve_app.chat.turns import Plan, Verdict
from serve_app.engines import make_engine
from serve_app.state.drain import RedisDrains

log = logging.getLogger(__name__)


@serve.deployment(name="Inference")
class Inference:
    """Runs turns on one engine. Only values come in, only a verdict goes out; the text goes to Redis."""

    def __init__(self, args: PoolArgs) -> None:
        """Make the engine; `start` happens with the first health check or run, on the replica's loop."""
        self._settings = prepare_replica()
        self._args = args
        self._engine = make_engine(args.engine)
        self._departure = Departure()
        self._watch: DrainWatch | None = None
        self._generator: Generator | None = None
        self._starting = asyncio.Lock()
        self._running: set[asyncio.Task[Verdict]] = set()

    async def _ready(self) -> Generator:
        if self._generator is None:
            async with self._starting:
                if self._generator is None:
                    await self._engine.start()
                    run = self._args.run
                    config = GeneratorConfig(
                        first_piece_timeout_s=run.first_piece_timeout_s,
                        piece_timeout_s=run.piece_timeout_s,
                        history_messages=run.history_messages,
                    )
                    meter = RayMeter(self._settings.node_name)
                    store = open_store(self._settings, meter)
                    replica = serve.get_replica_context().replica_id.unique_id
                    generator = Generator(
                        store.turns,
                        self._engine,
                        node=self._settings.node_name,
                        replica=replica,
                        config=config,
                        meter=meter,
                        departure=self._departure,
                    )
                    await generator.__aenter__()
                    self._watch = DrainWatch(
                        RedisDrains(store.scripts),
                        self._departure,
                        node=self._settings.node_name,
                        replica=f"Inference {replica}",
                        in_hand=lambda: generator.running,
                    )
                    await self._watch.__aenter__()
                    self._generator = generator
                    log.info("Engine %s, model %s, is ready.", self._engine.info.kind, self._engine.info.model)
        return self._generator

    async def run_turn(self, turn_id: str, dispatch: str, run: str, plan: Plan) -> str:
        """Claim a turn and run it to its end; return the verdict.

        The run is a task of its own, in a context of its own, and shielded: Serve cancels child calls when a caller
        goes, and a turn outlives its router (law 4).
        """
        generator = await self._ready()
        work = generator.run(turn_id, dispatch=dispatch, run=run, plan=plan)
        task = asyncio.create_task(work, context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return str(await asyncio.shield(task))

    async def check_health(self) -> None:
        """Raise if the engine or the renewing of leases is broken: Serve then replaces this replica."""
        generator = await self._ready()
        generator.check()
        if self._watch is not None:
            self._watch.check()
        await self._engine.check()

    async def __del__(self) -> None:
        """Release the engine; Serve awaits this after draining."""
        for run in self._running:
            run.cancel()  # before its engine goes: it must not end a turn that another replica can go on with
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._watch is not None:
            await self._watch.__aexit__()
        if self._generator is not None:
            await self._generator.__aexit__()
        await self._engine.close()

    def about(self) -> dict[str, Any]:
        """Return what this replica is, for status pages."""
        info = self._engine.info
        return {"engine": info.kind, "model": info.model, "language_model": info.language_model}
