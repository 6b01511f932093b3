"""A turn always has a holder or is due, and a due turn goes to exactly one router (law 7)."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import cast

import pytest

from serve_app.chat.errors import EngineUnavailable, TurnNotFound
from serve_app.chat.events import Event
from serve_app.chat.supervise import Ran, Supervisor, SupervisorConfig
from serve_app.chat.turns import BARREN_ATTEMPTS, LEASE_MS, Due, Failure, Held, Plan, Snapshot, Verdict
from serve_app.state.turns import RedisTurns
from tests.support.redis_process import RedisProcess
from tests.support.stack import personalities
from tests.support.turn_tools import (
    FAKE_CLOCK,
    NOON,
    Published,
    Store,
    claim,
    ends_in,
    fall_due,
    logged,
    new_turn,
    open_turn,
    store,
)
from tests.support.turn_tools import plan as planned
from tests.support.waiting import until

pytestmark = pytest.mark.integration
FAST = SupervisorConfig(beat_s=0.05, retry_s=0.02, unclaimed_beats=1_000)
FAILURE = Failure("engine_error", "The engine failed.", True)
HURRIED = SupervisorConfig(beat_s=0.05, retry_s=0.02, unclaimed_beats=2)


@pytest.fixture
async def at(redis_server: RedisProcess) -> AsyncIterator[Store]:
    async with store(redis_server.url) as ports:
        yield ports


class DyingPool:
    """Claims every turn and dies of it, after saying the next of `words`, if any; from the second death on, long ago."""

    def __init__(self, at: Store, *words: str) -> None:
        self._at = at
        self._words = list(words)
        self.attempts: list[int] = []

    async def run_turn(
        self, turn_id: str, *, dispatch: str, run: str, plan: Plan, elsewhere: bool = False, prefer: str = ""
    ) -> Ran:
        claimed = await claim(self._at, turn_id, dispatch, run)
        self.attempts.append(claimed.attempt)
        if self._words:
            piece = logged([self._words.pop(0)], after=len(claimed.pieces), attempt=claimed.attempt)
            await self._at.turns.append(turn_id, token=run, pieces=piece)
        if claimed.attempt > 1:
            await self._at.redis.zadd("aurora:turns:open", {turn_id: 0})
        raise EngineUnavailable("The replica is gone.")


class FullPool:
    """Never has room; remembers who asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def run_turn(
        self, turn_id: str, *, dispatch: str, run: str, plan: Plan, elsewhere: bool = False, prefer: str = ""
    ) -> Ran:
        self.asked += 1
        await asyncio.Event().wait()
        raise AssertionError


class SilentReplica:
    """A pool whose nearest replica answers nothing, not even with an error; it claims first, or does not. Others are well."""

    def __init__(self, at: Store, *, claims: bool) -> None:
        self._at = at
        self._claims = claims
        self.asked: list[bool] = []

    async def run_turn(
        self, turn_id: str, *, dispatch: str, run: str, plan: Plan, elsewhere: bool = False, prefer: str = ""
    ) -> Ran:
        self.asked.append(elsewhere)
        if elsewhere or self._claims:
            assert (await claim(self._at, turn_id, dispatch, run)).attempt == 1
        if not elsewhere:
            await asyncio.Event().wait()
        return Ran(Verdict.OK)


class AbsentPool:
    """Refuses every turn at once; remembers when it was asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    async def run_turn(
        self, turn_id: str, *, dispatch: str, run: str, plan: Plan, elsewhere: bool = False, prefer: str = ""
    ) -> Ran:
        self.asked.append(asyncio.get_running_loop().time())
        raise EngineUnavailable("Its machine is off.")


async def test_a_turn_that_nobody_can_run_asks_the_more_seldom_the_longer_it_waits(at: Store) -> None:
    new, pool = new_turn(), AbsentPool()
    await at.turns.begin(new)
    async with Supervisor(at.turns, pool, personalities(), FAST) as router:
        router.take(new.turn_id, token=new.token, personality="robbie")
        await until(lambda: len(pool.asked) > 32)
    waited = [later - earlier for earlier, later in pairwise(pool.asked)]
    assert all(pause >= FAST.retry_s for pause in waited)
    assert all(pause >= 4 * FAST.retry_s for pause in waited[24:])
    assert (await at.turns.read(new.turn_id)).end is None


async def test_a_turn_that_a_silent_replica_does_not_claim_goes_to_another(at: Store) -> None:
    new, pool = new_turn(), SilentReplica(at, claims=False)
    await at.turns.begin(new)
    async with Supervisor(at.turns, pool, personalities(), HURRIED) as router:
        router.take(new.turn_id, token=new.token, personality="robbie")
        await until(lambda: len(pool.asked) > 1)
        await until(lambda: not router.waiting)
    assert pool.asked == [False, True]
    assert (await at.turns.read(new.turn_id)).attempt == 1, "the silence was no attempt"


async def test_a_claimed_turn_is_left_to_its_run_however_long_that_says_nothing(at: Store) -> None:
    new, pool = new_turn(), SilentReplica(at, claims=True)
    await at.turns.begin(new)
    async with Supervisor(at.turns, pool, personalities(), HURRIED) as router:
        router.take(new.turn_id, token=new.token, personality="robbie")
        await until(lambda: len(pool.asked) == 1 and not router.waiting)
        other = new_turn()
        await at.turns.begin(other)
        full = FullPool()
        async with Supervisor(at.turns, full, personalities(), HURRIED) as clock:  # ten of its beats, as time goes here
            clock.take(other.turn_id, token=other.token, personality="robbie")
            await until(lambda: full.asked >= 3)
    assert pool.asked == [False]


async def test_due_turns_go_to_exactly_one_of_many_sweepers(redis_server: RedisProcess, at: Store) -> None:
    turns = [(await open_turn(at)).turn_id for _ in range(100)]
    await fall_due(at, *turns)
    async with contextlib.AsyncExitStack() as exits:
        routers = [await exits.enter_async_context(store(redis_server.url)) for _ in range(8)]
        sweeps = [router.turns.sweep(token=f"r{i}", batch=7) for i, router in enumerate(routers * 4)]
        taken = [due for found in await asyncio.gather(*sweeps) for due in found.due]
    assert Counter(due.turn_id for due in taken) == dict.fromkeys(turns, 1)
    for due in taken:  # and each got the token that holds it now
        assert await at.redis.hget("aurora:turn:" + due.turn_id, "token") == due.token.encode()


async def test_a_sweep_takes_no_more_than_its_batch_and_the_longest_due_first(at: Store) -> None:
    turns = [(await open_turn(at)).turn_id for _ in range(5)]
    await fall_due(at)
    await at.redis.zadd("aurora:turns:open", {turn_id: age for age, turn_id in enumerate(turns, start=1)})
    assert [due.turn_id for due in (await at.turns.sweep(token="a", batch=2)).due] == turns[:2]
    assert [due.turn_id for due in (await at.turns.sweep(token="b", batch=2)).due] == turns[2:4]


class CountingRenewals(RedisTurns):
    """Knows how many beats its router had."""

    renewals = 0

    async def renew(self, held: Sequence[tuple[str, str]], *, queued: dict[str, Event] | None = None) -> set[str]:
        self.renewals += 1
        return await super().renew(held, queued=queued)


async def test_a_router_sweeps_again_in_the_moment_when_a_lease_lapses(at: Store) -> None:
    turn = await open_turn(at)
    await fall_due(at)  # there was a sweep before, so the time can be trusted
    turns, pool = CountingRenewals(at.scripts), FullPool()
    seconds, micros = await at.redis.time()
    await at.redis.zadd("aurora:turns:open", {turn.turn_id: seconds * 1000 + micros // 1000 + 500})
    async with Supervisor(turns, pool, personalities(), SupervisorConfig(beat_s=1.9, unclaimed_beats=1_000)):
        await until(lambda: pool.asked)
        assert turns.renewals == 1, "in the very beat in which it lapsed"


async def test_the_first_sweep_of_all_takes_nothing(at: Store) -> None:
    turn = await open_turn(at)
    await at.redis.zadd("aurora:turns:open", {turn.turn_id: 0})
    assert (await at.turns.sweep(token="first", batch=10)).due == []
    assert await at.redis.zscore("aurora:turns:open", turn.turn_id) > 0


async def test_a_sweeper_that_dies_with_what_it_took_loses_it_one_lease_later(redis_server: RedisProcess) -> None:
    async with store(redis_server.url, clock=FAKE_CLOCK) as at:
        taken: list[tuple[int, str]] = []
        await at.set_clock(NOON)
        turn = await open_turn(at)
        for second in range(12):
            await at.set_clock(NOON + second * 1_000)
            taken += [(second, due.turn_id) for due in (await at.turns.sweep(token=f"s{second}", batch=10)).due]
    assert taken == [(3, turn.turn_id), (6, turn.turn_id), (9, turn.turn_id)]


async def test_a_router_renews_the_turns_that_wait_for_a_replica(redis_server: RedisProcess) -> None:
    async with store(redis_server.url, clock=FAKE_CLOCK) as at:
        await at.set_clock(NOON)
        new, pool = new_turn(), FullPool()
        await at.turns.begin(new)
        async with Supervisor(at.turns, pool, personalities(), FAST) as router:
            router.take(new.turn_id, token=new.token, personality="robbie")
            await until(lambda: pool.asked)
            for second in range(1, 10):  # nine seconds in the queue, three leases
                now = NOON + second * 1_000
                await at.set_clock(now)

                async def renewed(now: int = now) -> bool:
                    return await at.redis.zscore("aurora:turns:open", new.turn_id) == now + LEASE_MS

                await until(renewed)
        assert pool.asked == 1, "nobody else took it meanwhile"
        assert (await at.turns.read(new.turn_id)).attempt == 0, "waiting is no attempt"


async def test_the_devices_are_told_that_a_turn_is_queued(redis_server: RedisProcess, at: Store) -> None:
    new, pool = new_turn(), FullPool()
    with Published(redis_server) as published:
        await at.turns.begin(new)
        async with Supervisor(at.turns, pool, personalities(), FAST) as router:
            router.take(new.turn_id, token=new.token, personality="robbie")
            heard: list[str] = []

            def queued() -> bool:
                heard.extend(event["type"] for _, batch in published.drain() if isinstance(batch, list) for event in batch)
                return heard.count("queued") >= 2

            await until(queued)


async def test_every_turn_in_the_open_set_has_a_lease_from_the_first_moment(at: Store) -> None:
    new = new_turn()
    await at.turns.begin(new)
    seconds, _ = await at.redis.time()
    assert seconds * 1000 < await at.redis.zscore("aurora:turns:open", new.turn_id) <= seconds * 1000 + 4_000


async def test_three_attempts_without_a_word_end_a_turn_as_failed(redis_server: RedisProcess, at: Store) -> None:
    new, pool = new_turn(), DyingPool(at)
    with Published(redis_server) as published:
        await at.turns.begin(new)
        async with Supervisor(at.turns, pool, personalities(), FAST) as router:
            router.take(new.turn_id, token=new.token, personality="robbie")
            snapshot = await _ended(at, new.turn_id)
        assert pool.attempts == [1, 2, 3]
        assert snapshot.end is not None
        assert (snapshot.end.type, getattr(snapshot.end, "code", "")) == ("failed", "attempts_exhausted")
        assert len(ends_in(published.drain(), new.turn_id)) == 1


async def test_a_new_piece_forgives_the_attempts_before_it(at: Store) -> None:
    new, pool = new_turn(), DyingPool(at, "one ", "two ", "three ")
    await at.turns.begin(new)
    async with Supervisor(at.turns, pool, personalities(), FAST) as router:
        router.take(new.turn_id, token=new.token, personality="robbie")
        snapshot = await _ended(at, new.turn_id)
    assert pool.attempts == [1, 2, 3, 4, 5, 6]
    assert snapshot.reply is not None
    assert (snapshot.reply.content, snapshot.reply.status) == ("one two three ", "failed")


async def test_a_claim_beyond_the_third_barren_attempt_is_refused(at: Store) -> None:
    new = new_turn()
    await at.turns.begin(new)
    await at.redis.hset("aurora:turn:" + new.turn_id, "barren", BARREN_ATTEMPTS)
    refused = await at.turns.claim(new.turn_id, dispatch=new.token, run="r", node="star", plan=planned(), window=9)
    assert refused is Verdict.EXHAUSTED
    assert (await at.turns.read(new.turn_id)).attempt == 0


async def test_the_first_death_is_answered_at_once_and_the_second_waits_a_lease(at: Store) -> None:
    turn = await open_turn(at)
    first = await at.turns.redispatch(turn.turn_id, dispatch=turn.dispatch, run=turn.run, token="d2")
    assert isinstance(first, Due)
    assert (first.attempt, first.barren) == (1, 1)
    await claim(at, turn.turn_id, "d2", "r2")
    lease = await at.redis.zscore("aurora:turns:open", turn.turn_id)
    assert await at.turns.redispatch(turn.turn_id, dispatch="d2", run="r2", token="d3") is Verdict.WAIT
    assert await at.redis.zscore("aurora:turns:open", turn.turn_id) == lease, "waiting must not prolong the dead run's lease"
    assert (await at.turns.sweep(token="s", batch=9)).due == []
    await fall_due(at, turn.turn_id)
    (due,) = (await at.turns.sweep(token="s", batch=9)).due
    assert (due.turn_id, due.attempt, due.pool) == (turn.turn_id, 2, "scripted")


async def test_a_turn_that_was_never_claimed_is_dispatched_again_without_an_attempt(at: Store) -> None:
    new = new_turn()
    await at.turns.begin(new)
    for number in range(10):
        before = new.token if number == 0 else f"d{number - 1}"
        again = await at.turns.redispatch(new.turn_id, dispatch=before, run="never", token=f"d{number}")
        assert isinstance(again, Due)
        assert (again.attempt, again.barren) == (0, 0)


async def test_a_turn_past_its_deadline_ends_as_failed(at: Store) -> None:
    turn = await open_turn(at, deadline_ms=900_000)
    await at.turns.append(turn.turn_id, token=turn.run, pieces=logged(["So far"]))
    await at.redis.hset("aurora:turn:" + turn.turn_id, "deadline", 1)
    await fall_due(at, turn.turn_id)
    async with Supervisor(at.turns, FullPool(), personalities(), FAST):
        snapshot = await _ended(at, turn.turn_id)
    assert getattr(snapshot.end, "code", "") == "deadline_exceeded"
    assert snapshot.reply is not None
    assert snapshot.reply.content == "So far"


async def test_a_stop_whose_caller_died_is_carried_out_by_a_router(at: Store) -> None:
    turn = await open_turn(at)
    await at.turns.append(turn.turn_id, token=turn.run, pieces=logged(["So far"]))
    await at.turns.hold(turn.turn_id, token="died-here", stopping=True)
    await fall_due(at, turn.turn_id)
    async with Supervisor(at.turns, FullPool(), personalities(), FAST):
        snapshot = await _ended(at, turn.turn_id)
    assert snapshot.end is not None
    assert (snapshot.end.type, snapshot.end.receipt.pieces) == ("stopped", 1)


async def test_an_open_turn_whose_record_is_missing_is_forgotten(at: Store) -> None:
    await fall_due(at, "turn_nobody_knows")
    assert (await at.turns.sweep(token="s", batch=9)).due == []
    assert await at.redis.zscore("aurora:turns:open", "turn_nobody_knows") is None
    with pytest.raises(TurnNotFound):
        await at.turns.read("turn_nobody_knows")


async def _ended(at: Store, turn_id: str) -> Snapshot:
    async def ended() -> Snapshot | None:
        snapshot = await at.turns.read(turn_id)
        return snapshot if snapshot.end else None

    return cast("Snapshot", await until(ended, 10))


async def test_a_turn_that_an_engine_gave_up_is_its_routers_for_a_lease_and_then_due(redis_server: RedisProcess) -> None:
    async with store(redis_server.url, clock=FAKE_CLOCK) as at:
        await at.set_clock(NOON)
        await at.turns.sweep(token="first", batch=9)
        turn = await open_turn(at)
        await at.set_clock(NOON + 1_000)
        await at.turns.release(
            turn.turn_id, token=turn.run, dispatch=turn.dispatch, from_seq=1, reason=Verdict.GAVE_UP, failure=FAILURE
        )
        for ms in (1_000, 2_500, 1_000 + LEASE_MS - 1):
            await at.set_clock(NOON + ms)
            assert (await at.turns.sweep(token="early", batch=9)).due == []
        await at.set_clock(NOON + 1_000 + LEASE_MS)
        (due,) = (await at.turns.sweep(token="late", batch=9)).due
        assert (due.turn_id, due.attempt, due.barren) == (turn.turn_id, 1, 1)


async def test_the_failure_of_an_attempt_is_forgotten_with_the_next_one(at: Store) -> None:
    turn = await open_turn(at)
    await at.turns.release(
        turn.turn_id, token=turn.run, dispatch=turn.dispatch, from_seq=1, reason=Verdict.UNFIT, failure=FAILURE
    )
    await claim(at, turn.turn_id, turn.dispatch)
    held = await at.turns.hold(turn.turn_id, token="stop", stopping=True)
    assert isinstance(held, Held)
    assert held.failure is None
