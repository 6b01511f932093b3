"""What an adversarial reviewer broke once: runs, leases, writers and ends. Each test is one of its proofs, turned around."""

import asyncio
import warnings
from collections.abc import AsyncGenerator, AsyncIterator

import pytest
from redis.exceptions import ResponseError

from serve_app.chat.ending import stop_turn
from serve_app.chat.engine import Engine, EngineInfo, EnginePiece, Prefix, Prompt
from serve_app.chat.errors import EngineUnavailable
from serve_app.chat.events import Failed
from serve_app.chat.generate import Generator, GeneratorConfig
from serve_app.chat.options import Options
from serve_app.chat.service import Ask
from serve_app.chat.starting import PatientStart
from serve_app.chat.supervise import Ran, Supervisor, SupervisorConfig
from serve_app.chat.turns import LEASE_MS, Plan, RecentTurn, Snapshot, Verdict
from tests.support.redis_process import RedisProcess
from tests.support.stack import Stack, personalities
from tests.support.turn_tools import FAKE_CLOCK, NOON, Store, ending, fall_due, logged, new_turn, open_turn, plan, store
from tests.support.waiting import until

with warnings.catch_warnings():  # Ray Serve itself uses what Pydantic has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from deployments.inference import Inference

pytestmark = pytest.mark.integration
WORD = "word "


class Base(Engine):
    """An engine that starts, is able, and says a word every few milliseconds until it is stopped."""

    info = EngineInfo("attacked", "attacked-1", False)
    calls = 0

    async def start(self) -> None: ...

    async def check(self) -> None: ...

    async def close(self) -> None: ...

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        self.calls += 1
        while True:
            yield EnginePiece(WORD)
            await asyncio.sleep(0.005)


class SaysNothingUntilTold(Base):
    """A long prompt: nothing is said before `told` is set."""

    def __init__(self) -> None:
        self.told = asyncio.Event()

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        self.calls += 1
        await self.told.wait()
        yield EnginePiece("At last.")


class HangsWhenClosed(Base):
    """Its connection is half-open: closing it takes for ever."""

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        self.calls += 1
        try:
            while True:
                await asyncio.sleep(0.005)
                yield EnginePiece(WORD)
        finally:
            await asyncio.Event().wait()


class BigWhenTold(Base):
    """Says a word; once told, blocks of `size` characters as fast as it can."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.told = asyncio.Event()

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        yield EnginePiece(WORD)
        await self.told.wait()
        while True:
            yield EnginePiece("x" * self.size)
            await asyncio.sleep(0.001)


class HalfACharacter(Base):
    """What a tokenizer gives that cuts a character in two."""

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        for text in ("Well ", "\ud83d", " then."):
            yield EnginePiece(text)
            await asyncio.sleep(0.03)  # longer than pieces are coalesced: each goes out on its own


class FailsOnceClosed(Base):
    """Like any engine: whoever uses it after `close` gets an error."""

    closed = False

    async def close(self) -> None:
        self.closed = True

    async def generate(
        self, prompt: Prompt, options: Options, continue_from: Prefix, *, run: str
    ) -> AsyncGenerator[EnginePiece, None]:
        while not self.closed:
            yield EnginePiece(WORD)
            await asyncio.sleep(0.005)
        raise EngineUnavailable("The engine was closed.")


class NeverThere:
    """A pool without a replica: calls wait, until `answers` holds one for them."""

    def __init__(self) -> None:
        self.calls = 0
        self.answers: asyncio.Queue[Ran] = asyncio.Queue()

    async def run_turn(
        self, turn_id: str, *, dispatch: str, run: str, plan: Plan, elsewhere: bool = False, prefer: str = ""
    ) -> Ran:
        self.calls += 1
        return await self.answers.get()


@pytest.fixture
async def at(redis_server: RedisProcess) -> AsyncIterator[Store]:
    async with store(redis_server.url) as ports:
        yield ports


async def taken_away(at: Store, turn_id: str) -> str:
    """Let the lease of a turn lapse, and give it to a router; return the new dispatch token."""
    await fall_due(at, turn_id)
    (due,) = (await at.turns.sweep(token="router", batch=9)).due
    return due.token


async def said(at: Store, turn_id: str) -> Snapshot:
    """Return a turn as soon as it has text."""

    async def speaking() -> Snapshot | None:
        turn = await at.turns.read(turn_id)
        return turn if turn.seq else None

    return await until(speaking)  # type: ignore[return-value]


async def test_where_two_runs_of_a_turn_meet_in_one_replica_only_the_one_that_lost_it_is_stopped(at: Store) -> None:
    engine, new = SaysNothingUntilTold(), new_turn()
    async with Generator(at.turns, engine, node="aurora", config=GeneratorConfig(beat_s=0.05)) as generator:
        await at.turns.begin(new)
        first = asyncio.create_task(generator.run(new.turn_id, dispatch=new.token, run="run-1", plan=plan()))
        await until(lambda: engine.calls == 1)
        dispatch = await taken_away(at, new.turn_id)
        second = asyncio.create_task(generator.run(new.turn_id, dispatch=dispatch, run="run-2", plan=plan()))
        await until(lambda: engine.calls == 2)
        async with asyncio.timeout(5):
            assert await first is Verdict.SUPERSEDED
            engine.told.set()
            assert await second is Verdict.OK
    turn = await at.turns.read(new.turn_id)
    assert (turn.state, turn.attempt) == ("done", 2)
    assert turn.reply is not None
    assert turn.reply.content == "At last."


async def test_an_engine_that_hangs_when_it_is_closed_does_not_hold_its_run_for_ever(at: Store) -> None:
    new = new_turn()
    async with Generator(at.turns, HangsWhenClosed(), node="aurora") as generator:
        await at.turns.begin(new)
        run = asyncio.create_task(generator.run(new.turn_id, dispatch=new.token, run="run-1", plan=plan()))
        await said(at, new.turn_id)
        assert await stop_turn(at.turns, new.turn_id) is not None
        async with asyncio.timeout(5):
            assert await run in (Verdict.SUPERSEDED, Verdict.GONE)
        assert generator.running == 0


async def test_half_a_character_from_an_engine_costs_that_character_and_not_the_answer(at: Store) -> None:
    new = new_turn()
    async with Generator(at.turns, HalfACharacter(), node="aurora") as generator, asyncio.timeout(5):
        await at.turns.begin(new)
        assert await generator.run(new.turn_id, dispatch=new.token, run="run-1", plan=plan()) is Verdict.OK
    turn = await at.turns.read(new.turn_id)
    assert turn.reply is not None
    assert turn.reply.content == "Well ? then."


@pytest.mark.parametrize("size", [8, 300_000], ids=["while the engine speaks", "while it waits for room"])
async def test_a_run_whose_pieces_cannot_be_written_ends_at_once_and_lets_its_lease_lapse(at: Store, size: int) -> None:
    engine, new = BigWhenTold(size), new_turn()
    async with Generator(at.turns, engine, node="aurora") as generator:
        await at.turns.begin(new)
        run = asyncio.create_task(generator.run(new.turn_id, dispatch=new.token, run="run-1", plan=plan()))
        await said(at, new.turn_id)
        # An error that is no outage: trying again would not help.
        await at.redis.set(f"aurora:turn:{new.turn_id}:log", "not a log")
        engine.told.set()
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            async with asyncio.timeout(4):
                await asyncio.shield(run)
        assert generator.running == 0


async def test_a_turn_that_waits_for_a_replica_ends_at_its_deadline(redis_server: RedisProcess) -> None:
    """Also where the call to the pool, which holds it, would wait for much longer."""
    async with store(redis_server.url, clock=FAKE_CLOCK) as at:
        await at.set_clock(NOON)
        pool, new = NeverThere(), new_turn(deadline_ms=2_000)
        await at.turns.begin(new)
        async with Supervisor(
            at.turns, pool, personalities(), SupervisorConfig(beat_s=0.05, unclaimed_beats=1_000)
        ) as supervisor:
            supervisor.take(new.turn_id, token=new.token, personality="robbie")
            await until(lambda: pool.calls == 1)
            clock, end = NOON, None
            while end is None and clock < NOON + 20_000:
                clock += 500
                await at.set_clock(clock)
                await until(lambda: swept(at))
                end = (await at.turns.read(new.turn_id)).end
    assert isinstance(end, Failed)
    assert end.code == "deadline_exceeded"
    assert clock <= NOON + 2_000 + 2 * LEASE_MS + LEASE_MS + 2 * 500, "the deadline, some grace for its run, one lease, two beats"


async def swept(at: Store) -> bool:
    """Say whether a router has swept at the time that it is."""
    return bool(await at.redis.get("aurora:sweep") == await at.redis.get("test:clock"))


async def test_a_turn_that_waits_is_renewed_although_an_older_dispatch_of_it_was_answered(at: Store) -> None:
    pool, new = NeverThere(), new_turn()
    await at.turns.begin(new)
    dispatch = await taken_away(at, new.turn_id)

    leases = [await lease(at, new.turn_id)]

    async def renewed() -> bool:
        now = await lease(at, new.turn_id)
        return now > leases[-1] and not leases.append(now)  # type: ignore[func-returns-value]

    async with Supervisor(at.turns, pool, personalities(), SupervisorConfig(beat_s=0.05, unclaimed_beats=1_000)) as supervisor:
        supervisor.take(new.turn_id, token=new.token, personality="robbie")
        await until(lambda: pool.calls == 1)
        supervisor.take(new.turn_id, token=dispatch, personality="robbie")
        await until(lambda: pool.calls == 2)
        pool.answers.put_nowait(Ran(Verdict.SUPERSEDED))  # to the older one
        await until(pool.answers.empty)
        for _ in range(3):  # the first of them may have been on its way already
            await until(renewed, timeout=1.5)
        assert pool.calls == 2, "it was not renewed: a sweep has found it"


async def lease(at: Store, turn_id: str) -> float:
    """Return when the lease of a turn ends."""
    return float(await at.redis.zscore("aurora:turns:open", turn_id))


async def test_stops_at_once_all_answer_with_a_turn_that_has_ended(stack: Stack, at: Store) -> None:
    """Each takes the turn out of the hands of the one before; whoever lost it must wait for the one that ends it."""
    for number in range(40):
        ask = Ask(f"ann{number}", "Hello", options=Options(words=200, words_per_second=50))
        turn_id = (await stack.service.begin(ask)).turn_id
        await said(at, turn_id)
        stops = await asyncio.gather(*(stack.service.stop(turn_id) for _ in range(6)))
        assert [stop.state for stop in stops] == ["stopped"] * 6
        assert all(stop.end == stops[0].end for stop in stops)


async def test_an_hour_after_one_turn_has_ended_a_device_still_finds_the_other_that_is_open(at: Store) -> None:
    ended = await open_turn(at, client_id="ann", personality="robbie")
    other = await open_turn(at, client_id="ann", personality="kristina")
    end = ending(ended.turn_id, ["Hi"])
    await at.turns.finish(ended.turn_id, token=ended.run, end=end, tail=logged(["Hi"]), from_seq=1)
    for key in [key async for key in at.redis.scan_iter()]:
        if (lives := await at.redis.ttl(key)) >= 0:
            await at.redis.expire(key, max(0, lives - 3_600))  # an hour passes
    assert await at.turns.recent_turns("ann") == [RecentTurn(other.turn_id, is_open=True)]


class Replica(Inference.func_or_class):  # type: ignore[misc, name-defined]
    """A replica of a pool without its Serve."""

    def __init__(self, engine: Engine, generator: Generator) -> None:
        self._engine, self._generator = engine, generator
        self._starting = PatientStart(engine.start)
        self._running: set[asyncio.Task[Verdict]] = set()
        self._watch = self._presence = None

    def __del__(self) -> None:
        """Is Python's here; Serve awaits its own."""

    async def shut_down(self) -> None:
        await super().__del__()


async def test_a_replica_that_is_shut_down_leaves_its_turns_to_others_instead_of_failing_them(at: Store) -> None:
    new, engine = new_turn(), FailsOnceClosed()
    async with Generator(at.turns, engine, node="aurora") as generator:
        replica = Replica(engine, generator)
        await at.turns.begin(new)
        call = asyncio.create_task(replica.run_turn(new.turn_id, new.token, "run-1", plan()))
        await said(at, new.turn_id)
        call.cancel()  # its router went first: nothing is left that Serve would wait for
        await asyncio.gather(call, return_exceptions=True)
        assert generator.running == 1, "a turn outlives its router"
        await replica.shut_down()
        await until(lambda: generator.running == 0)
    left = await at.turns.read(new.turn_id)
    assert left.state == "open"
    told = SaysNothingUntilTold()
    told.told.set()
    async with Generator(at.turns, told, node="star") as other, asyncio.timeout(5):
        dispatch = await taken_away(at, new.turn_id)
        assert await other.run(new.turn_id, dispatch=dispatch, run="run-2", plan=plan()) is Verdict.OK
    turn = await at.turns.read(new.turn_id)
    assert turn.state == "done"
    assert turn.reply is not None
    assert turn.reply.content.endswith(WORD + "At last.")
