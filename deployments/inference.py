"""The deployment of a pool: an engine, and the runs on it."""

import asyncio
import contextvars
import logging

from ray import serve

from deployments.config import PoolArgs
from deployments.meter import RayMeter
from deployments.replica import prepare_replica
from deployments.store import open_store
from serve_app.chat.drain import Departure, DrainWatch
from serve_app.chat.errors import EngineError, EngineUnavailable, Overloaded
from serve_app.chat.generate import Generator, GeneratorConfig
from serve_app.chat.replicas import ReplicaPresence, ReplicaRecord, ReplicaStatus
from serve_app.chat.starting import PatientStart
from serve_app.chat.turns import Plan, Verdict
from serve_app.engines import make_engine
from serve_app.state.drain import RedisDrains
from serve_app.state.nodes import RedisReplicas

log = logging.getLogger(__name__)


@serve.deployment(name="Inference")
class Inference:
    """Runs turns on one engine. Only values come in, only a verdict goes out; the text goes to Redis."""

    def __init__(self, args: PoolArgs) -> None:
        """Make the engine; `start` happens with the first health check, on the replica's loop.

        That check is a part of the replica's own start, which Serve waits for without a limit: a model may be pulled or loaded
        meanwhile, and a rolling update keeps the old replicas until it is. An engine whose server is away is started later.
        """
        self._settings = settings = prepare_replica()
        self._args = args
        self._engine = make_engine(args.engine, ollama_url=self._settings.ollama_url)
        self._departure = Departure()
        context = serve.get_replica_context()
        self._pool, self._replica = context.app_name, context.replica_id.unique_id
        self._meter = RayMeter(settings.node_name)
        self._store = open_store(settings, self._meter)
        self._presence: ReplicaPresence | None = None
        self._watch: DrainWatch | None = None
        self._generator: Generator | None = None
        self._failing = ""
        self._starting = PatientStart(self._start)
        self._running: set[asyncio.Task[Verdict]] = set()

    async def _start(self) -> None:
        if self._presence is None:  # first, as an engine may take minutes, and says meanwhile what it is doing
            self._presence = await ReplicaPresence(RedisReplicas(self._store.scripts), self._describe).__aenter__()
        await self._start_engine()
        run = self._args.run
        config = GeneratorConfig(
            first_piece_timeout_s=run.first_piece_timeout_s,
            piece_timeout_s=run.piece_timeout_s,
            history_messages=run.history_messages,
        )
        generator = Generator(
            self._store.turns,
            self._engine,
            node=self._settings.node_name,
            replica=self._replica,
            config=config,
            meter=self._meter,
            departure=self._departure,
        )
        await generator.__aenter__()
        self._watch = DrainWatch(
            RedisDrains(self._store.scripts),
            self._departure,
            node=self._settings.node_name,
            replica=f"Inference {self._replica}",
            in_hand=lambda: generator.running,
        )
        await self._watch.__aenter__()
        log.info("Engine %s, model %s, is ready.", self._engine.info.kind, self._engine.info.model)
        self._generator = generator

    async def _start_engine(self) -> None:
        try:
            await self._engine.start()
        except EngineUnavailable as error:
            if self._engine.info.hangs_alone:
                # It waits for no server but computes here: a new process may do better, and where none does, the deploy fails.
                raise EngineError(error.message) from error
            raise

    def _describe(self) -> ReplicaRecord:
        """Return how this replica is, for the routers and `aurora-cli status`."""
        info, status, generator = self._engine.info, self._engine.status, self._generator
        if generator is None:
            how = ReplicaStatus.STARTING
        elif self._departure.leaving:
            how = ReplicaStatus.LEAVING
        else:
            how = ReplicaStatus.FAILING if self._failing else ReplicaStatus.READY
        return ReplicaRecord(
            replica=self._replica,
            pool=self._pool,
            node=self._settings.node_name,
            status=how,
            engine=info.kind,
            model=info.model,
            models=status.models,
            busy=max(status.busy, generator.running if generator is not None else 0),
            slots=status.slots,
            note=self._failing or status.note or self._starting.why,
        )

    async def run_turn(self, turn_id: str, dispatch: str, run: str, plan: Plan, prefer: str = "") -> str | tuple[str, str]:
        """Claim a turn and run it to its end; return the verdict, with who this is where another replica was wanted (`Ran`).

        `prefer` names the one wanted: see `PreferredReplica`. A router of the version before understands the verdict alone.

        The run is a task of its own, in a context of its own, and shielded: Serve cancels child calls when a caller
        goes, and a turn outlives its router (law 4).

        Raises:
            EngineUnavailable: the engine is not started yet, as its server is away; at once.
            Overloaded: the same, and the turn came here only because the replica wanted had no room.
        """
        if (generator := self._generator) is None:
            if prefer not in ("", self._replica):
                # Not "unavailable": the router would take that for the word of the replica that it wanted, and shun it.
                raise Overloaded("The replica wanted has no room, and this one has no engine yet.")
            raise EngineUnavailable(self._starting.why or "The engine is not started yet.")
        work = generator.run(turn_id, dispatch=dispatch, run=run, plan=plan)
        task = asyncio.create_task(work, context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        verdict = str(await asyncio.shield(task))
        return verdict if prefer in ("", self._replica) else (verdict, self._replica)

    async def check_health(self) -> None:
        """Raise if the engine or the renewing of leases is broken: Serve then replaces this replica.

        An engine that could not be started yet is not broken. Serve gives a deployment up for good whose first replicas fail
        three times, and a machine may be off for longer than that: the replica stays, and uses it once it is there.
        """
        await self._starting.begin()
        if self._presence is not None:
            self._presence.check()
        if (generator := self._generator) is None:
            self._starting.check()
            return
        generator.check()
        if self._watch is not None:
            self._watch.check()
        try:
            await self._engine.check()
        except EngineError as error:
            self._failing = error.message  # the routers go elsewhere at once; Serve replaces a replica after three such checks
            raise
        self._failing = ""

    async def __del__(self) -> None:
        """Release the engine; Serve awaits this after draining."""
        await self._starting.stop()
        for run in self._running:
            run.cancel()  # before its engine goes: it must not end a turn that another replica can go on with
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._presence is not None:
            await self._presence.__aexit__()
        if self._watch is not None:
            await self._watch.__aexit__()
        if self._generator is not None:
            await self._generator.__aexit__()
        await self._engine.close()
